"""Commands of gkd_jax as processes of their own, and a run watched while it trains."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

from gkd_jax.errors import UserError
from gkd_jax.notebook.display import Place, drawn
from gkd_jax.reporting import plots
from gkd_jax.reporting.records import read_records
from gkd_jax.training import finished, summary
from gkd_jax.training.loop import METRICS

_LINES = 8  # of what a run says that are shown
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def command(*arguments: Any) -> None:
    """Does what `python -m gkd_jax.main` does with these arguments, and prints what it prints.

    Raises:
      UserError: with the command's own message, if it fails.
    """
    with _Process(arguments) as process:
        status = process.wait()
        if status:
            raise process.failed(status)
        sys.stdout.write(process.output())


def train(config: str | os.PathLike[str], workdir: str | os.PathLike[str], *flags: str, every: float = 2.0) -> Any:
    """Trains, and keeps pictures of the accuracies and losses up to date meanwhile.

    Called again in the same `workdir`, it goes on where it was: from the last epoch if the process was killed or the
    machine taken away, from the last step if it was interrupted, and of a finished run it shows the result.

    Args:
      config: the configuration's file, or FILE.py:ARGUMENT.
      workdir: where the run is kept.
      *flags: more arguments of the command line, such as "--config.epochs=30".
      every: seconds between two looks at the run.

    Returns:
      What `summary.json` holds.

    Raises:
      UserError: with the run's own message, if it fails.
      KeyboardInterrupt: if it is interrupted; the run is saved first, unless it is interrupted once more.
    """
    folder = pathlib.Path(workdir)
    arguments = ["--config", os.fspath(config), "--workdir", os.fspath(workdir), *flags]
    with _Interruption() as interruption, _Process(arguments) as process:
        pictures, said = _Pictures(folder), Place()
        while True:
            status = process.wait(every)
            waiting = "starting: each network's first epoch begins with compilation" if status is None else "finished"
            said.show(process.said() or waiting)
            pictures.update()
            if status is not None:
                break
            if interruption.came:
                raise KeyboardInterrupt
        if status in _STOPPED:
            raise KeyboardInterrupt(f"saved in {folder}; run this cell again to go on")
        if status:
            raise process.failed(status)
        sys.stdout.write(process.output())
    return finished.read(folder / summary.SUMMARY)


class _Interruption:
    """Whether the cell was interrupted while this was entered: what draws may swallow the exception that says so."""

    came = False

    def __enter__(self) -> "_Interruption":
        self._before = None
        if threading.current_thread() is threading.main_thread():  # signals come to no other
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, *_: object) -> None:
        self.came = True
        raise KeyboardInterrupt


class _Process:
    """One command; on leaving, a process that still runs is asked to save and end."""

    def __init__(self, arguments: Any):
        self._arguments = [str(argument) for argument in arguments]
        self._files = contextlib.ExitStack()

    def __enter__(self) -> "_Process":
        self._out = self._files.enter_context(tempfile.TemporaryFile())
        self._err = self._files.enter_context(tempfile.TemporaryFile())
        # A notebook's backend of matplotlib is of no use elsewhere
        environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gkd_jax.notebook.child", str(os.getpid()), *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            env=environment,
            # Interrupting a cell interrupts the notebook's whole group, and a run's second signal ends it unsaved
            start_new_session=True,
        )
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            if self._process.poll() is None:
                if kind is KeyboardInterrupt:
                    sys.stderr.write("interrupted: waiting until the run is saved\n")
                self._process.send_signal(signal.SIGINT)
                self._process.wait()
        finally:
            self._process.kill()  # interrupted once more
            self._process.wait()
            self._files.close()

    def wait(self, seconds: float | None = None) -> int | None:
        """Returns the exit status, None if there is none after so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def output(self) -> str:
        """Returns what was written to standard output."""
        return _content(self._out)

    def said(self) -> str:
        """Returns the last lines of what was written to standard error."""
        lines = _content(self._err).strip().splitlines()[-_LINES:]
        return re.sub(" {3,}", "  ", "\n".join(lines))  # columns are for terminals, and a cell is narrower

    def failed(self, status: int) -> UserError:
        """Returns the error that says why the command failed."""
        said = _content(self._err).strip().splitlines()
        if status == 2:  # a mistake, in one sentence
            return UserError(said[-1].removeprefix("gkd_jax: ") if said else "the command failed without a word")
        if status < 0:
            name = signal.Signals(-status).name
            return UserError(f"the run was ended by {name}, perhaps for want of memory; run this cell again to go on")
        return UserError("\n".join([f"the command failed with status {status}:", *said[-_LINES:]]))


def _content(file: Any) -> str:
    # Not by `seek`: the process writes at the place that both share
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


class _Pictures:
    """The accuracies of a run's networks and the losses of its student, drawn again after each epoch."""

    def __init__(self, workdir: pathlib.Path):
        self._workdir = workdir
        self._places = Place(), Place()
        self._drawn: list[int] = []

    def update(self) -> None:
        """Draws what is new."""
        student = records(self._workdir)
        others = {"teacher": records(self._workdir / "teacher"), "student alone": records(self._workdir / "alone")}
        count = [len(student), *map(len, others.values())]
        if count == self._drawn or not any(count):
            return
        self._drawn = count
        known = {name: found for name, found in others.items() if found}
        self._places[0].show(drawn(lambda file: plots.plot_accuracies(file, student, known)))
        if student:
            self._places[1].show(drawn(lambda file: plots.plot_losses(file, student)))


def records(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of the epochs that a run has finished; none where there is no run yet."""
    file = workdir / METRICS
    return read_records(file) if file.exists() else []
