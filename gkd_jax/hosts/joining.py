"""The command line's part in it: several processes begin together, and none of them outlives a failure of another."""

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Iterator

from gkd_jax.errors import UserError
from gkd_jax.hosts import board, watching
from gkd_jax.hosts.launch import Given, start
from gkd_jax.hosts.watching import Watch

_LISTENING = 3.0  # seconds in which a process that failed will have told why
# What JAX says where the other end of a connection is gone
_LOST = (
    "gloo",
    "connection reset",
    "connection closed",
    "broken pipe",
    "socket closed",
    "coordination service",
    "coordinationservice",
    "heartbeat",
    "nccl",
)


@contextlib.contextmanager
def joined(given: Given | None) -> Iterator[None]:
    """Joins the processes of a run while entered; with one process it does nothing.

    An error is told to the others, who end with the same message and status. Where what failed here is only the
    connection to a process that is gone, or where the error is none of the user's, the process ends here.

    Args:
      given: what the command line says about them; None where it is about something that one process does.

    Raises:
      UserError: if they could not be joined.
    """
    if given is None or not start(*given):
        yield
        return
    look = watching.watch()
    try:
        yield
        board.exchange("")  # whoever ended before would leave the others without the store
    except BaseException as error:
        _tell(look, error)
        raise
    watching.forget()
    look.end()


def leave(status: int) -> int:
    """Returns the status of a command; of several processes, where it is not 0, ends this one with it at once."""
    look = watching.forget()
    if look is not None and status:
        look.leave(status)
    return status


def _tell(look: Watch, error: BaseException) -> None:
    """Tells the others; returns only where this process can still say itself what happened."""
    if hasattr(error, "signal"):  # `training.stop.Interrupted`, on which all processes have agreed
        look.first_to_end()
        return
    if isinstance(error, Exception):
        end_if_lost(error)
    text = str(error)
    _claim(look)
    if isinstance(error, UserError | OSError):
        look.tell_end(2, text)
        return
    if isinstance(error, KeyboardInterrupt):
        look.tell_end(128 + signal.SIGINT, f"process {board.index()} of {board.count()} was interrupted")
        return
    traceback.print_exc()
    reason = (text.strip().splitlines() or [""])[0][:200]
    _say_and_leave(look, 1, f"process {board.index()} of {board.count()} failed: {type(error).__name__}: {reason}")


def end_if_lost(error: Exception) -> None:
    """Ends this process with a sentence if what failed is the connection to another one of the run that is gone."""
    look = watching.running()
    text = str(error)
    if look is None or not any(word in text.lower() for word in _LOST):
        return
    time.sleep(_LISTENING)  # the watch ends this process if another one tells why
    _claim(look)
    gone = ", ".join(map(str, look.silent(0.8 * _LISTENING))) or "another one"
    where = text.strip().splitlines()[0][:200]
    message = f"process {gone} of {board.count()} is gone, the run ends; start it again to go on ({where})"
    _say_and_leave(look, 1, message)


def _claim(look: Watch) -> None:
    """Waits for the end if the watch has begun to say why this process ends."""
    if not look.first_to_end():
        time.sleep(60)


def _say_and_leave(look: Watch, status: int, message: str) -> None:
    sys.stderr.write(f"\ngkd_jax: {message}\n")
    with contextlib.suppress(Exception):
        look.tell_end(status, message)
    look.leave(status)
