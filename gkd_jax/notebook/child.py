"""A command in a process that ends with the notebook: `python -m gkd_jax.notebook.child PID ARGUMENT ...`.

A notebook's process can die, or be restarted, without a word to those it started. A run that went on unseen would hold
the TPU and its workdir; this one then stops as by SIGTERM, which saves first.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from gkd_jax import machine, main


def end_with(parent: int, interval: float = 1.0) -> threading.Thread:
    """Sends this process SIGTERM as soon as its parent is not the process `parent` any more.

    Args:
      parent: the number of the process that started this one.
      interval: seconds between two looks.

    Returns:
      The thread that looks, and ends when it has sent the signal.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def run(argv: Sequence[str]) -> int:
    """Does what `python -m gkd_jax.main` does with the arguments behind the parent's number; returns its status."""
    machine.keep_memory()  # before the first thread
    end_with(int(argv[1]))
    return main.main(["gkd_jax", *argv[2:]])


if __name__ == "__main__":
    sys.exit(run(sys.argv))
