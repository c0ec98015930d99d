"""Rows in memory by id, on the devices or on the host: where a cache keeps what it was given."""

import contextlib
import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float16, Int

from gkd_jax import hosts
from gkd_jax.errors import UserError
from gkd_jax.training.devices import put

_SHARE = 0.8  # of the host's available memory that tables may take: the rest is for images, results and other programs
_LOADED = 4 << 20  # bytes of rows that go to a device at a time: one shape, so that loading compiles one program
MAX_SIZE = 2**31 - 2**20  # ids are int32 on a device; the last ones mark rows that are not to be kept


class TooLarge(UserError):
    """What is to be kept does not fit in memory."""


@runtime_checkable
class Table(Protocol):
    """Float16 rows [size, *row], of which the owner knows which are filled."""

    def put(self, ids: np.ndarray, rows: Array, keep: np.ndarray) -> Callable[[], int]:
        """Starts to store the rows [m, *row] of `ids` that `keep` [m] marks.

        Returns:
          A function that ends it and returns how many of these rows are not finite.
        """

    def load(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Stores rows that are on the host and known to be finite."""

    def get(self, ids: np.ndarray, sharding: Sharding) -> Array:
        """Returns the rows of `ids`, [*ids.shape, *row]."""


class HostTable:
    """In host memory; a page of it is taken when its first row is stored."""

    def __init__(self, size: int, row: tuple[int, ...]):
        """Raises `TooLarge` if the system refuses the memory."""
        try:
            self._rows = np.empty((size, *row), np.float16)
        except MemoryError as error:
            raise TooLarge(f"the system gives no {2 * size * math.prod(row):,} bytes of memory") from error

    def put(self, ids: np.ndarray, rows: Array, keep: np.ndarray) -> Callable[[], int]:
        """See `Table`; the rows travel while the device computes the next ones."""
        rows.copy_to_host_async()

        def end() -> int:
            kept = np.asarray(rows)[keep]
            self._rows[ids[keep]] = kept
            return int((~np.isfinite(kept).all(tuple(range(1, kept.ndim)))).sum())

        return end

    def load(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """See `Table`."""
        self._rows[ids] = rows

    def get(self, ids: np.ndarray, sharding: Sharding) -> Array:
        """See `Table`."""
        # Four times as fast as indexing where rows are short; "clip" keeps it from making a copy to check against

        def rows(place: Any) -> Any:  # of one row of single numbers, a number
            return np.take(self._rows, ids[place[: ids.ndim]], axis=0, mode="clip")

        if sharding.is_fully_addressable:
            return jax.device_put(rows(()), sharding)
        # Of several processes each takes out those of its own devices
        return jax.make_array_from_callback((*ids.shape, *self._rows.shape[1:]), sharding, rows)


class DeviceTable:
    """One array on every device, changed in place."""

    def __init__(self, size: int, row: tuple[int, ...], where: Sharding, waits: bool):
        """Takes the memory.

        Args:
          size: number of rows.
          row: shape of one.
          where: the sharding of the array.
          waits: whether a program must end before the next is dispatched.
        """
        self._size, self._where, self._waits = size, where, waits
        self._store = _storing(where)
        self._chunk = min(size, max(1, _LOADED // (2 * max(1, math.prod(row)))))
        # Awaited on every platform: that there is no such memory may show only then
        self._table = jax.block_until_ready(_empty(where)((size, *row)))

    def put(self, ids: np.ndarray, rows: Array, keep: np.ndarray) -> Callable[[], int]:
        """See `Table`."""
        # Places past the end are dropped. All differ, so that the scatter may rely on it and needs no atomics.
        places = np.where(keep, ids, self._size + np.arange(len(ids))).astype(np.int32)
        self._table, bad = self._ended(self._store(self._table, rows, places))
        return lambda: int(bad)

    def load(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """See `Table`."""
        for start in range(0, len(ids), self._chunk):
            part, values = ids[start : start + self._chunk], rows[start : start + self._chunk]
            spare = self._chunk - len(part)
            padded = np.pad(values, [(0, spare)] + [(0, 0)] * (values.ndim - 1))
            keep = np.arange(self._chunk) < len(part)
            self.put(np.pad(part, (0, spare)), put(padded, self._where), keep)()

    def get(self, ids: np.ndarray, sharding: Sharding) -> Array:
        """See `Table`."""
        return self._ended(_gathering(sharding)(self._table, ids.astype(np.int32)))

    def _ended(self, tree: Any) -> Any:
        return jax.block_until_ready(tree) if self._waits else tree


# One compiled function of each for all tables of a process: several runs in it share them


@functools.cache
def _empty(where: Sharding) -> Any:
    # Made where it is to be: nothing of this size should be moved
    return jax.jit(lambda shape: jnp.zeros(shape, jnp.float16), static_argnums=0, out_shardings=where)


@functools.cache
def _storing(where: Sharding) -> Any:
    def store(table: Array, rows: Float16[Array, "m ..."], places: Int[Array, " m"]) -> tuple[Array, Array]:
        finite = jnp.all(jnp.isfinite(rows), axis=tuple(range(1, rows.ndim)))
        bad = jnp.sum(~finite & (places < table.shape[0]), dtype=jnp.int32)
        return table.at[places].set(rows, mode="drop", unique_indices=True), bad

    return jax.jit(store, donate_argnums=0, out_shardings=where)


@functools.cache
def _gathering(sharding: Sharding) -> Any:
    def gather(table: Array, ids: Array) -> Array:
        return table.at[ids].get(mode="promise_in_bounds")

    return jax.jit(gather, out_shardings=sharding)


def on_device(
    rows: dict[str, tuple[int, ...]],
    size: int,
    budget: int,
    where: Sharding,
    waits: bool,
    say: Callable[[str], None],
) -> dict[str, Table] | None:
    """Returns a table on the devices for each of `rows`, or None if they do not fit there.

    Args:
      rows: shape of one row of each.
      size: number of rows of each.
      budget: bytes that all together may take of each device.
      where: the sharding of the tables.
      waits: whether a program must end before the next is dispatched.
      say: told if the devices have less memory than the budget promises.
    """
    needed = nbytes(rows, size)
    if size > MAX_SIZE or needed > budget:
        return None
    try:
        return {name: DeviceTable(size, row, where, waits) for name, row in rows.items()}
    except jax.errors.JaxRuntimeError as error:
        # Of several processes the others may have had the memory
        if "RESOURCE_EXHAUSTED" not in str(error) or hosts.several():
            raise
    say(
        f"teacher.cache: the device has no {needed:,} bytes left, though teacher.cache_memory allows them; the host "
        "keeps them"
    )
    return None


def on_host(rows: dict[str, tuple[int, ...]], size: int) -> dict[str, Table]:
    """Returns a table in host memory for each of `rows`.

    Raises:
      TooLarge: if all together take more than 80 % of the memory that is available.
    """
    needed, available = nbytes(rows, size), int(hosts.least(available_memory()))
    if size > MAX_SIZE:
        raise TooLarge(f"{size:,} rows are more than the {MAX_SIZE:,} that int32 can number")
    if needed > _SHARE * available:
        raise TooLarge(
            f"{size:,} rows of {', '.join(rows)}, one for each view of each image, however few are looked up, take "
            f"{needed:,} bytes; of the {available:,} that are available on this machine they may take {_SHARE:.0%}"
        )
    return {name: HostTable(size, row) for name, row in rows.items()}


def nbytes(rows: dict[str, tuple[int, ...]], size: int) -> int:
    """Returns how many bytes `size` rows of each kind take in float16."""
    return 2 * size * sum(math.prod(row) for row in rows.values())


def available_memory() -> int:
    """Returns how many bytes of host memory this process can still take without swapping."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError, StopIteration):  # Linux alone says how much of it is taken
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, ValueError, KeyError):  # a container has less than its machine; ValueError: "max"
        group = pathlib.Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        taken = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found.append(limit - int(taken["anon"]) - int(taken["shmem"]))  # what else it counts are files, given back
    return max(0, min(found))
