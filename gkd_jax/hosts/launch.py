"""How the processes of a run find each other, before JAX looks for devices."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from absl import flags

from gkd_jax.errors import UserError
from gkd_jax.hosts import board
from gkd_jax.hosts.watching import BACKSTOP
from gkd_jax.reporting import messages

AUTO = "auto"
SHARED = ("train", "eval")
"""The modes of the command line that several processes may do together."""
TIMEOUT = 300.0  # seconds: a cluster does not start all processes at once
_LATER = 60  # seconds after us that JAX itself gives up: it would abort with a stack trace


class Given(NamedTuple):
    """What a command line says about the processes of its run; see `start`."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    timeout: float = TIMEOUT


def define_flags(values: flags.FlagValues) -> None:
    """Adds the flags of a command that several processes may do together."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, or auto.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "Processes that do this run together.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Number of this one, from 0.", flag_values=values)
    flags.DEFINE_float("coordinator_timeout", TIMEOUT, "Seconds until all have come.", flag_values=values)


def from_flags(values: flags.FlagValues, mode: str) -> Given | None:
    """Returns what the flags say; None in a mode that is one process's own.

    Raises:
      UserError: if they stand with such a mode.
    """
    if mode in SHARED:
        timeout: Any = values["coordinator_timeout"].value
        return Given(
            values["coordinator"].value,
            values["num_processes"].value,
            values["process_id"].value,
            timeout,
        )
    for name in ("coordinator", "num_processes", "process_id"):
        if values[name].value is not None and not (name == "num_processes" and values[name].value == 1):
            raise UserError(f"--{name} stands with --mode={' or --mode='.join(SHARED)}, not with --mode={mode}")
    return None


def launched(environment: Mapping[str, str] | None = None) -> str | None:
    """Returns what has started several processes of this run, None for nothing that tells so in the environment.

    Slurm is recognised in a step (`srun`) of several tasks, not in the batch script around it.
    """
    known = os.environ if environment is None else environment
    if known.get("SLURM_STEP_NODELIST") and _number(known.get("SLURM_STEP_NUM_TASKS")) > 1:
        return "Slurm"
    if known.get("OMPI_MCA_orte_hnp_uri") and _number(known.get("OMPI_COMM_WORLD_SIZE")) > 1:
        return "Open MPI"
    if "," in known.get("TPU_PROCESS_ADDRESSES", known.get("TPU_WORKER_HOSTNAMES", "")):
        return "Cloud TPU"
    return None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = TIMEOUT,
) -> bool:
    """Joins the processes of a run; to be called before JAX looks for devices.

    Args:
      coordinator: HOST:PORT of process 0, the same everywhere; "auto" to have JAX find out where it runs (Cloud TPU,
        Kubernetes). None for one process, unless Slurm, Open MPI or GKE has started several.
      num_processes: how many there are, where the launcher does not tell; 1 for one process, whatever has started it.
      process_id: number of this one, from 0, likewise.
      timeout: seconds until all must have come.

    Returns:
      Whether there are several.

    Raises:
      UserError: if the arguments do not fit together, or process 0 cannot listen at its port.
    """
    _check(coordinator, num_processes, process_id, timeout)
    if num_processes == 1 or (coordinator is None and launched() is None):
        return False
    given = None if coordinator in (None, AUTO) else coordinator
    with _bounded(given, num_processes, process_id, timeout):
        try:
            if not jax.distributed.is_initialized():
                with _own_signal():
                    jax.distributed.initialize(
                        given,
                        num_processes,
                        process_id,
                        initialization_timeout=int(timeout) + _LATER,
                        heartbeat_timeout_seconds=BACKSTOP,
                    )
        except (RuntimeError, ValueError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(_could_not(given, num_processes, process_id, reason)) from error
    if not board.first():
        messages.mute()
    return board.several()


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float) -> None:
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes is {num_processes}; it must be at least 1")
    if process_id is not None and (num_processes is None or not 0 <= process_id < num_processes):
        most = "--num_processes, which is not given" if num_processes is None else f"0 to {num_processes - 1}"
        raise UserError(f"--process_id is {process_id}; it must be one of {most}")
    if timeout <= 0:
        raise UserError(f"--coordinator_timeout is {timeout:g}; it must be above 0 seconds")
    if num_processes is not None and num_processes > 1:
        if coordinator is None and launched() is None:
            raise UserError(f"--num_processes={num_processes} needs --coordinator=HOST:PORT, the address of process 0")
        if coordinator not in (None, AUTO) and process_id is None and launched() is None:
            raise UserError(f"--num_processes={num_processes} needs --process_id, 0 to {num_processes - 1}")
    if coordinator is None or coordinator == AUTO:
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not 0 < _number(port) < 1 << 16:
        raise UserError(f"--coordinator is {coordinator!r}; it must be HOST:PORT or {AUTO!r}")
    if num_processes is None and launched() is None:
        raise UserError("--coordinator=HOST:PORT needs --num_processes and --process_id")


@contextlib.contextmanager
def _own_signal() -> Iterator[None]:
    """Leaves SIGTERM as it was: JAX would take it from us, and only note that it came."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def _bounded(given: str | None, count: int | None, me: int | None, timeout: float) -> Iterator[None]:
    """Ends the process with a sentence where joining takes too long: JAX's own calls cannot be interrupted."""

    def give_up() -> None:
        sys.stderr.write(f"gkd_jax: {_could_not(given, count, me, f'it took longer than {timeout:g} s')}\n")
        sys.stderr.flush()
        os._exit(2)

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _could_not(given: str | None, count: int | None, me: int | None, reason: str) -> str:
    if given is None:
        return f"the processes of this run could not be joined as {launched() or 'JAX'} tells them ({reason})"
    if me == 0:
        return f"process 0 could not join the other {(count or 2) - 1} at {given} ({reason})"
    reached = "answers, but not all processes have come to it" if _answers(given) else "does not answer"
    who = "this process" if me is None else f"process {me}"
    return f"{who} could not join the others: the coordinator {given} {reached} ({reason})"


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False
