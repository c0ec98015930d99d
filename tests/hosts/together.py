"""Processes of one run, really started: on the CPU, joined by gloo, which find each other on this machine."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import helpers
import numpy as np

TESTS = pathlib.Path(__file__).parents[1]

# The networks of `helpers`, for a process of its own
CONFIG = '''
"""A run of several processes."""

import sys

sys.path.insert(0, {tests!r})
import helpers

from gkd_jax import config, models, objective

if "speck" not in models.names():
    KNOWN = helpers.registrations()
    KNOWN.__enter__()


def get_config():
    c = config.default()
    c.epochs, c.batch_size = 4, 16
    c.data.source = "npz:{source}"
    c.data.val_fraction = 0.2
    c.data.pad, c.data.flip = 1, False
    c.teacher.model, c.teacher.epochs, c.teacher.batch_size = "speck_wide", 1, 16
    c.student.model = "speck"
    c.plots = c.tensorboard = False
    c.checkpoint_every = 1  # which no crash so soon would find by itself
    rise = config.schedule("gompertz", inflection=0.3, rate=10.0)
    c.objective.terms.kd = objective.block("kd", weight=0.5, schedule=rise)
    {more}
    return c
'''


class Result(NamedTuple):
    """What a process left."""

    status: int
    out: str
    err: str


class Started(NamedTuple):
    """A process at work."""

    process: subprocess.Popen[bytes]
    log: pathlib.Path

    def result(self, seconds: float = 240) -> Result:
        """Waits for its end."""
        status = self.process.wait(seconds)
        out, err = (self.log.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        # What gloo says of its connections stands on the standard output
        return Result(status, "".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]")), err)


def write_config(folder: pathlib.Path, more: str = "pass") -> pathlib.Path:
    """Writes images and a configuration of a run on them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "images.npz", **helpers.images())
    file = folder / "several.py"
    file.write_text(CONFIG.format(tests=str(TESTS), source=folder / "images.npz", more=more))
    return file


def start(
    count: int, *arguments: Any, cache: pathlib.Path, logs: pathlib.Path, each: Sequence[Any] = ()
) -> list[Started]:
    """Starts the processes of `python -m gkd_jax.main`: one alone, or several that find each other.

    Args:
      count: of processes.
      *arguments: of all.
      cache: where compiled functions are kept.
      logs: a folder for what they print.
      each: further arguments, of each process its own.
    """
    logs.mkdir(parents=True, exist_ok=True)
    port = free_port()
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    found = []
    for place in range(count):
        command = [sys.executable, "-m", "gkd_jax.main", *map(str, arguments), *map(str, each[place : place + 1])]
        if count > 1:
            address = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={place}"]
            command += [*address, "--coordinator_timeout=120"]
        log = logs / f"{time.monotonic_ns()}-{place}"
        with log.with_suffix(".out").open("wb") as out, log.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(command, cwd=TESTS.parent, env=env, stdout=out, stderr=err)
        found.append(Started(process, log))
    return found


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
    return port


def wait_until(condition: Callable[[], bool], processes: Sequence[Started], seconds: float = 240) -> None:
    """Waits while processes are at work."""
    until = time.monotonic() + seconds
    while not condition():
        for started in processes:
            assert started.process.poll() is None, started.result()
        assert time.monotonic() < until
        time.sleep(0.02)


def copied(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns a copy of a folder beside it."""
    return pathlib.Path(shutil.copytree(folder, folder.with_name(name)))
