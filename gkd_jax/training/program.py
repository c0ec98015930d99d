"""What a run computes: a network, its data and its objective, compiled for the machine's devices."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from gkd_jax import data, objective
from gkd_jax.config import steps_of
from gkd_jax.data import Dataset
from gkd_jax.objective import Lines
from gkd_jax.outputs import Batch, Setup, Variables
from gkd_jax.training import finished, optimizer
from gkd_jax.training.devices import mesh, one_program_at_a_time, replicated
from gkd_jax.training.state import PLAN, Networks, TrainState, init_state
from gkd_jax.training.step import Fixed, MakeBatch, Plan, TrainStep, make_step
from gkd_jax.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Job:
    """One network to be trained in one directory.

    Attributes:
      name: for the terminal.
      config: of the run, resolved; its "student" is the network that is trained.
      workdir: where it leaves everything.
      dataset: what it learns from.
      teacher: whom it learns from; None without distillation.
    """

    name: str
    config: Mapping[str, Any]
    workdir: pathlib.Path
    dataset: Dataset
    teacher: Teacher | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in an epoch."""
        return data.steps_per_epoch(len(self.dataset.train_images), self.config["batch_size"])

    @property
    def total_steps(self) -> int:
        """Number of steps of the run."""
        return self.config["epochs"] * self.steps_per_epoch

    def lines(self) -> dict[str, objective.Line]:
        """Returns the lines of the objective."""
        steps = steps_of(self.steps_per_epoch, self.config["epochs"])
        return objective.build(self.config["objective"], self.total_steps, steps)

    def learning_rate(self) -> Callable[[Any], Any]:
        """Returns the learning rate by step."""
        steps = steps_of(self.steps_per_epoch, self.config["epochs"])
        return optimizer.learning_rate(self.config["optimizer"], self.total_steps, steps)


class Program:
    """A job's compiled functions and what they read, on its devices."""

    def __init__(self, job: Job, devices: Sequence[jax.Device] | None = None, platform: str | None = None):
        """Chooses the devices and the networks' form.

        Args:
          job: what is to be trained.
          devices: to share each batch among; all there are by default, as far as they share it evenly.
          platform: to lower for, where it is not that of the devices.
        """
        config, dataset = job.config, job.dataset
        self.job = job
        self.lines: Lines = job.lines()
        self.rate = job.learning_rate()
        self.tx = optimizer.sgd(config["optimizer"], self.rate)
        self.networks = Networks(
            finished.network(config, dataset.num_classes, platform),
            job.teacher.model if job.teacher else None,
            job.teacher.variables if job.teacher else {},
        )
        devices = jax.devices() if devices is None else list(devices)
        self.devices = devices[: max(n for n in range(1, len(devices) + 1) if config["batch_size"] % n == 0)]
        self.waits = one_program_at_a_time(self.devices)
        self.mesh = mesh(self.devices)
        self.replicated = replicated(self.mesh)
        self.by_column = NamedSharding(self.mesh, PartitionSpec(None, "data"))
        self.key = jax.random.key(config["seed"], impl="threefry2x32")
        self._compiled: dict[tuple[str, ...], TrainStep] = {}

    def ended(self, tree: Any) -> Any:
        """Returns what a program gave, once it is there if no other program may be dispatched before."""
        return jax.block_until_ready(tree) if self.waits else tree

    def place(self, tree: Any) -> Any:
        """Returns a tree on all devices."""
        return jax.device_put(tree, self.replicated)

    def initial(self) -> tuple[TrainState, Variables]:
        """Builds the first state, and what of the student's variables is not trained."""
        job = self.job
        build = functools.partial(
            init_state,
            networks=self.networks,
            lines=self.lines,
            optimizer=self.tx,
            images=jax.ShapeDtypeStruct((job.config["batch_size"], *job.dataset.image_shape), jnp.float32),
            setup=Setup(
                num_classes=job.dataset.num_classes,
                num_examples=len(job.dataset.train_labels),
                steps_per_epoch=job.steps_per_epoch,
                labels=jnp.asarray(job.dataset.train_labels),
                teacher_kernel=job.teacher.kernel if job.teacher else None,
                teacher_bias=job.teacher.bias if job.teacher else None,
            ),
            epochs=job.config["epochs"],
            ema=job.config["ema"] > 0,
        )
        return self.ended(jax.jit(build, out_shardings=self.replicated)(self.key))

    def plan(self, epoch: int) -> Plan:
        """Returns what is seen in an epoch, from 0."""
        return self.ended(Plan(*self._plan(jax.random.fold_in(self.key, PLAN), epoch)))

    @functools.cached_property
    def _plan(self) -> Callable[..., tuple[Array, Array]]:
        job = self.job
        draw = functools.partial(
            data.epoch_plan,
            num_examples=len(job.dataset.train_labels),
            batch_size=job.config["batch_size"],
            num_views=job.dataset.num_views,
        )
        return jax.jit(draw, out_shardings=self.by_column)

    def make_batch(self) -> MakeBatch:
        """Returns the function that gathers a batch from the images on the device."""
        dataset = self.job.dataset
        rows = NamedSharding(self.mesh, PartitionSpec("data"))

        def make(fixed: Fixed, index: Int[Array, " b"], view: Int[Array, " b"], step: Int[Array, ""]) -> Batch:
            crops = data.crop_flip(fixed.images, index, view, pad=dataset.pad, flip=dataset.flip)
            crops = jax.lax.with_sharding_constraint(crops, rows)
            labels = fixed.labels[index]
            return Batch(
                images={"weak": data.normalise(crops, dataset.mean, dataset.std)},
                labels=labels,
                targets=jax.nn.one_hot(labels, dataset.num_classes),
                index=index,
                view=view,
                step=step,
            )

        return make

    def step_at(self, step: int, state: TrainState, plan: Plan, fixed: Fixed) -> TrainStep:
        """Returns the compiled step for the lines that are active at `step`."""
        names = tuple(objective.active(self.lines, step))
        if names not in self._compiled:
            self._compiled[names] = self.jitted_step_at(step).lower(state, plan, fixed).compile()
        return self._compiled[names]

    def jitted_step_at(self, step: int) -> Any:
        """Returns the same step before it is compiled."""
        lines = objective.active(self.lines, step)
        ema = self.job.config["ema"]
        pure = make_step(self.networks, lines, self.tx, self.make_batch(), ema=ema, every=self.lines)
        return jax.jit(pure, donate_argnums=0, out_shardings=self.replicated)

    def fixed(self, frozen: Variables) -> Fixed:
        """Returns what every step reads, on all devices."""
        dataset = self.job.dataset
        padded, labels = self.place((data.pad_images(dataset.train_images, dataset.pad), dataset.train_labels))
        return Fixed(padded, labels, self.place(self.networks.teacher_variables), frozen)

    def compile_all(self, start: int, state: TrainState, plan: Plan, fixed: Fixed) -> None:
        """Compiles every variant of the step before the clock of the throughput starts."""
        period = math.lcm(*(line.every for line in self.lines.values()))
        for step in range(start, min(start + period, self.job.total_steps)):
            self.step_at(step, state, plan, fixed)
