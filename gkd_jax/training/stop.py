"""Being asked to stop: Ctrl-C and SIGTERM end a run at its next step, after it is saved."""

import signal
import types
from typing import Any


class Interrupted(Exception):
    """A run was asked to stop, and is saved.

    Attributes:
      signal: the number of the signal.
      step: the number of steps that are saved.
    """

    def __init__(self, number: int, name: str, step: int):
        super().__init__(f"{name}: stopped by {signal.Signals(number).name} after step {step}, which is saved")
        self.signal = number
        self.step = step


class Stop:
    """While entered, remembers the first SIGINT or SIGTERM instead of dying of it; a second one acts as ever."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
