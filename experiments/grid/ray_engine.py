"""Tasks on a Ray cluster, one Ray task each: https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html.

What all nodes have to see at the same paths: the grid's folder (on a shared file system), the working directory of the
command, the repository, and the Python with gkd_jax and Ray in it. A node that lacks one says so in its task's error.
"""

import contextlib
import importlib
import logging
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.grid import process, tasks
from experiments.grid.tasks import Outcome, Task
from gkd_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
_DETECTED = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}  # Ray's option: its name in what a node has
# What `serve` needs of this package: it is sent to nodes that may not find it
_TASK, _LOG = tasks.TASK, tasks.LOG
_SPARE = 2  # tasks that wait in Ray's queue, so that no node idles until the next call of `start`
_POLL = 0.1  # seconds between looks at a process
# Nothing is sent home, and nothing that Ray's processes say is printed into the grid's table
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "^"}
_REACH = 10.0  # seconds that a cluster's address has to answer


class RayEngine:
    """Runs each task's process inside a Ray task: Ray chooses the node, and starts a task whose node died elsewhere.

    A run that starts again goes on from its last checkpoint, as after any kill. What a task reserves, `resources`, is
    what Ray counts with; it does not bind the process to so many cores. A task that reserves no GPU sees none, and one
    that reserves a part of one gets that part of its memory.
    """

    def __init__(
        self,
        resources: Mapping[str, float],
        address: str | None = None,
        retries: int = 3,
        command: Callable[[Task], Sequence[str]] = process.command,
        patience: float = 600.0,
    ):
        """Connects to a cluster, or starts one on this machine.

        Args:
          resources: what each task reserves: `num_cpus` (1 if not given), `num_gpus`, `memory` in bytes, and names that
            the cluster's nodes were given.
          address: of a running cluster, as `ray.init` takes it, or "auto" for the one on this machine; None for that
            in the environment's RAY_ADDRESS, or else a cluster of this machine alone, which ends with `close`.
          retries: how often a task is started again after its node, or Ray's process on it, died.
          command: of a task, run in this process's working directory; `--leash` is added to it.
          patience: seconds that `close` gives the runs to save themselves.

        Raises:
          UserError: if Ray is not installed, if there is no cluster at the address, or if no node of it has the
            resources of a task.
        """
        for name, amount in resources.items():
            if amount < 0 or (amount > 1 and amount != int(amount)):
                raise UserError(f"{name}={amount:g}: Ray reserves whole numbers, and parts of one")
        self._command, self._patience = command, patience
        self._running: dict[Any, _Started] = {}
        self._ray, self._connected = _connect(address)
        options = {name: amount for name, amount in resources.items() if name in _DETECTED}
        named = {name: amount for name, amount in resources.items() if name not in _DETECTED}
        self._gpus = options.get("num_gpus", 0.0)
        self._wanted = {"CPU": options.get("num_cpus", 1), **{_DETECTED[name]: options[name] for name in options}}
        self._wanted.update(named)
        if not self.slots():
            found = "; ".join(_had(node, self._wanted) for node in self._nodes())
            self.close()
            raise UserError(f"no node of the Ray cluster has {_listed(self._wanted)} for a task; they have: {found}")
        # By value: a node without the repository then says so in our words
        self._ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        self._serve = self._ray.remote(max_retries=retries, resources=named, **options)(serve)

    def slots(self) -> int:
        """Returns how many tasks the cluster's nodes hold at once."""
        return slots(self._nodes(), self._wanted)

    def room(self) -> bool:
        """Returns whether another task may be started now: Ray queues, so a few more than the nodes hold."""
        return len(self._running) < self.slots() + _SPARE

    def start(self, task: Task) -> None:
        """Hands a task to Ray, which starts it as soon as a node has its resources."""
        task = task._replace(folder=task.folder.absolute())
        log = process.log(task)
        size = log.stat().st_size if log.exists() else 0
        given = [*self._command(task), "--leash"]
        ref = self._serve.options(name=task.name).remote(given, os.getcwd(), str(ROOT), str(task.folder), self._gpus)
        self._running[ref] = _Started(task, size, time.monotonic())

    def wait(self, timeout: float) -> list[Outcome]:
        """Returns what ended since the last call, after `timeout` seconds at the latest, earlier if anything ends."""
        refs = list(self._running)
        if not refs or not self._ray.wait(refs, timeout=timeout)[0]:
            return []
        ended, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        return [self._outcome(ref) for ref in ended]

    def close(self) -> None:
        """Ends what runs, SIGTERM first, so that the runs save themselves; returns when nothing runs any more."""
        refs = left = list(self._running)
        try:
            for ref in refs:
                self._ray.cancel(ref)
            if refs:
                _, left = self._ray.wait(refs, num_returns=len(refs), timeout=self._patience)
        finally:  # a second Ctrl-C does not wait
            for ref in left:  # of one that has just ended it would end this process too: a check of Ray's own fails
                self._ray.cancel(ref, force=True)
            self._running.clear()
            if self._connected:
                self._connected = False
                self._ray.shutdown()

    def _outcome(self, ref: Any) -> Outcome:
        task, size, since = self._running.pop(ref)
        try:
            trouble, code, seconds = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            why = getattr(error, "cause", None) or error  # of an exception in `serve` the text begins with its name
            return Outcome(task.name, f"Ray gave it up: {_first_line(why)}", time.monotonic() - since)
        printed = process.tail(process.log(task), size)
        elsewhere = trouble is None and code == process.AT_WORK
        return Outcome(task.name, trouble or process.error(code, printed), seconds, elsewhere)

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]


