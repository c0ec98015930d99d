"""The loop around the step: epochs, validation, records, checkpoints, and coming back after a stop."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from gkd_jax import schedules
from gkd_jax.errors import UserError
from gkd_jax.outputs import Variables
from gkd_jax.reporting.progress import Progress
from gkd_jax.reporting.records import JsonlWriter, read_records
from gkd_jax.reporting.tensorboard import TensorBoardWriter
from gkd_jax.training import finished
from gkd_jax.training.checkpoint import Checkpoints, abstract_like
from gkd_jax.training.evaluate import Evaluator
from gkd_jax.training.program import Job, Program
from gkd_jax.training.state import TrainState
from gkd_jax.training.stop import Interrupted, Stop

METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a job leaves: the state after the last step, and the student's variables that were not trained."""

    state: TrainState
    frozen: Variables
    records: list[dict[str, Any]]


def train(job: Job, stop: Stop | None = None) -> Trained:
    """Trains a job's network to the end, from where an earlier call in the same directory stopped.

    Args:
      job: what to train.
      stop: asked at every step.

    Returns:
      The state after the last step.

    Raises:
      Interrupted: if `stop` was requested; everything is saved.
      UserError: if the loss became NaN or infinite, or a file cannot be read or written.
    """
    program = Program(job)
    checkpoints = Checkpoints(job.workdir / finished.CHECKPOINTS)
    try:
        latest = checkpoints.latest
        state, frozen = program.initial()
        if latest is not None:
            state = checkpoints.load(abstract_like(state, program.replicated), latest)
        return _Loop(program, checkpoints, state, frozen, latest or 0, stop).run()
    finally:
        checkpoints.close()


class _Loop:
    """One pass through the remaining epochs."""

    def __init__(
        self,
        program: Program,
        checkpoints: Checkpoints,
        state: TrainState,
        frozen: Variables,
        step: int,
        stop: Stop | None,
    ):
        self.program, self.job, self.checkpoints = program, program.job, checkpoints
        self.state, self.frozen, self.step, self.stop = state, frozen, step, stop
        self.kept: int | None = step or None
        dataset = self.job.dataset
        self.fixed = program.fixed(frozen)
        self.validate = None
        if len(dataset.val_images):
            model, where = program.networks.student, program.devices
            self.validate = Evaluator(model, dataset.val_images, dataset.val_labels, dataset.mean, dataset.std, where)

    def run(self) -> Trained:
        job, per_epoch = self.job, self.job.steps_per_epoch
        first = self.step // per_epoch
        records = JsonlWriter(job.workdir / METRICS)
        records.truncate_after(first)
        board = None
        if job.config["tensorboard"] and self.step < job.total_steps:
            board = TensorBoardWriter(job.workdir / "tensorboard", purge_step=self.step + 1)
        progress = Progress(job.config["epochs"], per_epoch, job.name, done_epochs=first)
        try:
            for epoch in range(first, job.config["epochs"]):
                record = self._epoch(epoch, progress)
                records.write(record)
                if board is not None:
                    board.write(record)
                progress.epoch(record)
                if (epoch + 1) % job.config["checkpoint_every"] == 0 or epoch + 1 == job.config["epochs"]:
                    self._save(record["val_accuracy"])
                if epoch + 1 < job.config["epochs"]:
                    self._stop_if_asked(record["val_accuracy"])
        finally:
            progress.close()
            if board is not None:
                board.close()
        return Trained(self.state, self.frozen, read_records(job.workdir / METRICS))

    def _epoch(self, epoch: int, progress: Progress) -> dict[str, Any]:
        started = time.monotonic()
        end = (epoch + 1) * self.job.steps_per_epoch
        plan = self.program.plan(epoch)
        self.program.compile_all(self.step, self.state, plan, self.fixed)
        compiled, begun = time.monotonic(), self.step
        while self.step < end:
            step = self.program.step_at(self.step, self.state, plan, self.fixed)
            self.state = self.program.ended(step(self.state, plan, self.fixed))
            self.step += 1
            progress.step()
            if self.step < end:  # at its end an epoch is first written down
                self._stop_if_asked()
        self._check_finite()
        seconds = time.monotonic() - compiled
        rate = (self.step - begun) * self.job.config["batch_size"] / seconds
        record = self._record(epoch)
        accuracy = self.validate(self.state.evaluated(self.frozen)) if self.validate else None
        self._refit()
        measured = {"val_accuracy": accuracy, "images_per_second": rate, "seconds": time.monotonic() - started}
        return {**record, **measured}

    def _refit(self) -> None:
        """Lets the weights that have parameters learn from the accuracies so far."""
        old = self.state.weights
        if jax.tree.leaves(old):
            new = {name: line.weight.refit(old[name], self.state.history) for name, line in self.program.lines.items()}
            self.state = dataclasses.replace(self.state, weights=self.program.place(new))

    def _record(self, epoch: int) -> dict[str, Any]:
        """Fetches the epoch's sums: the one place where the host waits for the device."""
        metrics, terms = jax.device_get((self.state.metrics, self._readings()))
        done = (self.step - 1) / self.job.total_steps  # of the last step, as are the weights
        lines: dict[str, dict[str, Any]] = {}
        for name, line in self.program.lines.items():
            sums = metrics.lines[name]
            lines[name] = {
                "value": float(sums.value / sums.count) if sums.count else None,  # None: `every` is over an epoch
                "weight": float(line.weight.at(self.state.weights[name], self.step - 1)),
                **{reading: float(value) for reading, value in terms[name].items()},
            }
            if line.bounds is not None:
                lines[name]["stage"] = schedules.stage(done, line.bounds)
        return {
            "epoch": epoch + 1,
            "step": self.step,
            "learning_rate": float(self.program.rate(self.step - 1)),
            "loss": float(metrics.loss / metrics.steps),
            "terms": lines,
            "train_accuracy": float(metrics.correct / metrics.examples),
        }

    def _readings(self) -> dict[str, Mapping[str, Array]]:
        return {name: line.term.readings(self.state.terms[name]) for name, line in self.program.lines.items()}

    def _check_finite(self) -> None:
        step, place = (int(x) for x in jax.device_get(self.state.first_nonfinite))
        if step < 0:
            return
        names = [*(f"the term {name!r}" for name in self.program.lines), "the gradient of the objective"]
        kept = f"the checkpoint of step {self.kept} is kept" if self.kept else "no checkpoint had been written yet"
        raise UserError(
            f"{self.job.name}: {names[place]} became NaN or infinite at step {step}; {kept} in "
            f"{self.checkpoints.folder}. A lower optimizer.learning_rate or a lower weight may help"
        )

    def _save(self, val_accuracy: float | None) -> None:
        self.checkpoints.save(self.step, self.state, val_accuracy)
        self.kept = self.step

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
