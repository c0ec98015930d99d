"""The machine under a run: its allocator, the number of CPU devices, XLA's flags, and the cache of what it compiled."""

import ctypes
import importlib.metadata
import importlib.util
import os
from typing import Any

import jax
import jaxlib

from gkd_jax import hosts, native
from gkd_jax.config import cache_folder
from gkd_jax.processor import cores
from gkd_jax.reporting.messages import say

# glibc's mallopt, by its number and the environment variable that sets the same: never map a block of its own, never
# give memory back, one heap for all threads
_MALLOPT = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),
    "MALLOC_ARENA_MAX": (-8, 1),
}
_DEVICES = 2  # of a CPU without kernels of our own: more were never measured


def prepare(cpu_devices: Any = "auto", *, deterministic: bool = False, computes: bool = True) -> None:
    """Prepares this process; to be called before JAX looks for devices.

    Of a machine without an accelerator, see `keep_memory` too. What the user has set in the environment
    (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`) stays as it is.

    Args:
      cpu_devices: how many devices the CPU counts as; "auto" for one if our own kernels (`gkd_jax.native`) are there,
        which use all cores, and no other process has a part in this run, else for two, if there are two cores, which a
        run need not use.
      deterministic: whether a GPU must give the same bits from run to run.
      computes: whether a network will run; if not, "auto" leaves the devices as they are, and no kernels are compiled.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if not _without_accelerator():
        return
    keep_memory()
    options: Any = jax.config
    settled = options.jax_num_cpu_devices
    if cpu_devices == "auto":
        chosen = not computes or "xla_force_host_platform_device_count" in flags or settled >= 0
        cpu_devices = None if chosen else 1 if not hosts.several() and native.available() else min(_DEVICES, cores())
    if cpu_devices is not None and cpu_devices != settled:
        try:
            jax.config.update("jax_num_cpu_devices", cpu_devices)
        except RuntimeError:  # in a notebook, say
            if cpu_devices == len(jax.devices()):
                return
            say(f"cpu_devices={cpu_devices} has no effect, since JAX has started with {len(jax.devices())}")


def keep_memory() -> None:
    """Has the memory allocator keep what it has, on a machine without an accelerator; elsewhere it does nothing.

    XLA takes and frees the same large blocks at every step, which glibc would map and unmap, and the kernel fill with
    zeros, each time. To be called before this process starts a thread: one that was there before has a heap of its own,
    which XLA's threads then share, and what does not fit into it is mapped and unmapped in spite of all (a quarter of
    the time of four students trained together). What the user has set in the environment (`MALLOC_...`) stays as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt is None or not _without_accelerator():
        return
    for variable, (option, value) in _MALLOPT.items():
        if variable not in os.environ:
            mallopt(option, value)


def keep_compiled(given: str) -> None:
    """Keeps compiled functions between runs: always on accelerators, on CPU if a folder is named.

    Args:
      given: "auto", "off" or a path.
    """
    folder = cache_folder(given, "compiled")
    if folder is None or (given == "auto" and jax.default_backend() == "cpu"):
        return
    # One folder for each version: compiled code of another jaxlib can crash
    jax.config.update("jax_compilation_cache_dir", str(folder / f"jaxlib-{jaxlib.__version__}"))


def _without_accelerator() -> bool:
    """Returns whether JAX will find a CPU alone, without asking it."""
    options: Any = jax.config
    chosen = options.jax_platforms
    if chosen:
        return str(chosen).split(",")[0] == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None
