"""A teacher that is remembered: its outputs on the views of the training images, from a cache instead of the network.

A cache is worth its memory because the views are few (162 of an image for CIFAR), and a run of 240 epochs sees most of
them more than once; the next run, seed, method or schedule with the same teacher asks it nothing at all.
"""

import concurrent.futures
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int, Int32

from gkd_jax import hosts, objective
from gkd_jax.config import held as held_by
from gkd_jax.data import Dataset
from gkd_jax.errors import UserError
from gkd_jax.objective import Lines
from gkd_jax.outputs import Batch, Gradient, Outputs
from gkd_jax.reporting.messages import say
from gkd_jax.training.cache import Cache
from gkd_jax.training.devices import fetch, put
from gkd_jax.training.forward import forward, forward_shapes
from gkd_jax.training.shards import Shards, key
from gkd_jax.training.tables import TooLarge
from gkd_jax.training.teacher import Teacher, said_by
from gkd_jax.training.views import STRONG, WEAK, by_view

_FORMAT = 1  # to be raised whenever the same facts come to mean other rows
_GIB = 1 << 30
_SHARE = 0.5  # of the device's free memory, where no budget is given


class OfNoUse(UserError):
    """A cache cannot speak for the teacher in this run."""


def views_at_once(platform: str) -> int:
    """Returns how many views the teacher is asked for at a time; on CPU a resnet50's gradients of 1,024 take 30 GB."""
    return 128 if platform == "cpu" else 1024


def unheld(level: str, lines: Lines) -> list[str]:
    """Returns what the lines need of the teacher and a cache of that level does not hold, for a message.

    A cache is of the view "weak". What the teacher says of another one is computed at every step beside it; but where
    that is all that is asked of the teacher, a cache is for nothing.
    """
    held = {f"teacher.{name}" for name in held_by(level)}
    needs = {need for line in _remembered_lines(lines).values() for need in line.term.needs}
    if not needs and any(line.term.needs for line in lines.values()):
        return [f"the teacher on the view {STRONG!r} alone"]
    missing = {need for need in needs if isinstance(need, str) and need not in held}
    missing |= {f"the gradient {g.name}" for g in needs if isinstance(g, Gradient) and not _remembered(level, g)}
    return sorted(missing)


def _remembered_lines(lines: Lines) -> Lines:
    return by_view(lines).get(WEAK, {})


def _remembered(level: str, gradient: Gradient) -> bool:
    return level == "gradients" and gradient.at == "input" and gradient.cacheable


