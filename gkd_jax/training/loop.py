"""The loop around the step: epochs, validation, records, checkpoints, and coming back after a stop."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gkd_jax import hosts, schedules
from gkd_jax.errors import Diverged
from gkd_jax.outputs import Variables
from gkd_jax.reporting.messages import say
from gkd_jax.reporting.spread import over_seeds
from gkd_jax.training import finished, members
from gkd_jax.training.checkpoint import Checkpoints, abstract_like
from gkd_jax.training.devices import fetch, put
from gkd_jax.training.evaluate import of_split
from gkd_jax.training.frozen import keep
from gkd_jax.training.program import Job, Program
from gkd_jax.training.reports import METRICS as METRICS
from gkd_jax.training.reports import Reports
from gkd_jax.training.state import Metrics, TrainState
from gkd_jax.training.stop import Interrupted, Stop, Together
from gkd_jax.training.streamed import StreamedBatches

# Seconds between checkpoints that nothing but a crash asks for: one takes the host as long as a GPU an epoch of CIFAR
_APART = 30.0
# One student's part of a tree, wherever it lies, as one program instead of one for each array
_pick = jax.jit(members.one)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a job leaves.

    Attributes:
      state: after the last step.
      frozen: the student's variables that were not trained.
      records: of all epochs.
      cache: how the teacher's cache was used, None without one, or where nothing was left to do.
    """

    state: TrainState
    frozen: Variables
    records: list[dict[str, Any]]
    cache: dict[str, Any] | None = None


def train(job: Job, stop: Stop | Together | None = None) -> Trained:
    """Trains a job's network to the end, from where an earlier call in the same directory stopped.

    Args:
      job: what to train.
      stop: asked at every step.

    Returns:
      The state after the last step.

    Raises:
      Interrupted: if `stop` was requested; everything is saved.
      Diverged: if the loss became NaN or infinite.
      UserError: if a file cannot be read or written.
    """
    program = Program(job)
    _say_idle(program, jax.device_count())
    checkpoints = Checkpoints(job.workdir / finished.CHECKPOINTS)
    try:
        latest = checkpoints.latest
        state, frozen = program.initial()
        frozen = keep(job.workdir, frozen)
        if latest is not None:
            state = checkpoints.load(abstract_like(state), latest)
            if isinstance(program.batches, StreamedBatches):
                program.batches.check(checkpoints.note(latest))
        trained = _Loop(program, checkpoints, state, frozen, latest or 0, stop).run()
    except (Interrupted, Diverged):
        raise
    except Exception as error:
        hosts.end_if_lost(error)
        if hosts.several():  # a checkpoint that the others do not write with us cannot be waited for
            checkpoints.leave()
        raise
    finally:
        checkpoints.close()
        batches = program.__dict__.get("batches")  # not where its own failure is what ends this
        if isinstance(batches, StreamedBatches):
            batches.close()
    hosts.exchange("")  # nobody reads before all have written
    return trained


def _say_idle(program: Program, count: int) -> None:
    """Says where not all devices can take an equal part."""
    used, batch = len(program.devices), program.job.config["batch_size"]
    if used == count:
        return
    groups = program.mesh.shape["seed"]
    shared = f"a batch of {batch} is shared out evenly among {used}"
    if program.faster_alone:
        shared = f"{program.job.config['student']['model']} trains faster on one of a CPU's (cpu_devices)"
    elif program.strategy == "shard":
        shared = (
            f"{len(program.seeds)} seeds are shared out evenly among {groups} groups of devices, and a batch of "
            f"{batch} among {used // groups} in each"
        )
    say(f"{program.job.name}: {used} of {count} devices are used: {shared}")


