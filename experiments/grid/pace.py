"""How far the tasks of a grid are, and how long the rest will take."""

import json
import statistics
import time
from typing import Any, NamedTuple

from experiments.grid import tasks
from experiments.grid.run import DONE, RUNNING, Run
from experiments.grid.tasks import Task
from gkd_jax.errors import UserError
from gkd_jax.reporting.records import read_records
from gkd_jax.training import summary
from gkd_jax.training.loop import METRICS


class Reading(NamedTuple):
    """What a running task's records say.

    Attributes:
      epoch: that is finished.
      epochs: of all.
      val_accuracy: after it, the mean of all seeds; None without validation images.
      seconds: that its epochs took, without compilation and the filling of the teacher's cache.
      compilation: seconds, paid once a run.
      filling: seconds of filling the cache, which the first cell does for all.
    """

    epoch: int
    epochs: int
    val_accuracy: float | None
    seconds: float
    compilation: float = 0.0
    filling: float = 0.0

    @property
    def whole(self) -> float:
        """Seconds that the whole run takes at the pace of its epochs so far, without the filling."""
        return self.seconds * self.epochs / self.epoch + self.compilation


def read(task: Task) -> Reading:
    """Returns how far a task is, 0 epochs if it has written nothing that can be read."""
    try:
        records = read_records(task.folder / METRICS)
    except UserError:
        records = []
    last: dict[str, Any] = records[-1] if records else {}
    whole, compilation, filling = (
        sum(record.get(field) or 0.0 for record in records) for field in ("seconds", "seconds_compile", "seconds_cache")
    )
    seconds = max(whole - compilation - filling, 0.0)
    return Reading(last.get("epoch", 0), task.config["epochs"], last.get("val_accuracy"), seconds, compilation, filling)


def remaining(run: Run, now: float | None = None) -> float | None:
    """Returns in how many seconds all is done; None as long as nothing can be known.

    A task's work is its epochs times its seeds. A waiting task's work takes as long as that of the finished and running
    tasks that train the same network, on average and without what these spent on the teacher's cache; where there are
    none, as that of all. A running task's remaining epochs take as long as its own so far. The sum is shared among as
    many processes as run now, of those that the engine was handed.

    Args:
      run: whose tasks they are.
      now: seconds of `time.monotonic`.
    """
    now = time.monotonic() if now is None else now
    paces: dict[str, list[float]] = {}
    running: dict[str, Reading] = {name: read(run.tasks[name]) for name in run.those(RUNNING)}
    for name in run.those(DONE):
        # A run that was gone on with took longer than its process here, which began in the middle
        if seconds := max(run.status[name].seconds or 0.0, _summed(run.tasks[name])):
            seconds = max(seconds - read(run.tasks[name]).filling, 0.0)
            paces.setdefault(_network(run.tasks[name]), []).append(seconds / _work(run.tasks[name]))
    for name, reading in running.items():
        if reading.epoch:
            task = run.tasks[name]
            paces.setdefault(_network(task), []).append(reading.whole / _work(task))
    total = 0.0
    for name, task in run.tasks.items():
        if name not in running and not run.wanted(name):
            continue
        known = paces.get(_network(task)) or [pace for each in paces.values() for pace in each]
        if not known:
            return None
        expected = statistics.fmean(known) * _work(task)
        if name in running:
            reading, spent = running[name], now - run.status[name].since
            left = reading.seconds * (reading.epochs / reading.epoch - 1) if reading.epoch else expected - spent
            expected = max(left, 0.0)
        total += expected
    return total / max(min(len(running), run.slots or len(running)), 1)


def _network(task: Task) -> str:
    return str(task.config["student"]["model"])


def _work(task: Task) -> int:
    return int(task.config["epochs"]) * max(len(task.config["seeds"]), 1)


def _summed(task: Task) -> float:
    """Returns how long a finished task took in all the processes that worked on it; 0 where nobody wrote it down."""
    found = summarised(task).get("seconds")
    return float(found) if isinstance(found, int | float) else 0.0


def summarised(task: Task) -> dict[str, Any]:
    """Returns the summary of a task's run, {} if there is none that can be read."""
    try:
        found = json.loads((task.folder / summary.SUMMARY).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def accuracy(task: Task) -> tuple[float | None, float | None]:
    """Returns the test accuracy of a finished task, and its standard deviation over the seeds."""
    student = summarised(task).get("student") or {}
    return student.get("test_accuracy"), (student.get("std") or {}).get("test_accuracy")


def title(task: Task) -> str:
    """Returns what a task is called where it is shown: a cell by its name, a teacher by its folder."""
    return task.name.removeprefix(f"{tasks.RUNS}/")
