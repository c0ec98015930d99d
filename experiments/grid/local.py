"""The engine of one machine: some processes at once."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.grid import process
from experiments.grid.tasks import Outcome, Task

_POLL = 0.1  # seconds
_MEMORY = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")  # XLA refuses to be given both


class _Running(NamedTuple):
    task: Task
    process: "subprocess.Popen[bytes]"
    slot: int
    began: float
    log_size: int  # when it began


class LocalEngine:
    """Runs tasks as processes of this machine; see `experiments.grid.engine.Engine`.

    Several at once get equal shares of the CPU cores, if there are as many as processes, and of an accelerator's memory
    (unless XLA_PYTHON_CLIENT_MEM_FRACTION or XLA_CLIENT_MEM_FRACTION is set). They do not hear this process's Ctrl-C,
    are told by `close` instead, and stop by themselves if this process is gone.
    """

    def __init__(self, workers: int = 1, command: Callable[[Task], Sequence[str]] = process.command):
        """Starts nothing yet.

        Args:
          workers: how many processes may run at once.
          command: of a task; the engine's own options are added to it.
        """
        self._workers, self._command = workers, command
        self._running: dict[str, _Running] = {}
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._shares = [cores[slot::workers] for slot in range(workers)] if 1 < workers <= len(cores) else []

    def slots(self) -> int:
        """Returns how many tasks run at once."""
        return self._workers

    def room(self) -> bool:
        """Returns whether another task may be started now."""
        return len(self._running) < self._workers

    def start(self, task: Task) -> None:
        """Starts a task, whose folder holds its task.json."""
        slot = min({*range(self._workers)} - {running.slot for running in self._running.values()})
        options = ["--leash"]
        if self._shares:
            options += ["--cores", ",".join(map(str, self._shares[slot]))]
        environment = dict(os.environ)
        if self._workers > 1 and not any(name in environment for name in _MEMORY):
            environment[_MEMORY[0]] = f"{0.9 / self._workers:.3f}"
        with process.log(task).open("ab") as log:
            size = log.tell()
            started = subprocess.Popen(
                [*self._command(task), *options],
                stdin=subprocess.PIPE,  # the leash
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # out of reach of the terminal's Ctrl-C: two signals would end it unsaved
            )
        self._running[task.name] = _Running(task, started, slot, time.monotonic(), size)

    def wait(self, timeout: float) -> list[Outcome]:
        """Returns what ended since the last call, after `timeout` seconds at the latest, earlier if anything ends."""
        deadline = time.monotonic() + timeout
        while True:
            ended = [running for running in self._running.values() if running.process.poll() is not None]
            if ended or time.monotonic() >= deadline:
                return [self._outcome(running) for running in ended]
            time.sleep(_POLL)

    def _outcome(self, running: _Running) -> Outcome:
        name = running.task.name
        del self._running[name]
        self._let_go(running)
        printed = process.tail(process.log(running.task), running.log_size)
        code = running.process.returncode
        elsewhere = code == process.AT_WORK
        return Outcome(name, process.error(code, printed), time.monotonic() - running.began, elsewhere)

    def close(self) -> None:
        """Ends what runs, SIGTERM first, so that the runs save themselves; returns when nothing runs any more."""
        for running in self._running.values():
            running.process.terminate()
        try:
            for running in self._running.values():
                running.process.wait()
        finally:  # a second Ctrl-C does not wait
            for running in self._running.values():
                running.process.kill()
                running.process.wait()
                self._let_go(running)
            self._running = {}

    def _let_go(self, running: _Running) -> None:
        assert running.process.stdin is not None
        running.process.stdin.close()
