"""One task of a grid in a process of its own: what an engine starts.

    python -m experiments.grid.worker FOLDER/task.json [--leash] [--cores 0,1]

  --leash   stop, as by SIGTERM, when the standard input ends: when the process that started this one is gone
  --cores   the CPU cores that the task may use

It runs the grid file for what that registers, then the task's configuration as `python -m gkd_jax.main` would, in
FOLDER, and prints the same. Exit status: 0 finished, 2 for a mistake, whose sentence is the last line on the standard
error stream, 75 if another process is at work on the run, 128 + n after signal n, when everything is saved.
"""

import argparse
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Sequence

from ml_collections import ConfigDict

from experiments.grid import cells, process, tasks
from gkd_jax import machine
from gkd_jax.command import Command
from gkd_jax.errors import UserError
from gkd_jax.main import execute
from gkd_jax.training.stop import Interrupted
from gkd_jax.training.workdir import AtWork


def main(argv: Sequence[str]) -> int:
    """Runs a task; the arguments begin behind the program's name. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=pathlib.Path)
    parser.add_argument("--leash", action="store_true")
    parser.add_argument("--cores")
    given = parser.parse_args(argv)
    machine.keep_memory()  # before the first thread
    if given.leash:
        threading.Thread(target=_leash, daemon=True).start()
    if given.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, given.cores.split(",")))
    try:
        task = tasks.read(given.task)
        cells.load(task.grid)
        text = execute(Command(ConfigDict(task.config), "train", task.folder, ""))
    except AtWork as error:
        sys.stderr.write(f"gkd_jax: {error}\n")
        return process.AT_WORK
    except UserError as error:
        sys.stderr.write(f"gkd_jax: {error}\n")
        return 2
    except Interrupted as error:
        sys.stderr.write(f"gkd_jax: {error}\n")
        return 128 + error.signal
    except OSError as error:
        sys.stderr.write(f"gkd_jax: {error.filename or 'a file'}: {error.strerror or error}\n")
        return 2
    sys.stdout.write(f"{text}\n")
    return 0


def _leash() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
