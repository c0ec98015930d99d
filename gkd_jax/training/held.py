"""A run whose images lie in the host's memory: each batch's images travel to the devices with its plan."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from gkd_jax import data
from gkd_jax.outputs import Batch
from gkd_jax.training.batches import Batches
from gkd_jax.training.devices import fetch, put, replicated
from gkd_jax.training.step import Fixed, MakeBatch, Pixels, Plan


class HeldBatches(Batches):
    """As `Batches`, with the same plans and bit-equal batches, for images that the devices have no room for."""

    _fetched: tuple[Array, np.ndarray] | None = None  # indices on the devices, and on the host

    @functools.cached_property
    def images(self) -> tuple[Array, Array]:
        """No image, and the labels."""
        none = np.zeros((0, *self._padded.shape[1:]), np.uint8)
        placed: tuple[Array, Array] = put((none, self._dataset.train_labels), replicated(self._mesh))
        return placed

    @functools.cached_property
    def _padded(self) -> np.ndarray:
        return data.pad_images(self._dataset.train_images, self._dataset.pad)

    def at(self, plan: Plan, row: int) -> Plan:
        """Returns one row of an epoch's plan, and its images."""
        # Both the plan and the rows of a cache have the step as the axis before the batch
        axis = plan.index.ndim - 2
        index, view, teacher = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, axis), (plan.index, plan.view, plan.teacher)
        )
        images = put(self._padded[np.take(self._on_host(plan.index), [row], axis)], self._by_student(None, "data"))
        return Plan(index, view, teacher, plan.key, Pixels(images, None, None))

    def _on_host(self, index: Array) -> np.ndarray:
        """Returns an epoch's indices, fetched once: a fetched row would wait for the steps that were dispatched."""
        if self._fetched is None or self._fetched[0] is not index:
            self._fetched = index, fetch(index)
        return self._fetched[1]

    def gather(self, index: Int[Array, " m"], view: Int[Array, " m"]) -> Batch:
        """As there."""
        rows = NamedSharding(self._mesh, PartitionSpec(None, ("seed", "data")))
        images = put(self._padded[np.asarray(index)][None], rows)
        return self._gathered(Fixed(*self.images), index, view, images)

    @functools.cached_property
    def _gathered(self) -> Callable[..., Batch]:
        make = self.make(("seed", "data"))

        def gathered(fixed: Fixed, index: Array, view: Array, images: Array) -> Batch:
            plan = Plan(index[None], view[None], pixels=Pixels(images, None, None))
            return make(plan, fixed, jnp.int32(0))

        return jax.jit(gathered)

    def make(self, axes: tuple[str, ...] = ("data",)) -> MakeBatch:
        """As there, from the images that came with the plan."""
        made = super().make(axes)

        def make(plan: Plan, fixed: Fixed, step: Int[Array, ""]) -> Batch:
            assert plan.pixels is not None
            here: UInt8[Array, "b h w c"] = plan.pixels.images[0]
            # The first of them is example 0 of these images alone; the step and the index stay those of the run
            places = jnp.arange(here.shape[0], dtype=jnp.int32)[None]
            local = plan._replace(index=places, pixels=None)
            batch = made(local, fixed._replace(images=here, labels=fixed.labels[plan.index[0]]), step)
            return batch._replace(index=plan.index[0])

        return make
