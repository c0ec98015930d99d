"""A network's outputs on the views of the training images, each computed once and looked up ever after."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Literal

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Int, Int32

from gkd_jax import hosts
from gkd_jax.errors import UserError
from gkd_jax.training import cost, tables
from gkd_jax.training.pace import Pace
from gkd_jax.training.shards import Shards, Writer, alone, room

Ask = Callable[[Int32[np.ndarray, " m"]], Mapping[str, Array]]

_AHEAD = 2  # batches under way while an earlier one is put away: the device has work, and memory stays bounded
_SHARD = 128 << 20  # bytes of rows in a shard; a fill that ends earlier writes a smaller one
_ID = 4  # bytes of an id on disk


class NotFinite(UserError):
    """A network's outputs are NaN, or too large for float16."""


class Cache:
    """The outputs of one network for one run, by id = example · views + view.

    Each quantity ("logits", say) has a row for every id, in float16. Ids that some quantity lacks are missing: they are
    computed, in all quantities at once, when they are asked to be there.

    Attributes:
      tier: "device" or "host", where the rows are.
      nbytes: of all rows in memory, held or not.
      on_disk: bytes that all rows take there in the end; 0 where they are not kept.
      from_disk: ids that needed no computing here.
      computed: ids that did.
      seconds: spent on them, and on waiting for another process that computes them.
    """

    def __init__(
        self,
        ask: Ask,
        rows: Mapping[str, tuple[int, ...]],
        *,
        size: int,
        batch: int,
        where: Sharding,
        device_budget: int,
        shards: Mapping[str, Shards] | None,
        say: Callable[[str], None],
        waits: bool = False,
        polled: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Takes the memory and reads what is on disk.

        Args:
          ask: starts to compute, ids [batch] -> float16 rows [batch, *row] by quantity.
          rows: the shape of one row of each quantity.
          size: number of ids, examples times views.
          batch: ids in each call of `ask`.
          where: the sharding of rows on the devices: replicated.
          device_budget: bytes that may be taken of each device; 0 for host memory.
          shards: of each quantity that is kept on disk.
          say: told what a user should know.
          waits: whether a program must end before the next, `gkd_jax.training.devices.one_program_at_a_time`.
          polled: called between batches and shards; what it raises ends a fill, whose rows so far are kept.
          clock: seconds from some moment on.

        Raises:
          TooLarge: if the rows fit neither the device's budget nor the host's memory.
        """
        shapes = dict(rows)
        self._ask, self._rows, self._batch, self._where = ask, shapes, batch, where
        self._shards, self._say, self._waits, self._polled = dict(shards or {}), say, waits, polled
        self._clock = clock
        self.nbytes = tables.nbytes(shapes, size)
        on_device = tables.on_device(shapes, size, device_budget, where, waits, say)
        self._tables = tables.on_host(shapes, size) if on_device is None else on_device
        self.tier: Literal["device", "host"] = "host" if on_device is None else "device"
        self._held = {name: np.zeros(size, np.bool_) for name in shapes}
        self._queued: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in self._shards}
        self.computed, self.seconds = 0, 0.0
        self._read()
        if not hosts.first():  # the first process writes for all
            self._keep_none()
        self._whole = np.logical_and.reduce(list(self._held.values()))
        self.from_disk = int(self._whole.sum())
        self.on_disk = self._settle_disk()

    def _read(self) -> None:
        """Loads what is on disk and was not loaded before."""
        if hosts.several():
            self._read_together()
            return
        total = sum(shards.unread for shards in self._shards.values())
        pace = Pace(total, lambda left: self._say(_reading(total, left)), self._clock)
        for name, shards in self._shards.items():
            held = self._held[name]
            self._polled()
            for ids, found in shards.read(np.float16, self._rows[name], len(held), new=True):
                new = ~held[ids]
                self._tables[name].load(ids[new], found[new])
                held[ids] = True
                pace.did(ids.nbytes + found.nbytes)
                self._polled()

    def _read_together(self) -> None:
        """Loads what all processes find on their disks: they must take the same rows for missing."""
        for name, shards in self._shards.items():
            held = self._held[name]
            found = [part for part in shards.read(np.float16, self._rows[name], len(held), new=True) if len(part[0])]
            place = np.full(len(held), -1)  # in `rows`, of each id that is there
            rows = (
                np.concatenate([part for _, part in found]) if found else np.zeros((0, *self._rows[name]), np.float16)
            )
            if found:
                place[np.concatenate([ids for ids, _ in found])] = np.arange(len(rows))
            new = np.flatnonzero(hosts.on_all((place >= 0) & ~held))
            self._tables[name].load(new, rows[place[new]])
            held[new] = True

    def _settle_disk(self) -> int:
        """Returns what all rows take on disk; gives the disk up, in one line, if what is missing does not fit."""
        if not self._shards:
            return 0
        row = {name: _ID + 2 * math.prod(self._rows[name]) for name in self._shards}
        more = sum(row[name] * int((~self._held[name]).sum()) for name in row)
        folder = next(iter(self._shards.values())).folder.parent
        if more <= (free := room(folder)):
            return len(self._whole) * sum(row.values())
        self._say(
            f"{folder} has room for {free / 1e6:,.1f} MB, and the cache may take {more / 1e6:,.1f} MB more there: what "
            "is computed from here on is not kept for the next run"
        )
        self._keep_none()
        return 0

    def _keep_none(self) -> None:
        for shards in self._shards.values():
            shards.writable = False

    @property
    def missing(self) -> int:
        """Number of ids that are not held in every quantity."""
        return len(self._whole) - self.from_disk - self.computed

    @property
    def complete(self) -> bool:
        """Whether every id is held in every quantity."""
        return self.missing == 0

    def cost(self, epochs: int, per_epoch: int, seeds: int = 1) -> cost.Forwards:
        """Returns the forwards that a run still takes.

        Args:
          epochs: to come.
          per_epoch: ids looked up in an epoch, those of all seeds together.
          seeds: that draw batches of their own; 1 where all share them.
        """
        return cost.forwards(
            self.missing,
            size=len(self._whole),
            epochs=epochs,
            per_epoch=per_epoch,
            batch=self._batch,
            seeds=seeds,
        )

    def choose(self, epochs: int, per_epoch: int, seeds: int = 1) -> tuple[Literal["up front", "by epoch"], str]:
        """Returns the cheaper way to fill (`cost.Forwards`) and a sentence that says why; arguments as for `cost`."""
        found = self.cost(epochs, per_epoch, seeds)
        if not found.up_front:
            return "up front", f"all {len(self._whole):,} views are held"
        compared = (
            f"{found.up_front:,} forwards for the {self.missing:,} views that are missing, against "
            f"{found.by_epoch:,} expected for those that {epochs:,} epochs of {per_epoch:,} look up"
        )
        return found.how, f"the cache is filled {found.how}: {compared}"

    def fill_all(self) -> None:
        """Computes whatever is missing; see `fill`."""
        self._fill(np.flatnonzero(~self._whole))

    def fill(self, ids: Int[np.ndarray, "..."] | Int[Array, "..."]) -> None:
        """Computes what is missing among `ids`, and writes it to disk where that is wanted.

        What another process has written since the last look is read instead; one that is filling the same folder is
        waited for.

        Raises:
          NotFinite: if a row is NaN or does not fit float16.
        """
        wanted = np.unique(_inside(ids, len(self._whole)))
        self._fill(wanted[~self._whole[wanted]])

    def holds(self, ids: Int[np.ndarray, "..."] | Int[Array, "..."]) -> bool:
        """Returns whether all of `ids` are held in every quantity."""
        return bool(self._whole[_inside(ids, len(self._whole))].all())

    def lookup(
        self,
        ids: Int[np.ndarray, "..."] | Int[Array, "..."],
        sharding: Sharding,
        names: Collection[str] | None = None,
    ) -> dict[str, Array]:
        """Returns the rows of `ids` by quantity, float16 [*ids.shape, *row], on `sharding`; of `names` or of all.

        Raises:
          RuntimeError: if an id is not held, which is a mistake of the caller's.
        """
        places = _inside(ids, len(self._whole))
        if lacking := int((~self._whole[places]).sum()):
            raise RuntimeError(f"{lacking:,} of {places.size:,} ids were looked up and are not in the cache")
        return {name: self._tables[name].get(places, sharding) for name in names or self._tables}

    def _fill(self, ids: np.ndarray) -> None:
        """Computes ids that are missing, but for those that other processes have written or are about to."""
        if not self._shards or not len(ids):
            self._compute(ids)
            return
        started = self._clock()
        ids = self._look_again(ids)
        if not len(ids):
            self.seconds += self._clock() - started
            return
        with contextlib.ExitStack() as stack:
            # Where several stop is counted by the points at which all could: none is in what one of them waits for
            polled = (lambda: None) if hosts.several() else self._polled
            lock = alone(self._shards.values(), polled, self._say)
            hosts.first_does(lambda: stack.enter_context(lock))
            ids = self._look_again(ids)
            self.seconds += self._clock() - started
            self._compute(ids)

    def _look_again(self, ids: np.ndarray) -> np.ndarray:
        """Reads what others have written since the last look, and returns which of `ids` are missing still."""
        if hosts.least(-sum(shards.unread for shards in self._shards.values())) == 0:
            return ids
        self._read()
        whole = np.logical_and.reduce(list(self._held.values()))
        self.from_disk += int((whole & ~self._whole).sum())
        self._whole = whole
        return ids[~whole[ids]]

    def _compute(self, ids: np.ndarray) -> None:
        if not len(ids):
            return
        pace = Pace(-(-len(ids) // self._batch), lambda left: self._say(_computing(len(ids), left)), self._clock)
        pending: collections.deque[Callable[[], None]] = collections.deque()

        def put_away(until: int) -> None:
            while len(pending) > until:
                pending.popleft()()
                pace.did(1)

        before = self.computed
        try:
            with Writer() as writer:
                try:
                    for start in range(0, len(ids), self._batch):
                        self._polled()
                        pending.append(self._dispatch(ids[start : start + self._batch], writer))
                        put_away(until=_AHEAD)
                except NotFinite:
                    pending.clear()  # these would but say the same again
                    raise
                finally:
                    try:
                        put_away(until=0)  # where asked to stop, too: what is under way is as good as there
                    finally:
                        self._write(writer, at_least=1)
        finally:
            seconds, count = pace.seconds, self.computed - before
            self.seconds += seconds
            if pace.long:
                self._say(f"{count:,} views computed in {seconds:,.0f} s, {count / seconds:,.0f} a second")

    def _dispatch(self, ids: np.ndarray, writer: Writer) -> Callable[[], None]:
        """Starts a batch, and returns the function that waits for it and puts it away."""
        real = np.arange(self._batch) < len(ids)
        padded = np.pad(ids, (0, self._batch - len(ids)), mode="edge").astype(np.int32)
        rows = self._ask(padded)
        if self._waits:
            jax.block_until_ready(rows)
        # What is held stays as it is, so that memory and disk agree to the last bit
        keeps = {name: real & ~held[padded] for name, held in self._held.items()}
        ends = {}
        for name, table in self._tables.items():
            expected = (self._batch, *self._rows[name])
            if rows[name].dtype != np.float16 or rows[name].shape != expected:
                raise ValueError(f"{name} came as {rows[name].dtype}{rows[name].shape}, not float16{expected}")
            ends[name] = table.put(padded, rows[name], keeps[name])
            if self._kept(name):
                rows[name].copy_to_host_async()

        def end() -> None:
            for name, finish in ends.items():
                if bad := finish():
                    raise NotFinite(
                        f"the {name} of {bad} of {len(ids)} views are NaN or beyond 65504, the largest number of "
                        "float16: this teacher cannot be remembered. To ask it at every step is another run: choose "
                        "another --workdir and --config.teacher.cache=none; with --config.teacher.checkpoint the "
                        "teacher need not be trained again"
                    )
            for name, keep in keeps.items():
                if self._kept(name):
                    self._queued[name].append((padded[keep], np.asarray(rows[name])[keep]))
                self._held[name][padded[keep]] = True
            self._whole[ids] = True
            self.computed += len(ids)
            self._write(writer, at_least=_SHARD)

        return end

    def _kept(self, name: str) -> bool:
        return name in self._shards and self._shards[name].writable

    def _write(self, writer: Writer, at_least: int) -> None:
        """Has a shard written for each quantity of which as many bytes wait."""
        for name, queued in self._queued.items():
            if sum(rows.nbytes for _, rows in queued) >= at_least:
                writer.write(self._shards[name], tuple(queued))
                queued.clear()


def _reading(total: int, left: float) -> str:
    return f"{total / 1e9:,.1f} GB of the teacher's cache are read from disk, in about {left:,.0f} s from now"


def _computing(views: int, left: float) -> str:
    return f"{views:,} views are computed for the cache, in about {left:,.0f} s from now"


def _inside(ids: np.ndarray | Array, size: int) -> np.ndarray:
    """Returns ids on the host; raises `RuntimeError` if any is none."""
    places = np.asarray(ids)
    if places.size and not (places.min() >= 0 and places.max() < size):
        raise RuntimeError(f"ids are {places.min()} to {places.max()}, and there are but 0 to {size - 1}")
    return places
