"""What is seen at each step: the plan of an epoch, and the batch that a row of it stands for."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from gkd_jax import data
from gkd_jax.data import Dataset
from gkd_jax.outputs import Batch
from gkd_jax.training.devices import put, replicated
from gkd_jax.training.recall import outputs
from gkd_jax.training.state import PLAN, STRONG, run_key
from gkd_jax.training.step import Fixed, MakeBatch, Plan


class Batches:
    """The training images of a run on its devices, and the functions that choose and gather some of them."""

    def __init__(self, config: Mapping[str, Any], dataset: Dataset, mesh: Mesh, *, apart: bool, strong: bool):
        """Places nothing yet.

        Args:
          config: of the run.
          dataset: whose training images are seen.
          mesh: of the devices.
          apart: whether the students are shared out along the mesh's axis "seed".
          strong: whether the view "strong" is seen beside the view "weak".
        """
        self._config, self._dataset, self._mesh = config, dataset, mesh
        self._apart, self._strong = apart, strong

    @functools.cached_property
    def images(self) -> tuple[Array, Array]:
        """The padded images and their labels, on all devices."""
        dataset = self._dataset
        padded = data.pad_images(dataset.train_images, dataset.pad)
        images, labels = put((padded, dataset.train_labels), replicated(self._mesh))
        return images, labels

    def plan(self, epoch: int) -> Plan:
        """Returns what is seen in an epoch, from 0."""
        index, view = self._draw(self._keys(PLAN), epoch)
        return Plan(index, view, key=self._strong_key if self._strong else None)

    @property
    def _each(self) -> bool:
        """Whether each of several students sees batches of its own."""
        return bool(self._config["seeds"]) and not self._config["seeds_share_batches"]

    def _keys(self, use: int) -> Array:
        config = self._config
        if self._each:
            return jnp.stack([jax.random.fold_in(run_key(seed), use) for seed in config["seeds"]])
        given = config["batch_seed"]
        return jax.random.fold_in(run_key(config["seed"] if given is None else given), use)

    @functools.cached_property
    def _strong_key(self) -> Array:
        """Of the whole run: each step folds its own number into it."""
        placed: Array = put(self._keys(STRONG), self._by_student())
        return placed

    @functools.cached_property
    def _draw(self) -> Callable[..., tuple[Array, Array]]:
        draw = functools.partial(
            data.epoch_plan,
            num_examples=len(self._dataset.train_labels),
            batch_size=self._config["batch_size"],
            num_views=self._dataset.num_views,
        )
        if self._each:
            draw = jax.vmap(draw, in_axes=(0, None))
        return jax.jit(draw, out_shardings=self.by_column)

    @functools.cached_property
    def by_column(self) -> NamedSharding:
        """Where a plan lies."""
        return self._by_student(None, "data")

    def _by_student(self, *axes: str | None) -> NamedSharding:
        own = ("seed" if self._apart else None,) if self._each else ()
        return NamedSharding(self._mesh, PartitionSpec(*own, *axes))

    def gather(self, index: Int[Array, " m"], view: Int[Array, " m"]) -> Batch:
        """Returns a batch of these examples in these views alone, shared out among all devices."""
        return self._gathered(Fixed(*self.images), index, view)

    @functools.cached_property
    def _gathered(self) -> Callable[..., Batch]:
        make = self.make(("seed", "data"))  # all devices, however the students share them
        return jax.jit(lambda fixed, index, view: make(Plan(index[None], view[None]), fixed, jnp.int32(0)))

    def make(self, axes: tuple[str, ...] = ("data",)) -> MakeBatch:
        """Returns the function that gathers a batch from the images, shared out along these axes of the mesh."""
        dataset, rows = self._dataset, NamedSharding(self._mesh, PartitionSpec(axes))

        def crops(fixed: Fixed, index: Array, view: Array) -> UInt8[Array, "b h w c"]:
            found = data.crop_flip(fixed.images, index, view, pad=dataset.pad, flip=dataset.flip)
            return jax.lax.with_sharding_constraint(found, rows)

        def strong(key: Array, fixed: Fixed, index: Array) -> UInt8[Array, "b h w c"]:
            """A crop of its own, as published, and what is done to it."""
            views, drawn = jax.random.split(key)
            view = jax.random.randint(views, index.shape, 0, dataset.num_views, dtype=jnp.int32)
            return jax.lax.with_sharding_constraint(data.strong(drawn, crops(fixed, index, view)), rows)

        def make(plan: Plan, fixed: Fixed, step: Int[Array, ""]) -> Batch:
            row = step % plan.index.shape[0]
            index, view, teacher = jax.tree.map(lambda x: x[row], (plan.index, plan.view, plan.teacher))
            seen = {"weak": crops(fixed, index, view)}
            if plan.key is not None:
                seen["strong"] = strong(jax.random.fold_in(plan.key, step), fixed, index)
            labels = fixed.labels[index]
            return Batch(
                images={name: data.normalise(images, dataset.mean, dataset.std) for name, images in seen.items()},
                labels=labels,
                targets=jax.nn.one_hot(labels, dataset.num_classes),
                index=index,
                view=view,
                step=step,
                teacher={"weak": outputs(teacher)} if teacher else {},
            )

        return make
