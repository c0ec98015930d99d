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
from jaxtyping import Array

from gkd_jax import data, hosts, objective
from gkd_jax.config import NO_CACHE, cache_folder, kept_views, steps_of
from gkd_jax.data import AnyDataset
from gkd_jax.data.residency import Residency, choose
from gkd_jax.data.stream import Streamed
from gkd_jax.models.simkd import Reused
from gkd_jax.objective import Lines
from gkd_jax.outputs import Setup, Variables
from gkd_jax.reporting.messages import say
from gkd_jax.training import chunks, finished, members, optimizer
from gkd_jax.training.batches import Batches
from gkd_jax.training.devices import (
    evenly,
    faster_alone,
    fuses_sums,
    mesh,
    one_program_at_a_time,
    put,
    replicated,
    with_fused_sums,
)
from gkd_jax.training.held import HeldBatches
from gkd_jax.training.recall import OfNoUse, Recall, unheld
from gkd_jax.training.sharing import check_shared, groups
from gkd_jax.training.state import Networks, TrainState, init_state, run_key
from gkd_jax.training.step import Fixed, Plan, TrainStep, make_step
from gkd_jax.training.streamed import StreamedBatches, kept_for
from gkd_jax.training.tables import available_memory
from gkd_jax.training.teacher import Teacher
from gkd_jax.training.views import STRONG, by_view