class _Started(NamedTuple):
    """A task in Ray's hands, the size of its log before, and when that was."""

    task: Task
    log_size: int
    since: float


def slots(nodes: Iterable[Mapping[str, float]], wanted: Mapping[str, float]) -> int:
    """Returns how many tasks that reserve what is `wanted` the nodes hold at once; no task is split over nodes."""
    asked = {name: amount for name, amount in wanted.items() if amount > 0}
    return sum(int(min((node.get(name, 0) / asked[name] for name in asked), default=1)) for node in nodes)


def serve(command: list[str], where: str, root: str, folder: str, gpus: float) -> tuple[str | None, int, float]:
    """Runs a task's process and waits for it; called by Ray, on a node, in the main thread of a process of Ray's.

    `ray.cancel` interrupts this process as Ctrl-C would. The task's process is then asked by SIGTERM, once, to save
    itself: a second signal would end it at once.

    Args:
      command: of the process.
      where: it is run.
      root: the repository's folder, which it finds its modules in.
      folder: the task's, which holds its task.json and gets its log.
      gpus: that the task reserves.

    Returns:
      What is missing on this node (None where nothing is), the exit code, and the seconds that it took.
    """
    missing = _missing(command, where, root, folder)
    if missing:
        return f"node {socket.gethostname()} {missing}", 1, 0.0
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    if 0 < gpus < 1:  # JAX takes three quarters of a GPU if nobody tells it otherwise
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * gpus:.3f}")
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    start, asked = time.perf_counter(), False
    try:
        with (pathlib.Path(folder) / _LOG).open("ab") as log:
            running = subprocess.Popen(
                command,
                cwd=where,
                env=environment,
                stdin=subprocess.PIPE,  # the leash
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert running.stdin is not None
        with running.stdin:
            while (code := running.poll()) is None:
                if interrupts and not asked:
                    asked = True
                    running.terminate()
                time.sleep(_POLL)
    finally:
        signal.signal(signal.SIGINT, before)
    return None, code, time.perf_counter() - start


def _missing(command: Sequence[str], where: str, root: str, folder: str) -> str | None:
    if not (pathlib.Path(folder) / _TASK).is_file():
        return f"does not see {folder}/{_TASK}: --out must be a folder that all nodes share"
    if not (pathlib.Path(root) / "experiments").is_dir():
        return f"has no repository of gkd_jax in {root}"
    if not pathlib.Path(where).is_dir():
        return f"has no folder {where}, in which the grid was started"
    if shutil.which(command[0]) is None:
        return f"has no {command[0]}: all nodes need Python and gkd_jax at the same path"
    return None


def _connect(address: str | None) -> tuple[Any, bool]:
    """Returns Ray, connected, and whether this call connected it."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)  # read when Ray is imported
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UserError("--engine ray needs Ray, which is not installed: pip install 'gkd_jax[ray]'") from None
    if ray.is_initialized():
        return ray, False
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address not in ("auto", "local"):
        _reach(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX's, that Ray starts processes beside its threads, and Ray's own tips
            ray.init(address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"there is no Ray cluster at {address}" if address else "Ray does not start here"
        raise UserError(f"{where} ({_first_line(error)})") from error
    finally:
        with contextlib.suppress(ValueError):  # outside of the main thread Ray has changed nothing either
            signal.signal(signal.SIGTERM, before)
    return ray, True


def _reach(address: str) -> None:
    """Raises `UserError` unless something listens at HOST:PORT: Ray itself would try for five minutes."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()) or "://" in address:
        raise UserError(f"{address!r} is no address of a Ray cluster: HOST:PORT, as `ray start` says, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"there is no Ray cluster at {address} ({error})") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _had(node: Mapping[str, float], wanted: Iterable[str]) -> str:
    return _listed({name: node.get(name, 0) for name in wanted})


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in amounts.items())
