"""A run whose images do not lie on the devices: what each step is given, and what the teacher said of it before."""

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from gkd_jax import data, hosts
from gkd_jax.config import cache_folder, kept_views
from gkd_jax.data import stream
from gkd_jax.data.stream import Kept, Share, Specification, Streamed
from gkd_jax.errors import UserError
from gkd_jax.outputs import Batch, Model, Outputs, Variables
from gkd_jax.reporting.messages import say
from gkd_jax.training.devices import mesh as mesh_of
from gkd_jax.training.devices import put, replicated
from gkd_jax.training.recall import views_at_once
from gkd_jax.training.state import STRONG, run_key
from gkd_jax.training.step import Fixed, MakeBatch, Pixels, Plan
from gkd_jax.training.teacher import Teacher, said_by

_FORMAT = 1  # of what kept views mean
_ANSWERS = ("ids", "logs", "rest")  # of a kept view
_DEPTH = 2  # batches that are on their way to the devices
STREAM = "stream"  # in a checkpoint's metadata


class StreamedBatches:
    """The batches of a run whose images are streamed; stands where `Batches` stands."""

    def __init__(
        self, config: Mapping[str, Any], dataset: Streamed, mesh: Mesh, total: int, *, strong: bool, kept: Kept | None
    ):
        """Starts nothing yet.

        Args:
          config: of the run.
          dataset: what is streamed.
          mesh: of the devices.
          total: steps of the run.
          strong: whether the view "strong" is seen beside the view "weak".
          kept: the views to show; None for random ones.
        """
        self._config, self._dataset, self._mesh, self._total = config, dataset, mesh, total
        self._strong, self._kept = strong, kept
        self._feed: stream.Feed | None = None
        self._ahead: Iterator[Plan] | None = None

    @functools.cached_property
    def images(self) -> tuple[Array, Array]:
        """None of them: they come with the plan."""
        none = np.zeros((0, *self._dataset.image_shape), np.uint8), np.zeros(0, np.int32)
        placed: tuple[Array, Array] = put(none, replicated(self._mesh))
        return placed

    @property
    def _seed(self) -> int:
        given = self._config["batch_seed"]
        return int(self._config["seed"] if given is None else given)

    def feed(self, start: int) -> stream.Feed:
        """Returns the batches from a step on."""
        return stream.train_feed(
            self._dataset,
            seed=self._seed,
            epochs=self._config["epochs"],
            batch_size=self._config["batch_size"],
            share=Share(hosts.index(), hosts.count()),
            kept=self._kept,
            workers=self._config["data"]["workers"],
            start=start,
        )

    def at(self, step: int) -> Plan:
        """Returns the plan of one row for a step; steps are asked for one after another."""
        if self._ahead is None:
            self._feed = self.feed(step)
            self._ahead = stream.ahead(self._feed, self._placed, _DEPTH)
        return next(self._ahead)

    def state(self, step: int) -> dict[str, Any]:
        """Returns what to keep in a checkpoint of a step."""
        return {STREAM: self.feed(step).state().decode()}

    def check(self, held: Mapping[str, Any] | None) -> None:
        """Raises `UserError` if a checkpoint was written by a run that saw other batches."""
        if held and STREAM in held:
            self.feed(0).restore(held[STREAM].encode())

    def close(self) -> None:
        """Ends the worker processes."""
        if self._feed is not None:
            self._feed.close()

    @property
    def _key(self) -> Array | None:
        return put(jax.random.fold_in(run_key(self._seed), STRONG), replicated(self._mesh)) if self._strong else None

    def _placed(self, batch: Mapping[str, np.ndarray]) -> Plan:
        rows = NamedSharding(self._mesh, PartitionSpec(None, ("seed", "data")))
        row = stream.put({name: array[None] for name, array in batch.items()}, rows)
        view = row["crop"] if self._kept is not None else jnp.zeros_like(row["index"])
        teacher: dict[str, Array] = {name: row[name] for name in _ANSWERS if name in row}
        return Plan(row["index"], view, teacher, self._key, Pixels(row["images"], row["flip"], row["labels"]))

    def plan(self, epoch: int) -> Plan:
        """Returns the shapes of a plan, for what is compiled before the first batch is there."""
        rows = NamedSharding(self._mesh, PartitionSpec(None, ("seed", "data")))
        size = self._config["batch_size"]

        def one(dtype: Any, *shape: int) -> Any:
            return jax.ShapeDtypeStruct((1, size, *shape), dtype, sharding=rows)

        teacher = {}
        if self._kept is not None:
            top = self._kept.specification.top
            teacher = {"ids": one(jnp.int32, top), "logs": one(jnp.float16, top), "rest": one(jnp.float16)}
        pixels = Pixels(one(jnp.uint8, *self._dataset.image_shape), one(jnp.bool_), one(jnp.int32))
        return Plan(one(jnp.int32), one(jnp.int32), teacher, self._key, pixels)

    def make(self, axes: tuple[str, ...] = ("data",)) -> MakeBatch:
        """Returns the function that makes a batch of a plan's row, shared out along these axes of the mesh."""
        dataset, rows = self._dataset, NamedSharding(self._mesh, PartitionSpec(axes))

        def make(plan: Plan, fixed: Fixed, step: Int[Array, ""]) -> Batch:
            index, view, teacher, pixels = jax.tree.map(
                lambda x: jax.lax.with_sharding_constraint(x[0], rows),
                (plan.index, plan.view, plan.teacher, plan.pixels),
            )
            crops: UInt8[Array, "b h w c"] = stream.mirrored(pixels.images, pixels.flip)
            seen = {"weak": crops}
            if plan.key is not None:
                seen["strong"] = data.strong(jax.random.fold_in(plan.key, step), crops)
            taught = {}
            if teacher:
                logits = stream.teacher_logits(teacher["ids"], teacher["logs"], teacher["rest"], dataset.num_classes)
                taught = {"weak": Outputs(logits)}
            return Batch(
                images={name: data.normalise(images, dataset.mean, dataset.std) for name, images in seen.items()},
                labels=pixels.labels,
                targets=jax.nn.one_hot(pixels.labels, dataset.num_classes),
                index=index,
                view=view,
                step=step,
                teacher=taught,
            )

        return make