# Enough for the host's share of a step to vanish, few enough to stop within a second or two
_STEPS_PER_CALL = 128


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
    dataset: AnyDataset
    teacher: Teacher | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in an epoch."""
        return data.steps_per_epoch(self.dataset.sizes.train, self.config["batch_size"])

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
          devices: to share each batch, or the seeds, among; by default all there are that it is worth sharing among, as
            far as they share evenly.
          platform: to lower for, where it is not that of the devices.
        """
        config, dataset = job.config, job.dataset
        self.job = job
        self.seeds = tuple(config["seeds"])
        self.lines: Lines = job.lines()
        self.rate = job.learning_rate()
        self.tx = optimizer.sgd(config["optimizer"], self.rate)
        self.networks = Networks(
            finished.network(config, dataset.num_classes, platform, self._reused),
            job.teacher.model if job.teacher else None,
            job.teacher.variables if job.teacher else {},
        )
        chosen = devices is None and config["cpu_devices"] == "auto" and not hosts.several()
        devices = jax.devices() if devices is None else list(devices)
        platform = platform or devices[0].platform
        self.strategy = self._strategy(platform, len(devices))
        self.faster_alone = (
            chosen and self.strategy != "shard" and faster_alone(devices, self.networks.student, dataset.image_shape)
        )
        devices = devices[:1] if self.faster_alone else devices
        apart = groups(len(self.seeds), len(devices)) if self.strategy == "shard" else 1
        check_shared(config, len(devices))
        self.devices = devices[: apart * evenly(config["batch_size"], len(devices) // apart)]
        self.fuses_sums = fuses_sums(self.devices, self.networks.student, dataset.image_shape)
        self.waits = one_program_at_a_time(self.devices)
        self.mesh = mesh(self.devices, apart)
        self.replicated = replicated(self.mesh)
        self.period = math.lcm(*(line.every for line in self.lines.values()))
        limit = config["steps_per_call"]
        if limit == "auto":
            limit = 1 if platform == "cpu" else _STEPS_PER_CALL
        # A batch that comes from the host comes alone
        apart = self.residency.where != "device"
        self.chunk = 1 if apart else chunks.length(job.steps_per_epoch, self.period, limit)
        self.polled: Callable[[], None] = lambda: None  # called where a program takes long before the next step
        self._compiled: dict[tuple[str, ...], TrainStep] = {}
        self._pures: dict[tuple[str, ...], chunks.AnyStep] = {}
        self.together = (
            members.Together(len(self.seeds), self.strategy, self.shares, self.mesh) if self.strategy else None
        )

    @functools.cached_property
    def residency(self) -> Residency:
        """Where the training images are kept, and why."""
        given, dataset = self.job.config["data"], self.job.dataset
        nbytes = 0
        if not isinstance(dataset, Streamed):
            height, width, channels = dataset.image_shape
            nbytes = dataset.sizes.train * (height + 2 * dataset.pad) * (width + 2 * dataset.pad) * channels
        stats = [device.memory_stats() for device in self.mesh.local_devices]
        free = min((s["bytes_limit"] - s["bytes_in_use"] for s in stats if s), default=None)
        free = None if free is None else int(hosts.least(free))  # one choice for all processes
        return choose(
            given["residency"],
            image_size=given["image_size"],
            nbytes=nbytes,
            device_free=free,
            host_free=int(hosts.least(available_memory() + dataset.nbytes)),
        )

    @functools.cached_property
    def batches(self) -> Batches | StreamedBatches:
        """What is seen at each step; the first look computes the teacher's kept views, where they are wanted."""
        config, dataset, strong = self.job.config, self.job.dataset, STRONG in by_view(self.lines)
        if not isinstance(dataset, Streamed):
            kind = Batches if self.residency.where == "device" else HeldBatches
            return kind(config, dataset, self.mesh, apart=self.strategy == "shard", strong=strong)
        kept, teacher = None, self.job.teacher
        cache = config["teacher"]["cache"]
        if teacher is not None and kept_views(cache) and not unheld(cache, self.lines):
            # Each of several processes computes parts of its own: none is a point at which all could stop
            polled = (lambda: None) if hosts.several() else (lambda: self.polled())
            kept = kept_for(config, dataset, teacher, self.job.workdir, polled)
        return StreamedBatches(config, dataset, self.mesh, self.job.total_steps, strong=strong, kept=kept)

    def shapes(self, plan: Plan) -> Plan:
        """Returns what a program is compiled for, of an epoch's plan."""
        return self.batches.at(plan, 0) if isinstance(self.batches, HeldBatches) else plan

    def at(self, plan: Plan, step: int) -> Plan:
        """Returns the plan that the program at `step` is given: the epoch's, or the row of a streamed batch."""
        if isinstance(self.batches, StreamedBatches):
            return self.batches.at(step)
        return self.batches.at(plan, step % self.job.steps_per_epoch) if isinstance(self.batches, HeldBatches) else plan

    def _strategy(self, platform: str, devices: int) -> str | None:
        chosen: str = self.job.config["seed_strategy"]
        if not self.seeds:
            return None
        if chosen != "auto":
            return chosen
        network, apart = self.networks.student, groups(len(self.seeds), devices)
        at_most = 1 if hosts.several() and apart == 1 else devices
        return members.strategy(len(self.seeds), at_most, platform, network, self.job.dataset.image_shape)

    @property
    def shares(self) -> bool:
        """Whether all students see the same batches."""
        return bool(self.job.config["seeds_share_batches"])

    def ended(self, tree: Any) -> Any:
        """Returns what a program gave, once it is there if no other program may be dispatched before."""
        return jax.block_until_ready(tree) if self.waits else tree

    def _on(self, specs: Any) -> Any:
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)

    @property
    def _state_on(self) -> Any:
        """Where each part of the state lies."""
        return self._on(members.state_specs("seed")) if self.strategy == "shard" else self.replicated

    @property
    def weights_on(self) -> Any:
        """Where the parameters of the weights lie."""
        return self._state_on.weights if self.strategy == "shard" else self.replicated

    def initial(self) -> tuple[TrainState, Variables]:
        """Builds the first state, and what of the student's variables is not trained."""
        job = self.job
        build = functools.partial(
            init_state,
            networks=self.networks,
            lines=self.lines,
            optimizer=self.tx,
            images=jax.ShapeDtypeStruct((job.config["batch_size"], *job.dataset.image_shape), jnp.float32),
            setup=self._setup,
            epochs=job.config["epochs"],
            ema=job.config["ema"] > 0,
        )
        if not self.seeds:
            return self.ended(jax.jit(build, out_shardings=self.replicated)(run_key(job.config["seed"])))
        frozen_on = NamedSharding(self.mesh, PartitionSpec("seed" if self.strategy == "shard" else None))
        built = jax.jit(members.stack_init(build), out_shardings=(self._state_on, frozen_on))
        return self.ended(built(jnp.stack([run_key(seed) for seed in self.seeds])))

    @property
    def _reused(self) -> Reused | None:
        """What the student takes over from its teacher."""
        teacher = self.job.teacher
        return teacher.reused(self.job.dataset.image_shape) if teacher and finished.reuses(self.job.config) else None

    @property
    def _setup(self) -> Setup:
        dataset, teacher = self.job.dataset, self.job.teacher
        return Setup(
            num_classes=dataset.num_classes,
            num_examples=dataset.sizes.train,
            steps_per_epoch=self.job.steps_per_epoch,
            # Known where images are read alone
            labels=None if isinstance(dataset, Streamed) else jnp.asarray(dataset.train_labels),
            teacher_kernel=teacher.kernel if teacher else None,
            teacher_bias=teacher.bias if teacher else None,
            teacher_norms=teacher.norms if teacher else None,
        )

    def plan(self, epoch: int) -> Plan:
        """Returns what is seen in an epoch, from 0, with what is remembered of the teacher."""
        if isinstance(self.batches, StreamedBatches):
            return self.batches.plan(epoch)
        plan = self.ended(self.batches.plan(epoch))
        if self.recall is None:
            return plan
        left = self.job.config["epochs"] - epoch

        def following() -> tuple[Array, Array]:
            after = self.batches.plan(epoch + 1)
            return after.index, after.view

        try:
            rows = self.recall(plan.index, plan.view, self.batches.by_column, left, following if left > 1 else None)
            return plan._replace(teacher=rows)
        except OfNoUse as error:  # before the first step: none is compiled that is given rows
            held = self.job.config["teacher"]["cache"]
            say(f"{self.job.name}: teacher.cache = {held!r} is of no use here, the teacher runs at every step: {error}")
            self.recall = None
            return plan

    @functools.cached_property
    def recall(self) -> Recall | None:
        """What is remembered of the teacher; None where it is asked at every step, as the first plan may find out."""
        teacher, given = self.job.teacher, self.job.config["teacher"]
        dataset, batches = self.job.dataset, self.batches
        if teacher is None or given["cache"] == NO_CACHE:
            return None
        if isinstance(dataset, Streamed) or isinstance(batches, StreamedBatches):  # what is kept comes with each batch
            return None
        if unheld(given["cache"], self.lines):  # which `experiment.run` has said
            return None
        return Recall(
            given["cache"],
            teacher._replace(variables=self._teacher_variables),
            self.lines,
            dataset,
            batches.gather,
            dtype=self.job.config["dtype"],
            memory=given["cache_memory"],
            folder=cache_folder(given["cache_dir"], "teachers"),
            where=self.replicated,
            waits=self.waits,
            early=self.devices[0].platform != "cpu",
            polled=lambda: self.polled(),
        )

    @functools.cached_property
    def _teacher_variables(self) -> Variables:
        """Of the teacher, on all devices."""
        placed: Variables = put(self.networks.teacher_variables, self.replicated)
        return placed

    def call_at(self, step: int) -> int:
        """Returns how many steps the next program does, at `step` of the run."""
        begins = chunks.begins(step, self.job.steps_per_epoch, self.period, self.chunk)
        return self.chunk if begins else 1

    def step_at(self, step: int, state: TrainState, plan: Plan, fixed: Fixed, count: int = 1) -> TrainStep:
        """Returns the compiled program of `count` steps, for the lines that are active at `step` and after it."""
        names = ("chunk",) if count > 1 else tuple(objective.active(self.lines, step))
        if names not in self._compiled:
            lowered = self.jitted_step_at(step, count).lower(state, self.shapes(plan), fixed)
            self._compiled[names] = with_fused_sums(lowered) if self.fuses_sums else lowered.compile()
        return self._compiled[names]

    def jitted_step_at(self, step: int, count: int = 1) -> Any:
        """Returns the same program before it is compiled."""
        run = self._pure(step)
        if count > 1:
            run = chunks.chunked([self._pure(step + i) for i in range(self.period)], count)
        if self.together is not None:
            run = self.together.stacked(run)
        return jax.jit(run, donate_argnums=0, out_shardings=self._state_on)

    def _pure(self, step: int) -> chunks.AnyStep:
        lines = objective.active(self.lines, step)
        if tuple(lines) not in self._pures:
            ema = self.job.config["ema"]
            make = self.batches.make(self.together.axes if self.together else ("data",))
            one = make_step(
                self.networks, lines, self.tx, make, ema=ema, every=self.lines, steps_per_epoch=self.job.steps_per_epoch
            )
            self._pures[tuple(lines)] = self.together.step(one) if self.together else one.__call__
        return self._pures[tuple(lines)]

    def fixed(self, frozen: Variables) -> Fixed:
        """Returns what every step reads, on all devices."""
        # A step that is given the teacher's rows drops these variables when it is compiled
        return Fixed(*self.batches.images, self._teacher_variables, frozen, self._constants)

    @functools.cached_property
    def _constants(self) -> Any:
        """Of the terms, on all devices."""
        build = jax.jit(lambda: objective.constants(self.lines, self._setup), out_shardings=self.replicated)
        return self.ended(build())

    def compile_all(self, start: int, state: TrainState, plan: Plan, fixed: Fixed) -> None:
        """Compiles every variant of the step before the clock of the throughput starts."""
        step, end = start, min(start + self.job.steps_per_epoch + self.period, self.job.total_steps)
        while step < end:
            count = self.call_at(step)
            self.step_at(step, state, plan, fixed, count)
            step += count