class Recall:
    """What a run remembers of its teacher. It is opened by its first use: a run that is over has none for it.

    Attributes:
      level: what is held.
      how: the rows are filled; None before the first epoch.
      early: whether the rows of an epoch are looked up while the device computes the one before, if the host has them.
    """

    def __init__(
        self,
        level: str,
        teacher: Teacher,
        lines: Lines,
        dataset: Dataset,
        gather: Callable[[Int[Array, " m"], Int[Array, " m"]], Batch],
        *,
        dtype: str,
        memory: Any,
        folder: pathlib.Path | None,
        where: Sharding,
        waits: bool,
        early: bool = False,
        polled: Callable[[], None] = lambda: None,
    ):
        """Opens nothing yet.

        Args:
          level: one of `gkd_jax.config.CACHES` but the first.
          teacher: who is asked for what is missing.
          lines: of the objective; `unheld` of them must be empty.
          dataset: whose training images are seen.
          gather: `(examples, views) -> Batch`, jitted with its images, shared out among the devices.
          dtype: that the teacher computes in.
          memory: GiB of each device that may be taken; "auto" for half of what is free.
          folder: of caches, one folder for each kind of rows; None for none on disk.
          where: the sharding of what every device holds whole.
          waits: whether a program must end before the next may be dispatched.
          early: see above; for accelerators, which leave the host's cores idle.
          polled: called between batches; may raise.
        """
        self.level, self.early = level, early
        self._teacher, self._lines, self._dataset, self._gather = teacher, _remembered_lines(lines), dataset, gather
        self._dtype, self._memory, self._folder, self._where = dtype, memory, folder, where
        self._waits, self._polled, self._views = waits, polled, dataset.num_views
        self._gradients = tuple(g for g in objective.gradients(self._lines) if _remembered(level, g))
        self._next: concurrent.futures.Future[tuple[np.ndarray, dict[str, Array] | None]] | None = None
        self.how: Literal["up front", "by epoch"] | None = None

    @functools.cached_property
    def cache(self) -> Cache:
        """The rows; the first use takes their memory, and reads what earlier runs left on disk.

        Raises:
          OfNoUse: if the teacher does not give what is to be held, or no memory holds it.
        """
        devices = self._where.device_set
        size = len(self._dataset.train_images) * self._views
        rows, shards = self._row_shapes, {}
        platform = next(iter(devices)).platform  # type: ignore[attr-defined]
        most = views_at_once(platform)
        if self._folder is not None:
            facts = _facts(self._teacher, self._dataset, self._dtype, platform)
            shards = {name: Shards(self._folder / key(**facts, rows=name), say) for name in rows}
        try:
            cache = Cache(
                self._ask(),
                rows,
                size=size,
                batch=-(-min(most, size) // len(devices)) * len(devices),
                where=self._where,
                device_budget=_budget(self._memory, self._where),
                shards=shards,
                say=say,
                waits=self._waits,
                polled=self._polled,
            )
        except TooLarge as error:
            raise OfNoUse(str(error)) from error
        for name, kept in shards.items():
            kept.describe({**facts, "rows": name})
        return cache

    @functools.cached_property
    def _row_shapes(self) -> dict[str, tuple[int, ...]]:
        teacher, shape = self._teacher, jax.ShapeDtypeStruct((1, *self._dataset.image_shape), jnp.float32)
        shapes = forward_shapes(teacher.model, teacher.variables, shape, self._gradients, train=False)
        rows = self._rows(shapes)
        if lacking := [name for name, row in rows.items() if row is None]:
            model = teacher.finished.config["student"]["model"]
            raise OfNoUse(f"the teacher {model} gives no {' and no '.join(lacking)}, which it is to hold")
        return {name: row.shape[1:] for name, row in rows.items()}

    def _rows(self, outputs: Outputs) -> dict[str, Any]:
        """Returns what is kept of a teacher's outputs, by the name of its rows."""
        kept = {name: getattr(outputs, name) for name in held_by(self.level)}
        return {**kept, **{gradient.name: outputs.grads[gradient.name] for gradient in self._gradients}}

    def _ask(self) -> Callable[[Int32[np.ndarray, " m"]], Mapping[str, Array]]:
        teacher = self._teacher

        def look(variables: Any, batch: Batch) -> dict[str, Array]:
            images = batch.images["weak"]
            # What may be cached draws nothing: any key will do
            key = jax.random.key(0)
            outputs, _ = forward(teacher.model, variables, images, self._gradients, train=False, batch=batch, key=key)
            directions = {name: _direction(gradient) for name, gradient in outputs.grads.items()}
            rows = self._rows(outputs._replace(grads=directions))
            return {name: row.astype(jnp.float16) for name, row in rows.items()}

        # Of several processes each keeps all rows in its memory, where they are not on the devices
        answer = jax.jit(look, out_shardings=self._where) if hosts.several() else jax.jit(look)
        # A teacher that was read from a checkpoint lies on the first device alone
        variables = put(teacher.variables, self._where)

        def ask(ids: Int32[np.ndarray, " m"]) -> Mapping[str, Array]:
            return answer(variables, self._gather(*put(np.divmod(ids, np.int32(self._views)), self._where)))

        return ask

    def __call__(
        self,
        index: Array,
        view: Array,
        where: Sharding,
        epochs: int,
        following: Callable[[], tuple[Array, Array]] | None = None,
    ) -> dict[str, Array]:
        """Returns the rows of an epoch's plan; computes those that are missing.

        The first call opens the cache, and chooses between filling it up front and epoch by epoch, whichever costs this
        run less; it says which and why.

        Args:
          index: of the plan, for all students.
          view: likewise.
          where: the sharding of what is returned.
          epochs: to come, this one included.
          following: draws index and view of the epoch after it; None if there is none.

        Returns:
          [*index.shape, *row] each.

        Raises:
          OfNoUse: if it cannot speak for the teacher; by the first call alone.
        """
        ids = self._ids(index, view)
        if self.how is None:
            seeds = ids.shape[0] if ids.ndim == 3 else 1
            self.how, why = self.cache.choose(epochs, ids.size, seeds)
            say(f"teacher.cache: {self._whereabouts()}; {why}")
            if self.how == "up front":
                self.cache.fill_all()
        rows = self._looked_up_early(ids)
        if rows is None:
            self.cache.fill(ids)
            rows = self.cache.lookup(ids, where, self._served)
        if following is not None and self.early and self.cache.tier == "host":
            self._look_up_early(*following(), where)
        return rows

    def _ids(self, index: Array, view: Array) -> np.ndarray:
        examples, views = fetch((index, view))
        return np.asarray(examples).astype(np.int64) * self._views + np.asarray(views)

    @property
    def _served(self) -> tuple[str, ...]:
        """The rows that the step is given."""
        return tuple(n for n in self._row_shapes if n not in held_by(self.level) or _needs(self._lines, n))

    def _whereabouts(self) -> str:
        cache = self.cache
        memory = f"{cache.nbytes / 1e6:,.1f} MB of {self.level} in the {cache.tier}'s memory"
        if self._folder is None:
            return f"{memory}, none on disk"
        kept = f"where all of them take {cache.on_disk / 1e6:,.1f} MB" if cache.on_disk else "where none are added"
        return f"{memory}, {cache.from_disk:,} views of them from {self._folder}, {kept}"

    def _look_up_early(self, index: Array, view: Array, where: Sharding) -> None:
        """Begins to look up the rows of a plan in a thread, unless some must be computed: the device is at work."""

        def look_up() -> tuple[np.ndarray, dict[str, Array] | None]:
            ids = self._ids(index, view)
            return ids, self.cache.lookup(ids, where, self._served) if self.cache.holds(ids) else None

        thread = concurrent.futures.ThreadPoolExecutor(1, "gkd_jax-rows")
        self._next = thread.submit(look_up)
        thread.shutdown(wait=False)  # it ends with what it was given

    def _looked_up_early(self, ids: np.ndarray) -> dict[str, Array] | None:
        """Returns what the thread found, if it was of these ids."""
        if self._next is None:
            return None
        begun, self._next = self._next, None
        known, rows = begun.result()
        return rows if np.array_equal(known, ids) else None

    def summary(self) -> dict[str, Any]:
        """Returns how the cache was used, for the record of the run."""
        cache = self.cache
        return {
            "level": self.level,
            "tier": cache.tier,
            "filled": self.how,
            "bytes": cache.nbytes,
            "from_disk": cache.from_disk,
            "computed": cache.computed,
            "seconds": cache.seconds,
        }


def outputs(rows: Mapping[str, Array]) -> Outputs:
    """Returns what rows that were looked up say, in float32; what a cache does not hold is None."""
    wide = {name: row.astype(jnp.float32) for name, row in rows.items()}
    gradients = {name: row for name, row in wide.items() if name not in ("logits", "embedding")}
    return Outputs(wide["logits"], wide.get("embedding"), grads=gradients)


def _needs(lines: Lines, name: str) -> bool:
    # Cotangents of the student may read the teacher's logits, so these are always looked up
    return name == "logits" or any(f"teacher.{name}" in line.term.needs for line in lines.values())


def _direction(gradient: Float[Array, " b *shape"]) -> Float[Array, " b *shape"]:
    """Returns gradients of largest magnitude 1: those of a confident teacher would vanish in float16."""
    wide = gradient.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=tuple(range(1, wide.ndim)), keepdims=True)
    return wide / jnp.where(largest > 0, largest, 1)


def _budget(memory: Any, where: Sharding) -> int:
    """Returns the bytes that a cache may take of each device."""
    if memory != "auto":
        return int(memory * _GIB)
    known: list[Any] = [device.memory_stats() for device in where.addressable_devices]  # type: ignore[attr-defined]
    if not all(known):  # a CPU: its memory is the host's
        return 0
    free = min(_SHARE * (stats["bytes_limit"] - stats["bytes_in_use"]) for stats in known if stats)
    return int(hosts.least(free))  # what one process has no room for is on no device


def _facts(teacher: Teacher, dataset: Dataset, dtype: str, platform: str) -> dict[str, Any]:
    """Returns all that the rows depend on."""
    return {
        "format": _FORMAT,
        **said_by(teacher, dataset, dtype, platform),
        "pad": dataset.pad,
        "flip": dataset.flip,
        "kept_in": "float16",
    }
