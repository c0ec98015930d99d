"""How far a run is, how well it does, and when it will be done, on the terminal or in a log."""

import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

_REFRESH = 0.5  # seconds; faster than this nobody reads


@runtime_checkable
class Stream(Protocol):
    """What `Progress` writes to: a terminal, a log, a notebook's cell, a buffer."""

    def write(self, text: str, /) -> int:
        """Takes `text`."""

    def flush(self) -> None:
        """Passes on what was taken."""

    def isatty(self) -> bool:
        """Whether a carriage return moves back to the start of the line."""


class Progress:
    """One line an epoch, and on a terminal below them one that updates itself.

    Steps are counted as the host dispatches them; nothing waits for the device. The remaining time rests on the epochs
    after the first, and until there are two on the steps after the first, so that compilation does not count.
    """

    def __init__(
        self,
        total_epochs: int,
        steps_per_epoch: int,
        name: str,
        stream: Stream | None = None,
        *,
        done_epochs: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock.

        Args:
          total_epochs: of the whole run.
          steps_per_epoch: of each.
          name: of the run, first on every line.
          stream: where to write; standard error if None.
          done_epochs: that a resumed run has behind it.
          clock: seconds from some moment on.
        """
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._clock = clock
        self._name = name
        self._total_epochs, self._steps_per_epoch = total_epochs, steps_per_epoch
        self._epoch = done_epochs
        self._steps = done_epochs * steps_per_epoch
        self._start = clock()
        self._first_call: tuple[float, int] | None = None  # when its first call returned, steps dispatched by then
        self._first_epoch: tuple[float, int] | None = None  # the same of its first epoch, with the device at rest
        self._remaining: tuple[float, float] | None = None  # at which time, how many seconds remained
        self._next_refresh = 0.0
        self._shown = 0  # characters of the live line on the screen
        self._record: Mapping[str, Any] = {}

    def step(self, count: int = 1) -> None:
        """Counts `count` steps that were just dispatched; about a microsecond, and twice a second a line is written."""
        self._steps += count
        if self._first_call is None:  # compilation is over when the first call returns, though its result is not there
            self._first_call = self._clock(), self._steps
        elif self._live and (now := self._clock()) >= self._next_refresh:
            self._next_refresh = now + _REFRESH
            self._draw(now)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Writes the line of a finished epoch; to be called when its results have reached the host.

        Args:
          record: as for `JsonlWriter`; readings that are missing or None are shown as "-".
        """
        now = self._clock()
        self._record = record
        self._epoch = int(record["epoch"])
        self._steps = self._epoch * self._steps_per_epoch
        remaining = self._estimate(now, self._first_epoch or self._first_call)
        self._first_epoch = self._first_epoch or (now, self._steps)
        self._remaining = None if remaining is None else (now, remaining)
        self._clear()
        if self._epoch >= self._total_epochs:
            end = f"in  {clock_time(now - self._start):>8}"
        else:
            end = f"ETA {clock_time(remaining):>8}"
        width = len(str(self._total_epochs))
        parts = [
            f"{self._name}  epoch {self._epoch:{width}}/{self._total_epochs}",
            *self._readings(),
            end,
            self._stages(),
        ]
        self._write("  ".join(parts).rstrip() + "\n")

    def close(self) -> None:
        """Takes the live line off the screen."""
        self._clear()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _draw(self, now: float) -> None:
        if self._remaining is not None:
            # Counted down from the last epoch's end: the steps dispatched since then may be far ahead of the device.
            remaining: float | None = max(0.0, self._remaining[1] - (now - self._remaining[0]))
        else:
            remaining = self._estimate(now, self._first_call)
        total = self._total_epochs * self._steps_per_epoch
        parts = [
            self._name,
            f"epoch {min(self._epoch + 1, self._total_epochs)}/{self._total_epochs}",
            f"{100 * min(self._steps, total) // max(total, 1)}%",
            *(self._readings() if self._record else []),
            f"ETA {clock_time(remaining)}",
        ]
        line = "  ".join(parts)[: _columns(self._stream) - 1]  # a line that wraps cannot be written over
        self._write("\r" + line.ljust(self._shown))  # blanks instead of an escape code, which dumb terminals show
        self._shown = len(line)

    def _clear(self) -> None:
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _estimate(self, now: float, since: tuple[float, int] | None) -> float | None:
        if since is None or self._steps <= since[1]:
            return None
        seconds_a_step = (now - since[0]) / (self._steps - since[1])
        return seconds_a_step * max(0, self._total_epochs * self._steps_per_epoch - self._steps)

    def _readings(self) -> list[str]:
        get = self._record.get
        return [
            f"loss {_number(get('loss'), '.4f', 8)}",
            f"train {_number(get('train_accuracy'), '.2%', 7)}",
            f"val {_number(get('val_accuracy'), '.2%', 7)}{_spread(self._record)}",
            f"{_number(get('images_per_second'), ',.0f', 8)} img/s",
        ]

    def _stages(self) -> str:
        terms: Iterable[Mapping[str, Any]] = self._record.get("terms", {}).values()
        return "/".join(dict.fromkeys(term["stage"] for term in terms if term.get("stage")))


def _number(value: Any, form: str, width: int) -> str:
    return ("-" if value is None else format(float(value), form)).rjust(width)


def _spread(record: Mapping[str, Any]) -> str:
    deviation = record.get("std", {}).get("val_accuracy")
    return "" if deviation is None else f" ± {deviation:.2%}"


def clock_time(seconds: float | None) -> str:
    """Returns a duration as "0:01:23", "-" if it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _columns(stream: Stream) -> int:
    fileno = getattr(stream, "fileno", None)
    with contextlib.suppress(OSError):  # no terminal behind it, or none that knows its size
        if fileno is not None and (columns := os.get_terminal_size(fileno()).columns):
            return columns
    return shutil.get_terminal_size().columns
