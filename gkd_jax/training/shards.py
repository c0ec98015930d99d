"""Rows on disk by id, in files that are added and never changed: what one run computed, the next one reads.

A folder holds any number of shards. Each is an uncompressed npz of `ids` and `rows`, written under a temporary name and
then renamed, and has a name that no other process can choose: runs that share the folder need no lock to be right, but
one, `alone`, to do no work twice. What is here can always be computed anew, so nothing that happens to these files
stops a run; it is said, once.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from gkd_jax.errors import UserError
from gkd_jax.reporting import files

DESCRIPTION = "describe.json"
_ABANDONED = 3600.0  # seconds after which nobody is still writing a file
_WAITING = 2  # shards that may wait for the disk: more of them would only take memory
_LOCK, _POLL = ".lock", 0.2  # held while rows are computed; seconds between two tries to get it
_SPARED = 2 << 30, 0.1  # bytes, and share of the disk, the smaller of which is left to everybody else


def key(**facts: Any) -> str:
    """Returns 32 hexadecimal digits that stand for all of `facts`, whatever their order.

    Raises:
      TypeError: if a fact is nothing that JSON can hold.
      ValueError: if a fact is NaN or infinite.
    """
    content = json.dumps(facts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class _Damaged(Exception):
    """A file is not what `Shards.write` left there."""


class Shards:
    """The rows in one folder.

    Attributes:
      folder: where they are; created by the first `write`.
      writable: whether the next `write` will try.
    """

    def __init__(self, folder: pathlib.Path, say: Callable[[str], None]):
        """Looks at nothing yet.

        Args:
          folder: one for each kind of rows.
          say: told what could not be written or read.
        """
        self.folder = folder
        self.writable = True
        self._say = say
        self._known: set[pathlib.Path] = set()

    @property
    def nbytes(self) -> int:
        """Bytes of the shards that are there."""
        return _size(self._files())

    @property
    def unread(self) -> int:
        """Bytes of those that this object has neither read nor written."""
        return _size(self._new())

    def _files(self) -> list[pathlib.Path]:
        return sorted(self.folder.glob("shard-*.npz"))

    def _new(self) -> list[pathlib.Path]:
        return [path for path in self._files() if path not in self._known]

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Writes beside the shards, once, what they hold, for a person who finds them."""
        path = self.folder / DESCRIPTION
        if not self.writable or path.exists():
            return
        try:
            files.write_json(path, facts)
        except UserError as error:
            self._give_up(str(error))

    def write(self, ids: Int[np.ndarray, " m"], rows: Shaped[np.ndarray, "m ..."]) -> bool:
        """Adds a shard, whole or not at all.

        Args:
          ids: each at most once.
          rows: one for each id.

        Returns:
          Whether the rows are on the disk. After the first failure nothing more is tried.
        """
        if not self.writable or not len(ids):
            return self.writable
        stem = f"shard-{files.unique()}"
        temporary = self.folder / f".{stem}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    np.savez(file, ids=ids, rows=rows)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.folder / f"{stem}.npz")
                self._known.add(self.folder / f"{stem}.npz")
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            self._give_up(str(files.cannot_write(self.folder, error)))
        return self.writable

    def read(
        self, dtype: Any, shape: tuple[int, ...], size: int, *, new: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields `(ids, rows)` of every whole shard, and removes the others.

        A file that the system will not let us read is named and left alone: it may be whole.

        Args:
          dtype: of the rows.
          shape: of one row.
          size: ids are 0 to `size - 1`.
          new: whether to leave out what this object has read or written before.
        """
        self._sweep()
        for path in self._new() if new else self._files():
            self._known.add(path)
            try:
                found = _load(path, np.dtype(dtype), shape, size)
            except FileNotFoundError:  # removed by another run since it was listed
                continue
            except OSError as error:
                self._say(f"cannot read {path}: {error.strerror or error}; its rows are computed anew")
                continue
            except _Damaged as damage:
                self._say(f"{path} is {self._removed(path)}: {damage}; its rows are computed anew")
                continue
            yield found

    def _removed(self, path: pathlib.Path) -> str:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            return f"not used, and cannot be removed ({error.strerror or error})"
        return "removed"

    def _sweep(self) -> None:
        """Removes what runs that were killed had half written."""
        for path in self.folder.glob(".shard-*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()

    def _give_up(self, reason: str) -> None:
        self.writable = False
        self._say(f"{reason}; what is computed from here on is not kept for the next run")


def _size(paths: Iterable[pathlib.Path]) -> int:
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _load(path: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        content = file.read()  # here alone the system may fail: whatever goes wrong below is the content's fault
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            ids, rows = _member(archive, "ids"), _member(archive, "rows")
    except MemoryError:
        raise
    # A damaged file may lead `zipfile` anywhere: a wrong offset, another compression, a password, an invalid seek
    except Exception as error:
        raise _Damaged(f"it is damaged or cut short ({type(error).__name__}: {error})") from error
    if ids.dtype.kind != "i" or ids.ndim != 1:
        raise _Damaged(f"its ids are {ids.dtype}{list(ids.shape)}")
    if rows.dtype != dtype or rows.shape != (len(ids), *shape):
        raise _Damaged(f"its rows are {rows.dtype}{list(rows.shape)}, not {dtype}{[len(ids), *shape]}")
    if len(ids) and not (ids.min() >= 0 and ids.max() < size):
        raise _Damaged(f"its ids are {ids.min()} to {ids.max()}, and there are but 0 to {size - 1}")
    # Ids that ascend, as a cache writes them, need not be sorted
    if not (ids[1:] > ids[:-1]).all() and len(np.unique(ids)) != len(ids):
        raise _Damaged("it holds an id twice")
    if not np.isfinite(rows).all():
        raise _Damaged("it holds NaN or infinity")
    return ids, rows


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # `read` compares the checksum before anything is made of the bytes; `np.load` would believe a damaged header first
    content = io.BytesIO(archive.read(f"{name}.npy"))
    return np.lib.format.read_array(content, allow_pickle=False)


class Writer:
    """Writes shards in a thread of its own, one after another; leaving it waits until all are on the disk."""

    def __init__(self) -> None:
        """Starts nothing yet: many a fill has nothing to write."""
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._waiting: collections.deque[concurrent.futures.Future[None]] = collections.deque()

    def write(self, shards: Shards, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Adds a shard of all `parts`, `(ids, rows)` each, soon; waits where too many shards do."""
        while len(self._waiting) >= _WAITING:
            self._waiting.popleft().result()
        if self._thread is None:
            self._thread = concurrent.futures.ThreadPoolExecutor(1, "gkd_jax-shards")
        self._waiting.append(self._thread.submit(_write, shards, parts))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            if self._thread is not None:
                self._thread.shutdown()


def _write(shards: Shards, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    ids, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
    shards.write(ids, rows)


@contextlib.contextmanager
def alone(many: Iterable[Shards], polled: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """Keeps other processes that come here from computing rows meanwhile; waits for one that is doing so.

    The lock is let go when a process ends, however it does. Where there is no lock to be had, there is no waiting.

    Args:
      many: the shards that will be added to; those that are not writable are left alone.
      polled: called while waiting; what it raises ends it.
      say: told once that another process is waited for.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows, where two processes may compute the same rows
        yield
        return
    told = False
    with contextlib.ExitStack() as stack:
        # In one order everywhere: no two processes wait for each other
        for folder in sorted({shards.folder for shards in many if shards.writable}):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((folder / _LOCK).open("a"))
            except OSError:  # the first write will tell
                continue
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
                except OSError:  # a file system without locks
                    break
                if not told:
                    say(f"another process computes rows for {folder}: waiting until it is done")
                    told = True
                polled()
                time.sleep(_POLL)
        yield


def room(folder: pathlib.Path) -> float:
    """Returns how many bytes may be written into a folder, which need not be there; infinity if nobody knows."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        disk = shutil.disk_usage(folder)
    except OSError:  # the first write will tell
        return float("inf")
    spared, share = _SPARED
    return max(0.0, disk.free - min(spared, share * disk.total))
