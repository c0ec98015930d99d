"""Two or more loops, each in a process of its own, measured in turn."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

_SECONDS = 4.0  # of a window, unless it is one step
_PAUSE = 0.5  # after a window: threads that wait for work spin for a while


class Worker:
    """A process that speaks `experiments.bench.ours`'s lines of JSON."""

    def __init__(self, module: str, setup: Mapping[str, Any], images_per_step: int):
        """Starts it and waits until it is warm."""
        # Several processes share a GPU: none may take most of its memory before it needs it
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
        command = [sys.executable, "-m", module]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment)
        self._images = images_per_step
        self.ready = self._ask(setup)
        self.rates: list[float] = []
        self._steps = 1

    @property
    def unsupported(self) -> str | None:
        """Why there is nothing to measure; None if there is."""
        return self.ready.get("unsupported")

    def calibrate(self, seconds: float) -> None:
        """Chooses the steps of a window."""
        found = self._ask({"steps": 2})
        self._steps = max(1, round(seconds * found["steps"] / found["seconds"]))

    def measure(self) -> None:
        """Adds the images a second of a window to `rates`."""
        found = self._ask({"steps": self._steps})
        self.rates.append(found["steps"] * self._images / found["seconds"])

    def finish(self) -> dict[str, Any]:
        """Returns what was counted, and ends the process."""
        found = self._ask({"finish": True})
        self.stop()
        return found

    def stop(self) -> None:
        """Ends the process."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the benchmarked process ended with status {self._process.wait()}; it said why above")
        found: dict[str, Any] = json.loads(answer)
        return found


def alternate(workers: Sequence[Worker], repeats: int, seconds: float = _SECONDS) -> None:
    """Measures `repeats` windows of each worker in turn, A B C A B C ..., and only one at a time."""
    for worker in workers:
        worker.calibrate(seconds)
        time.sleep(_PAUSE)
    for _ in range(repeats):
        for worker in workers:
            worker.measure()
            time.sleep(_PAUSE)
