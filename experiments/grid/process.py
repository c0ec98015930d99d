"""A task's process: its command, the log that it leaves, and why it ended."""

import pathlib
import re
import signal
import sys
from collections.abc import Sequence

from experiments.grid import tasks
from experiments.grid.tasks import Task

AT_WORK = 75
"""Exit code of a worker that found another process at work on its run: EX_TEMPFAIL of sysexits.h."""
_LAST = 1 << 16  # bytes at a log's end that are looked at for the reason


def command(task: Task) -> list[str]:
    """Returns the command that runs a task; both its streams belong into `log(task)`, appended."""
    return [sys.executable, "-u", "-m", "experiments.grid.worker", str(task.folder / tasks.TASK)]


def log(task: Task) -> pathlib.Path:
    """Returns where what the task's process prints is kept."""
    return task.folder / tasks.LOG


def error(returncode: int, printed: str) -> str | None:
    """Returns why a worker ended, in one sentence; None if its task is finished.

    Args:
      returncode: of the process, negative after a signal, as `subprocess` has it.
      printed: at least the last line that it printed.
    """
    if returncode == 0:
        return None
    if returncode < 0:
        return _crashed(-returncode)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", printed) if line.strip()]
    said = re.sub(r"^gkd_jax: ", "", lines[-1]) if lines else "it printed nothing"
    if returncode > 128:  # as the worker ends after a signal that it caught, and a shell after any
        stopped = [line for line in lines if line.startswith("gkd_jax: ") and "stopped by" in line]
        return re.sub(r"^gkd_jax: ", "", stopped[-1]) if stopped else _crashed(returncode - 128)
    if returncode in (2, AT_WORK):
        return said
    return f"its process ended with exit code {returncode}: {_exception(lines) or said}"


def _exception(lines: Sequence[str]) -> str | None:
    """Returns the exception at the end of the last traceback, behind which JAX may write notes; None without one."""
    begin = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not begin:
        return None
    return next((line for line in lines[begin[-1] + 1 :] if not line.startswith(" ")), None)


def _crashed(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    why = {"SIGKILL": "; the system kills so where memory runs out", "SIGSEGV": ", a crash in compiled code"}
    return f"its process was killed by {name}{why.get(name, '')}"


def tail(file: pathlib.Path, since: int = 0, size: int = _LAST) -> str:
    """Returns the last `size` bytes of a log behind the byte `since`, as text; "" if there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(since, stream.tell() - size))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