class _Loop:
    """One pass through the remaining epochs."""

    def __init__(
        self,
        program: Program,
        checkpoints: Checkpoints,
        state: TrainState,
        frozen: Variables,
        step: int,
        stop: Stop | Together | None,
    ):
        self.program, self.job, self.checkpoints = program, program.job, checkpoints
        self.state, self.frozen, self.step, self.stop = state, frozen, step, stop
        self.kept: int | None = step or None
        self.kept_at, self.best = time.monotonic(), checkpoints.best_accuracy
        self.filled = 0.0  # seconds, in the epochs so far
        dataset = self.job.dataset
        # One student's part of a tree, which several processes need whole
        self._pick = jax.jit(members.one, out_shardings=program.replicated) if hosts.several() else _pick
        program.polled = self._stop_if_asked
        self.fixed = program.fixed(frozen)
        workers = self.job.config["data"]["workers"]
        self.validate = of_split(program.networks.student, dataset, "val", program.devices, workers)

    def run(self) -> Trained:
        job, per_epoch = self.job, self.job.steps_per_epoch
        first = self.step // per_epoch
        if first < job.config["epochs"]:
            found = self.program.residency
            say(f"{job.name}: images on the {found.where}: {found.reason}")
        reports = Reports(job, self.step)
        try:
            for epoch in range(first, job.config["epochs"]):
                record = self._epoch(epoch, reports)
                reports.epoch(record)
                if self._is_kept(epoch + 1, record["val_accuracy"]):
                    self._save(record["val_accuracy"])
                if epoch + 1 < job.config["epochs"]:
                    self._stop_if_asked(record["val_accuracy"])
        finally:
            reports.close()
        used = self.program.recall.summary() if self.program.recall and first < job.config["epochs"] else None
        return Trained(self.state, self.frozen, reports.read(), used)

    def _epoch(self, epoch: int, reports: Reports) -> dict[str, Any]:
        """Trains for an epoch; its `seconds` include those of compilation and of filling the teacher's cache."""
        started = time.monotonic()
        end = (epoch + 1) * self.job.steps_per_epoch
        plan = self.program.plan(epoch)
        recall, before, planned = self.program.recall, self.filled, time.monotonic()
        self.filled = before if recall is None else recall.cache.seconds
        self.program.compile_all(self.step, self.state, plan, self.fixed)
        compiled, begun = time.monotonic(), self.step
        while self.step < end:
            count = self.program.call_at(self.step)
            call = self.program.step_at(self.step, self.state, plan, self.fixed, count)
            self.state = self.program.ended(call(self.state, self.program.at(plan, self.step), self.fixed))
            self.step += count
            reports.step(count)
            if self.step < end:  # at its end an epoch is first written down
                self._stop_if_asked()
        self._check_finite()
        seconds = time.monotonic() - compiled
        students = max(len(self.program.seeds), 1)
        rate = (self.step - begun) * self.job.config["batch_size"] * students / seconds
        record = self._record(epoch)
        self._refit()
        times = {"seconds_cache": self.filled - before, "seconds_compile": compiled - planned}
        return {**record, "images_per_second": rate, "seconds": time.monotonic() - started, **times}

    def _refit(self) -> None:
        """Lets the weights that have parameters learn from the accuracies so far."""
        weights, history = self.state.weights, self.state.history
        if not jax.tree.leaves(weights):
            return
        if hosts.several():
            weights, history = jax.tree.map(jnp.asarray, fetch((weights, history)))
        if self.program.seeds:
            # Not by `vmap`, which would trace what may be computed on the host
            both, places = jax.device_get((weights, history)), range(len(self.program.seeds))
            each = [self._refitted(*jax.tree.map(jnp.asarray, members.one(both, place))) for place in places]
            weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        else:
            weights = self._refitted(weights, history)
        self.state = dataclasses.replace(self.state, weights=put(weights, self.program.weights_on))

    def _refitted(self, weights: Mapping[str, Any], history: Array) -> dict[str, Any]:
        return {name: line.weight.refit(weights[name], history) for name, line in self.program.lines.items()}

    def _record(self, epoch: int) -> dict[str, Any]:
        """Fetches the epoch's sums: the one place where the host waits for the device."""
        metrics, weights = fetch((self.state.metrics, self.state.weights))
        found = {
            "epoch": epoch + 1,
            "step": self.step,
            "learning_rate": float(self.program.rate(self.step - 1)),
        }
        accuracies = self._accuracies()
        seeds = self.program.seeds
        if not seeds:
            return found | self._of_student(metrics, weights, self.state.terms) | {"val_accuracy": accuracies[0]}
        students = {}
        for place, seed in enumerate(seeds):
            sums, shares = members.one((metrics, weights), place)
            own = self._of_student(sums, shares, self._picked(self.state.terms, place))
            students[str(seed)] = own | {"val_accuracy": accuracies[place]}
        return found | over_seeds(students)

    def _picked(self, tree: Any, place: int) -> Any:
        """Returns one student's part of a tree, still on the devices."""
        return self.program.ended(self._pick(tree, place))

    def _of_student(self, metrics: Metrics, weights: Mapping[str, Any], states: Mapping[str, Any]) -> dict[str, Any]:
        if hosts.several():
            states = jax.tree.map(jnp.asarray, fetch(states))
        terms = jax.device_get({name: line.term.readings(states[name]) for name, line in self.program.lines.items()})
        done = (self.step - 1) / self.job.total_steps  # of the last step, as are the weights
        lines: dict[str, dict[str, Any]] = {}
        for name, line in self.program.lines.items():
            sums = metrics.lines[name]
            lines[name] = {
                "value": float(sums.value / sums.count) if sums.count else None,  # None: `every` is over an epoch
                "weight": float(line.weight.at(weights[name], self.step - 1)),
                **{reading: float(value) for reading, value in terms[name].items()},
            }
            bounds = line.weight.bounds(weights[name])
            if bounds is not None:
                lines[name]["stage"] = schedules.stage(done, bounds)
        return {
            "loss": float(metrics.loss / metrics.steps),
            "terms": lines,
            "train_accuracy": float(metrics.correct / metrics.examples),
        }

    def _accuracies(self) -> list[float | None]:
        """Returns the accuracy of each student on the validation images; None without any."""
        seeds = self.program.seeds
        if self.validate is None:
            return [None] * max(len(seeds), 1)
        if not seeds:
            return [self.validate(self.state.evaluated(self.frozen))]
        every = {**self.state.evaluated({}), **self.frozen}
        return [self.validate(self._picked(every, place)) for place in range(len(seeds))]

    def _check_finite(self) -> None:
        found = np.asarray(fetch(self.state.first_nonfinite)).reshape(-1, 2)
        bad = np.flatnonzero(found[:, 0] >= 0)
        if not len(bad):
            return
        first = bad[np.argmin(found[bad, 0])]
        step, place = (int(x) for x in found[first])
        names = [*(f"the term {name!r}" for name in self.program.lines), "the gradient of the objective"]
        kept = f"the checkpoint of step {self.kept} is kept" if self.kept else "no checkpoint had been written yet"
        who = f"{self.job.name}, seed {self.program.seeds[first]}" if self.program.seeds else self.job.name
        raise Diverged(
            f"{who}: {names[place]} became NaN or infinite at step {step}; {kept} in "
            f"{self.checkpoints.folder}. A lower optimizer.learning_rate or a lower weight may help"
        )

    def _save(self, val_accuracy: float | None) -> None:
        batches = self.program.batches
        note = batches.state(self.step) if isinstance(batches, StreamedBatches) else None
        self.checkpoints.save(self.step, self.state, val_accuracy, note)
        self.kept, self.kept_at = self.step, time.monotonic()
        if val_accuracy is not None:
            self.best = val_accuracy if self.best is None else max(self.best, val_accuracy)

    def _is_kept(self, epochs: int, val_accuracy: float | None) -> bool:
        """Returns whether the state after so many epochs becomes a checkpoint."""
        every = self.job.config["checkpoint_every"]
        if epochs == self.job.config["epochs"]:
            return True
        if every != "auto":
            return bool(epochs % every == 0)
        best = val_accuracy is not None and (self.best is None or val_accuracy >= self.best)
        due = best or time.monotonic() - self.kept_at >= _APART
        return hosts.least(float(due)) > 0  # all processes write, or none

    def _stop_if_asked(self, val_accuracy: float | None = None) -> None:
        """Saves and raises `Interrupted` if a signal came."""
        number = None if self.stop is None else self.stop.requested
        if number is None:
            return
        self._check_finite()
        if self.kept != self.step:
            self._save(val_accuracy)
        self.checkpoints.wait()
        raise Interrupted(number, self.job.name, self.step)
