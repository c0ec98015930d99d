"""Tasks in their order, by an engine, to the end: what failed is written down, and the rest goes on."""

import contextlib
import datetime
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.grid import plan, process, tasks
from experiments.grid.engine import Engine
from experiments.grid.tasks import Outcome, Task
from gkd_jax.errors import UserError
from gkd_jax.reporting.files import write_json
from gkd_jax.training import summary

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
_POLL = 0.5  # seconds between two looks at what runs
_ELSEWHERE = 2.0  # seconds between two looks at a task that another process is at work on
_LOG_LINES = 40


class Status(NamedTuple):
    """How a task stands.

    Attributes:
      state: WAITING, RUNNING, DONE or FAILED.
      since: when it came so, in seconds of `time.monotonic`.
      elsewhere: of a waiting one, whether another process is at work on it.
      error: of a failed one.
      seconds: that it took here; None if it was done before, or elsewhere.
    """

    state: str
    since: float = 0.0
    elsewhere: bool = False
    error: str | None = None
    seconds: float | None = None


class Run:
    """The tasks of a grid and how they stand.

    Attributes:
      tasks: in their order, every teacher before the cells that need it.
      status: of each, by its name.
      slots: how many the engine runs at once; None before `go`.
    """

    def __init__(self, given: Sequence[Task]):
        """Looks which tasks are done already, and starts nothing."""
        self.tasks = {task.name: task for task in given}
        self.slots: int | None = None
        self.status = {name: Status(DONE if plan.finished(task) else WAITING) for name, task in self.tasks.items()}
        for name, status in self.status.items():
            if status.state == DONE:
                self._forget_failure(self.tasks[name])

    @property
    def cells(self) -> list[str]:
        """Names of the tasks that are cells."""
        return [name for name in self.tasks if name.startswith(f"{tasks.RUNS}/")]

    def those(self, state: str, names: Sequence[str] | None = None) -> list[str]:
        """Returns which of `names` (all tasks if None) are in a state."""
        return [name for name in (self.tasks if names is None else names) if self.status[name].state == state]

    def wanted(self, name: str) -> bool:
        """Returns whether a task is yet to be run: it is waiting, and of no teacher that no waiting cell needs."""
        if self.status[name].state != WAITING:
            return False
        return name in self.cells or any(name in self.tasks[cell].needs for cell in self.those(WAITING, self.cells))

    def go(
        self, engine: Engine, stopped: Callable[[], bool], watch: Callable[["Run"], None] = lambda run: None
    ) -> None:
        """Runs what is not done, until all is done or has failed, or `stopped()`; then what runs is still running.

        Args:
          engine: that starts the tasks.
          stopped: asked twice a second.
          watch: called as often.

        Raises:
          UserError: if the grid's folder cannot be written.
        """
        while not stopped():
            self.slots = engine.slots()
            self._start(engine)
            watch(self)
            if not self.those(RUNNING) and not any(map(self.wanted, self.tasks)):
                return
            begun = time.monotonic()
            for outcome in engine.wait(_POLL):
                self._ended(outcome)
            if not self.those(RUNNING):  # an engine with nothing to do need not wait
                time.sleep(max(0.0, begun + _POLL - time.monotonic()))

    def _start(self, engine: Engine) -> None:
        """Starts what can be, in the tasks' order, as long as there is room."""
        for name, task in self.tasks.items():
            if not self.wanted(name):
                continue
            lost = [need for need in task.needs if self.status[need].state == FAILED]
            if lost:
                self._fail(task, f"its teacher {lost[0]} failed: {self.status[lost[0]].error}", log=False)
                continue
            if any(self.status[need].state != DONE for need in task.needs) or not engine.room():
                continue
            if self.status[name].elsewhere and time.monotonic() - self.status[name].since < _ELSEWHERE:
                continue
            self._start_one(engine, task)

    def _start_one(self, engine: Engine, task: Task) -> None:
        """Starts a task, unless it is done meanwhile, or being done by another process, or its folder is another's."""
        try:
            others = plan.differences(task)
        except UserError as error:
            return self._fail(task, str(error), log=False)
        if others:
            told = (
                f"{task.folder} holds a run of another configuration ({'; '.join(others)}); nothing was changed there"
            )
            return self._fail(task, f"{told}: choose another --out, or remove that folder", log=False)
        if plan.finished(task):
            return self._set(task, Status(DONE, time.monotonic()))
        if plan.held(task):
            return self._set(task, Status(WAITING, time.monotonic(), elsewhere=True))
        try:
            task = plan.continued(task)
        except UserError as error:
            return self._fail(task, str(error), log=False)
        tasks.write(task)
        engine.start(task)
        return self._set(task, Status(RUNNING, time.monotonic()))

    def _ended(self, outcome: Outcome) -> None:
        task = self.tasks[outcome.name]
        if outcome.elsewhere:  # between the look at its lock and its own taking it
            self._set(task, Status(WAITING, time.monotonic(), elsewhere=True))
        elif outcome.error is not None:
            self._fail(task, outcome.error, seconds=outcome.seconds)
        elif not plan.finished(task):
            self._fail(task, f"its process ended well but left no {summary.SUMMARY}", seconds=outcome.seconds)
        else:
            self._set(task, Status(DONE, time.monotonic(), seconds=outcome.seconds))

    def _set(self, task: Task, status: Status) -> None:
        self.status[task.name] = status
        if status.state == DONE:
            self._forget_failure(task)

    def _fail(self, task: Task, error: str, *, log: bool = True, seconds: float | None = None) -> None:
        self._set(task, Status(FAILED, time.monotonic(), error=error, seconds=seconds))
        lines = process.tail(process.log(task), size=1 << 16).splitlines() if log else []
        failure = {
            "name": task.folder.name if task.name in self.cells else task.name,
            "error": error,
            "log": lines[-_LOG_LINES:],
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_json(_failure(task), failure)

    def _forget_failure(self, task: Task) -> None:
        with contextlib.suppress(OSError):
            _failure(task).unlink(missing_ok=True)


def _failure(task: Task) -> pathlib.Path:
    return task.folder.parents[1] / tasks.FAILED / f"{task.folder.name}.json"
