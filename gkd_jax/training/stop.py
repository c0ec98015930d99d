"""Being asked to stop: Ctrl-C and SIGTERM end a run at its next step, after it is saved."""

import signal
import types
from typing import Any

from gkd_jax import hosts


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

    def at_end(self) -> int | None:
        """Returns the number of the signal that came, where what was to be stopped has come to its end."""
        return self.requested

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: a library's, not Python's
        self._before = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()


class Together:
    """What several processes were asked: `requested` on one of them stops all, at the same point of the run.

    Each reading of `requested` is such a point, and all processes read it at the same ones.
    """

    def __init__(self, here: Stop):
        """Takes what this process is asked."""
        self._here = here
        hosts.watch().listen(lambda: here.requested)

    @property
    def requested(self) -> int | None:
        """The number of the signal, where the processes have agreed to stop here."""
        return hosts.watch().passed()

    def at_end(self) -> int | None:
        """See `Stop.at_end`; waits for the others."""
        number = self.requested or self._here.requested
        told = [int(found) for found in hosts.exchange("" if number is None else str(int(number))) if found]
        return told[0] if told else None


def together(stop: Stop | None) -> "Stop | Together | None":
    """Returns what all processes of a run are asked; with one, what it is asked."""
    return stop if stop is None or not hosts.several() else Together(stop)
