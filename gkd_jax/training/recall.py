"""A teacher that is remembered: its outputs on the views of the training images, from a cache instead of the network.

A cache is worth its memory because the views are few (162 of an image for CIFAR), and a run of 240 epochs sees most of
them more than once; the next run, seed, method or schedule with the same teacher asks it nothing at all.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int

from gkd_jax import objective
from gkd_jax.config import CACHES
from gkd_jax.data import Dataset
from gkd_jax.objective import Lines
from gkd_jax.outputs import Batch, Gradient, Outputs
from gkd_jax.reporting.messages import say
from gkd_jax.training import checkpoint
from gkd_jax.training.cache import Cache
from gkd_jax.training.forward import forward, forward_shapes
from gkd_jax.training.shards import Shards, key
from gkd_jax.training.teacher import Teacher

_FORMAT = 1  # to be raised whenever the same facts come to mean other rows
_BATCH = 1024  # views that the teacher is asked for at a time
_GB = 1 << 30
_SHARE = 0.5  # of the device's free memory, where no budget is given


def unheld(level: str, lines: Lines) -> list[str]:
    """Returns what the lines need of the teacher and a cache of that level does not hold, for a message."""
    held = {f"teacher.{name}" for name in _held(level)}
    needs = {need for line in lines.values() for need in line.term.needs}
    missing = {need for need in needs if isinstance(need, str) and need not in held}
    missing |= {f"the gradient {g.name}" for g in needs if isinstance(g, Gradient) and not _remembered(level, g)}
    return sorted(missing)


def _held(level: str) -> tuple[str, ...]:
    return ("logits", "embedding")[: CACHES.index(level)]


def _remembered(level: str, gradient: Gradient) -> bool:
    return level == "gradients" and gradient.at == "input" and gradient.cacheable


class Recall:
    """What a run remembers of its teacher.

    Attributes:
      level: what is held.
      cache: the rows.
      how: they are filled; None before the first epoch.
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
        polled: Callable[[], None] = lambda: None,
    ):
        """Opens the cache: takes its memory, and reads what earlier runs left on disk.

        Args:
          level: one of `gkd_jax.config.CACHES` but the first.
          teacher: who is asked for what is missing.
          lines: of the objective; `unheld` of them must be empty.
          dataset: whose training images are seen.
          gather: `(examples, views) -> Batch`, jitted with its images, shared out among the devices.
          dtype: that the teacher computes in.
          memory: gigabytes of each device that may be taken; "auto" for half of what is free.
          folder: of caches, one folder for each kind of rows; None for none on disk.
          where: the sharding of what every device holds whole.
          waits: whether a program must end before the next may be dispatched.
          polled: called between batches; may raise.

        Raises:
          TooLarge: if the rows fit no memory.
        """
        self.level, self._views = level, dataset.num_views
        self._gradients = tuple(g for g in objective.gradients(lines) if _remembered(level, g))
        shape = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
        shapes = forward_shapes(teacher.model, teacher.variables, shape, self._gradients, train=False)
        rows = {name: row.shape[1:] for name, row in self._rows(shapes).items()}
        self._needed = tuple(name for name in rows if name not in _held(level) or _needs(lines, name))
        shards = None
        if folder is not None:
            facts = _facts(teacher, dataset, dtype)
            shards = {name: _shards(folder, {**facts, "rows": name}) for name in rows}
        devices = len(where.device_set)
        size = len(dataset.train_images) * self._views
        self.cache = Cache(
            self._ask(teacher, gather),
            rows,
            size=size,
            batch=-(-min(_BATCH, size) // devices) * devices,
            where=where,
            device_budget=_budget(memory, where),
            shards=shards,
            say=say,
            waits=waits,
            polled=polled,
        )
        self.how: Literal["up front", "by epoch"] | None = None

    def _rows(self, outputs: Outputs) -> dict[str, Any]:
        """Returns what is kept of a teacher's outputs, by the name of its rows."""
        kept = {name: getattr(outputs, name) for name in _held(self.level)}
        return {**kept, **{gradient.name: outputs.grads[gradient.name] for gradient in self._gradients}}

    def _ask(self, teacher: Teacher, gather: Callable[..., Batch]) -> Callable[[Array], Mapping[str, Array]]:
        def look(variables: Any, batch: Batch) -> dict[str, Array]:
            images = batch.images["weak"]
            # What may be cached draws nothing: any key will do
            key = jax.random.key(0)
            outputs, _ = forward(teacher.model, variables, images, self._gradients, train=False, batch=batch, key=key)
            directions = {name: _direction(gradient) for name, gradient in outputs.grads.items()}
            rows = self._rows(outputs._replace(grads=directions))
            return {name: row.astype(jnp.float16) for name, row in rows.items()}

        answer = jax.jit(look)
        return lambda ids: answer(teacher.variables, gather(ids // self._views, ids % self._views))

    def __call__(self, index: Array, view: Array, where: Sharding, epochs: int) -> dict[str, Array]:
        """Returns the rows of an epoch's plan; computes those that are missing.

        The first call chooses between filling the cache up front and epoch by epoch, whichever costs this run less, and
        says which and why.

        Args:
          index: of the plan, for all students.
          view: likewise.
          where: the sharding of what is returned.
          epochs: to come, this one included.

        Returns:
          [*index.shape, *row] each.
        """
        ids = np.asarray(index).astype(np.int64) * self._views + np.asarray(view)
        if self.how is None:
            self.how, why = self.cache.choose(epochs, ids.size, self._views)
            held = f"{self.cache.nbytes / 1e6:,.1f} MB of {self.level} in the {self.cache.tier}'s memory"
            say(f"teacher.cache: {held}, {self.cache.from_disk:,} views of them from disk; {why}")
            if self.how == "up front":
                self.cache.fill_all()
        self.cache.fill(ids)
        return self.cache.lookup(ids, where, self._needed)

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
        return int(memory * _GB)
    known: list[Any] = [device.memory_stats() for device in where.device_set]  # type: ignore[attr-defined]
    if not all(known):  # a CPU: its memory is the host's
        return 0
    return int(min(_SHARE * (stats["bytes_limit"] - stats["bytes_in_use"]) for stats in known if stats))


def _facts(teacher: Teacher, dataset: Dataset, dtype: str) -> dict[str, Any]:
    """Returns all that the rows depend on."""
    return {
        "format": _FORMAT,
        "teacher": teacher.finished.config["student"]["model"],
        "variables": checkpoint.sha256(teacher.finished.variables),
        "data": dataset.digest,
        "mean": [float(x) for x in dataset.mean],
        "std": [float(x) for x in dataset.std],
        "pad": dataset.pad,
        "flip": dataset.flip,
        "computed_in": dtype,
        "kept_in": "float16",
    }


def _shards(folder: pathlib.Path, facts: Mapping[str, Any]) -> Shards:
    shards = Shards(folder / key(**facts), say)
    shards.describe(facts)
    return shards