def kept_for(
    config: Mapping[str, Any], dataset: Streamed, teacher: Teacher, workdir: pathlib.Path, polled: Callable[[], None]
) -> Kept:
    """Returns the kept views of a run's teacher; computes what of them is not there.

    Raises:
      UserError: if they cannot be read or written, or the teacher cannot be remembered.
    """
    given, crops = config["teacher"], kept_views(config["teacher"]["cache"])
    assert crops is not None
    specification = Specification(
        examples=dataset.sizes.train,
        classes=dataset.num_classes,
        crops=crops,
        top=min(given["cache_top"], dataset.num_classes),
        size=dataset.image_size,
        flip=dataset.flip,
        facts={
            "format": _FORMAT,
            **said_by(teacher, dataset, config["dtype"], jax.default_backend()),
        },
    )
    if hot := softened(config, specification.top, dataset.num_classes):
        say(
            f"teacher.cache: {specification.top} of {dataset.num_classes} classes are kept, enough at a temperature of "
            f"1; at that of {', '.join(hot)} the others weigh too much to be left out (teacher.cache_top keeps more)"
        )
    kept = Kept(cache_folder(given["cache_dir"], "teachers") or workdir, specification)
    devices = jax.local_devices()  # each host computes parts of its own
    shared = mesh_of(devices)
    rows = NamedSharding(shared, PartitionSpec("data"))
    model, variables = teacher.model, jax.device_put(jax.device_get(teacher.variables), replicated(shared))

    @jax.jit
    def answer(variables: Variables, images: Array, flip: Array) -> Array:
        seen = stream.seen(images, flip, dataset.mean, dataset.std)
        return model.apply(variables, seen, train=False)[0].logits

    def ask(images: np.ndarray, flip: np.ndarray) -> np.ndarray:
        placed = jax.device_put((images, flip), rows)
        return np.asarray(jax.block_until_ready(answer(variables, *placed)))

    lacking = len(kept.missing())
    took = f"{kept.specification.nbytes / 1e6:,.1f} MB for {crops} views of each image, in {kept.folder}"
    say(f"teacher.cache: {took}; {lacking} of {kept.specification.parts} parts are missing")
    batch = -(-views_at_once(devices[0].platform) // len(devices)) * len(devices)
    share = Share(hosts.index(), hosts.count())
    workers = config["data"]["workers"]
    stream.fill(kept, dataset, ask, batch=batch, share=share, workers=workers, say=say, polled=polled)
    hosts.exchange("")  # nobody reads before all have written
    if missing := kept.missing():
        raise UserError(
            f"{kept.file(missing[0])} is not there, which another process was to write: all processes need one folder, "
            "teacher.cache_dir on a disk that they share"
        )
    return kept


def softened(config: Mapping[str, Any], top: int, num_classes: int) -> list[str]:
    """Returns the lines of an objective whose temperature is another than 1, if only the `top` classes are kept.

    What `top` classes leave out is spread evenly over the others: little at 1, most of the loss at 4
    (`experiments/results/stream.md`).
    """
    if top >= num_classes:
        return []
    terms = config["objective"]["terms"]
    return [label for label, line in terms.items() if line["weight"] and line.get("temperature", 1) != 1]


class StreamedEvaluator:
    """Asks a network about the images of a split again and again; they are read anew each time."""

    def __init__(
        self,
        model: Model,
        dataset: Streamed,
        split: str,
        devices: list[jax.Device],
        workers: int | str,
        size: int = 256,
    ):
        """Reads nothing yet.

        Args:
          model: the network.
          dataset: what is streamed.
          split: "val" or "test".
          devices: to share each batch out among.
          workers: processes that read images.
          size: images of a batch.
        """
        self._dataset, self._split, self._workers = dataset, split, workers
        self._batch = -(-size // len(devices)) * len(devices)
        shared = mesh_of(devices)
        self._rows = NamedSharding(shared, PartitionSpec("data"))
        self._replicated = replicated(shared)

        def logits(variables: Variables, images: Array) -> Array:
            return model.apply(variables, data.normalise(images, dataset.mean, dataset.std), train=False)[0].logits

        def correct(variables: Variables, images: Array, labels: Array) -> Array:
            return jnp.sum(jnp.argmax(logits(variables, images), -1) == labels)

        self._logits, self._correct = (jax.jit(f, out_shardings=self._replicated) for f in (logits, correct))
        self.labels = np.zeros(0, np.int32)  # of all images, once they were read for `logits`

    def _batches(self) -> Iterator[Mapping[str, Array]]:
        share = Share(hosts.index(), hosts.count())
        with stream.centre_feed(
            self._dataset, self._split, batch_size=self._batch, share=share, workers=self._workers
        ) as feed:
            yield from stream.ahead(feed, lambda batch: stream.put(batch, self._rows))

    def __call__(self, variables: Variables) -> float:
        """Returns the share of the images that the network with these variables classifies correctly."""
        variables, counts = put(variables, self._replicated), []
        for batch in self._batches():
            counts.append(jax.block_until_ready(self._correct(variables, batch["images"], batch["labels"])))
        return int(sum(jax.device_get(counts))) / getattr(self._dataset.sizes, self._split)

    def logits(self, variables: Variables) -> np.ndarray:
        """Returns what the network says about each image, in their order, on the host."""
        variables, parts, labels = put(variables, self._replicated), [], []
        whole = jax.jit(lambda x: x, out_shardings=self._replicated)
        for batch in self._batches():
            parts.append(np.asarray(self._logits(variables, batch["images"]), np.float32))
            labels.append(np.asarray(whole(batch["labels"])))
        count = getattr(self._dataset.sizes, self._split)
        self.labels = np.concatenate(labels)[:count]
        return np.concatenate(parts)[:count]
