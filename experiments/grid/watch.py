"""How a grid is going: a table that updates itself on a terminal, one line a finished task elsewhere."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from experiments.grid import pace
from experiments.grid.run import DONE, FAILED, RUNNING, WAITING, Run
from gkd_jax.reporting.progress import Stream, clock_time

_REFRESH = 2.0  # seconds; a grid runs for hours


class Lines:
    """Writes a line whenever a task is done or has failed."""

    def __init__(self, stream: Stream):
        self._stream = stream
        self._told: set[str] | None = None

    def __call__(self, run: Run) -> None:
        """Looks what has ended since the last call."""
        ended = {*run.those(DONE), *run.those(FAILED)}
        if self._told is None:  # what was done before is one line
            self._told = {*run.those(DONE)}
            done = len(run.those(DONE, run.cells))
            self._write(f"{len(run.cells)} cells, {done} of them done already")
        for name in [name for name in run.tasks if name in ended - self._told]:
            self._write(f"{ending(run, name)}  ({outlook(run)})")
        self._told |= ended

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


class Table:
    """Shows what runs, how far it is, and what has ended, in a table of `rich` at the foot of the terminal."""

    def __init__(self, live: Any):
        self._live = live
        self._lines = Lines(_Console(live.console))
        self._next = 0.0

    def __call__(self, run: Run) -> None:
        """Draws the table, if it is time to."""
        self._lines(run)
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + _REFRESH
        self._live.update(table(run), refresh=True)


class _Console:
    """Writes above the table."""

    def __init__(self, console: Any):
        self._console = console

    def write(self, text: str, /) -> int:
        self._console.print(text, end="", markup=False, highlight=False)
        return len(text)

    def flush(self) -> None:
        """Has written already."""

    def isatty(self) -> bool:
        return False


def table(run: Run) -> Any:
    """Returns the table of what runs and what waits for another process, and the outlook below it."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable()
    for column in ("running", "epoch", "val %", "time"):
        shown.add_column(column, justify="left" if column == "running" else "right", no_wrap=column != "running")
    now = time.monotonic()
    for name in run.those(RUNNING):
        reading = pace.read(run.tasks[name])
        accuracy = "-" if reading.val_accuracy is None else f"{100 * reading.val_accuracy:.2f}"
        spent = clock_time(now - run.status[name].since)
        shown.add_row(pace.title(run.tasks[name]), f"{reading.epoch}/{reading.epochs}", accuracy, spent)
    for name in run.those(WAITING):
        if run.status[name].elsewhere:
            reading = pace.read(run.tasks[name])
            shown.add_row(
                f"{pace.title(run.tasks[name])} (another process)", f"{reading.epoch}/{reading.epochs}", "", ""
            )
    return Group(*([shown] if shown.rows else []), Text(outlook(run)))


def outlook(run: Run) -> str:
    """Returns how many cells are how far, and how long the rest will take."""
    counts = {state: len(run.those(state, run.cells)) for state in (DONE, RUNNING, FAILED, WAITING)}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == DONE)
    if not counts[RUNNING] and not counts[WAITING]:
        return f"{told} of {len(run.cells)} cells"
    return f"{told} of {len(run.cells)} cells, ETA {clock_time(pace.remaining(run))}"


def ending(run: Run, name: str) -> str:
    """Returns how a task ended, in one line."""
    task, status = run.tasks[name], run.status[name]
    if status.state == FAILED:
        return f"{pace.title(task)}: failed: {' '.join(str(status.error).split())}"
    accuracy, deviation = pace.accuracy(task)
    told = f"{pace.title(task)}: done"
    if status.seconds is not None:
        told += f" in {clock_time(status.seconds)}"
    if accuracy is not None:
        told += f", test {100 * accuracy:.2f} %" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
    return told


@contextlib.contextmanager
def watching(stream: Stream) -> Iterator[Any]:
    """Gives what is called with the run, twice a second: a `Table` on a terminal, if there is `rich`, else `Lines`."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        stream_is_live = False
    else:
        stream_is_live = stream.isatty()
    if not stream_is_live:
        yield Lines(stream)
        return
    console: Any = Console(file=stream)  # type: ignore[arg-type]
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield Table(live)
