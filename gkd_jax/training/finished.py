"""A trained network, read back from the directory of its run."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gkd_jax import data, models
from gkd_jax.data import AnyDataset
from gkd_jax.errors import UserError
from gkd_jax.losses import fields
from gkd_jax.models.simkd import Reused, reuse_classifier
from gkd_jax.outputs import Model, Variables
from gkd_jax.training import checkpoint, frozen

CONFIG, DATA, CHECKPOINTS = "config.json", "data.json", "checkpoints"
REUSED = "teacher_final"  # in `data.json`: height, width and channels of the map that a reused classifier reads
_BATCH = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """A network with all that is needed to use it.

    Attributes:
      config: the run's configuration, resolved.
      class_names: in the order of the network's outputs.
      image_shape: height, width and channels of the images it takes.
      mean, std: of each channel, as shares of full brightness.
      model: pure functions.
      variables: for `model.apply`; the averages, where the run kept any.
      step: how many steps it was trained for.
      record: which images it was trained on, see `data.identified`.
    """

    config: Mapping[str, Any]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    model: Model
    variables: Variables
    step: int
    record: Mapping[str, Any]
    _probabilities: Callable[[Variables, np.ndarray], jax.Array] = dataclasses.field(init=False, repr=False)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns the probability of each class for each image.

        Args:
          images: uint8 [n, h, w, c], or [n, h, w] if the network takes one channel; n may be 0.

        Returns:
          float32 [n, classes]; each row adds up to 1.

        Raises:
          ValueError: if the images are of another shape or type.
        """
        images = np.asarray(images)
        if images.ndim == 3 and self.image_shape[2] == 1:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            h, w, c = self.image_shape
            raise ValueError(f"images must be uint8 [n, {h}, {w}, {c}], not {images.dtype} {list(images.shape)}")
        parts = []
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            # One shape for every batch, however many images there are: compiled once
            padded = np.concatenate([part, np.zeros((_BATCH - len(part), *self.image_shape), np.uint8)])
            parts.append(np.asarray(self._probabilities(self.variables, padded))[: len(part)])
        return np.concatenate(parts) if parts else np.zeros((0, len(self.class_names)), np.float32)

    def __post_init__(self) -> None:
        def probabilities(variables: Variables, images: jax.Array) -> jax.Array:
            outputs, _ = self.model.apply(variables, data.normalise(images, self.mean, self.std), train=False)
            return jax.nn.softmax(outputs.logits)

        object.__setattr__(self, "_probabilities", jax.jit(probabilities))  # the dataclass is frozen


def network(
    config: Mapping[str, Any], num_classes: int, platform: str | None = None, reused: Reused | None = None
) -> Model:
    """Returns the network that a run with this configuration trains, for this machine or another `platform`.

    Args:
      config: of the run, resolved.
      num_classes: of its data.
      platform: to run it on, where it is not this machine's.
      reused: what the student takes over from its teacher, where the configuration says that it does.
    """
    form = models.conv_form(platform or jax.default_backend())
    student = models.create(config["student"]["model"], num_classes=num_classes, dtype=config["dtype"], conv=form)
    if not reuses(config):
        return student
    assert reused is not None
    compute = models.Compute(jnp.dtype(config["dtype"]), form)
    return reuse_classifier(student, reused, pool=fields.pool, compute=compute)


def reuses(config: Mapping[str, Any]) -> bool:
    """Returns whether the student of a run with this configuration speaks through its teacher's classifier."""
    return bool(config["student"].get("reuse_classifier", False))


def rebuilt(config: Mapping[str, Any], record: Mapping[str, Any], num_classes: int) -> Model:
    """Returns the network of a run as its directory describes it, without its teacher.

    Args:
      config: of the run, resolved, perhaps with another compute type.
      record: the content of its `data.json`.
      num_classes: of its data.
    """
    if not reuses(config):
        return network(config, num_classes)
    height, width, channels = record[REUSED]
    return network(config, num_classes, reused=Reused.of_zeros((height, width, channels), num_classes))


def facts(dataset: AnyDataset) -> dict[str, Any]:
    """Returns what a network must know of its data, as JSON can hold it: the content of `data.json`."""
    return {
        **dataset.record(),
        "num_examples": dataset.sizes.train,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mean": [float(x) for x in dataset.mean],
        "std": [float(x) for x in dataset.std],
    }


def read(file: pathlib.Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      UserError: if it is missing or not JSON.
    """
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; is {file.parent} the directory of a run?") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds {type(found).__name__}, not the fields that gkd_jax writes there")
    return found


def _registered(workdir: pathlib.Path, config: Mapping[str, Any], known: Mapping[str, Any]) -> Model:
    name = config["student"]["model"]
    if name not in models.names():
        raise UserError(
            f"{workdir} holds a network {name!r}, which is not registered; if the run's configuration file registers "
            "it, run that file first"
        )
    return rebuilt(config, known, len(known["class_names"]))


def load(workdir: str | pathlib.Path, *, seed: int | None = None, averaged: bool = True) -> Finished:
    """Returns the student of a run, as it was after the last epoch (averaged, with `ema` on).

    Args:
      workdir: the run's directory.
      seed: which of the students that were trained together; the first by default.
      averaged: whether to take the averages, where there are any.

    Raises:
      UserError: if it is not the directory of a finished run, its checkpoint is missing or damaged, or the run has no
        such seed.
    """
    students = load_seeds(workdir, averaged=averaged)
    if seed is None:
        return next(iter(students.values()))
    if seed not in students:
        raise UserError(f"{workdir} has no student of seed {seed}; it has: {', '.join(map(str, students))}")
    return students[seed]


def load_seeds(workdir: str | pathlib.Path, *, averaged: bool = True) -> dict[int, Finished]:
    """Returns all students of a run by seed, in the order of its configuration; see `load`."""
    workdir = pathlib.Path(workdir)
    config, known = read(workdir / CONFIG), read(workdir / DATA)
    try:
        image_shape = tuple(known["image_shape"])
        mean, std = (np.asarray(known[name], np.float32) for name in ("mean", "std"))
        total = config["epochs"] * data.steps_per_epoch(known["num_examples"], config["batch_size"])
        ema = bool(config["ema"]) and averaged
        several = config.get("seeds", [])
        seeds = several or [config["seed"]]
        model = _registered(workdir, config, known)
    except (KeyError, TypeError) as error:
        raise UserError(f"{workdir}: {CONFIG} or {DATA} is not what gkd_jax wrote there (no {error})") from error
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    if several:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(seeds), *x.shape), x.dtype), shapes)
    kept = {name: shapes[name] for name in frozen.TRAINED if name in shapes}
    wanted = {"ema": kept} if ema else kept
    tree, step = _restored(workdir, wanted, total)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    tree = {**(tree["ema"] if ema else tree), **frozen.read(workdir, frozen.not_trained(shapes), device)}
    return {
        seed: Finished(
            config=config,
            class_names=tuple(known["class_names"]),
            image_shape=(image_shape[0], image_shape[1], image_shape[2]),
            mean=mean,
            std=std,
            model=model,
            variables=jax.tree.map(lambda x, place=place: x[place], tree) if several else tree,
            step=step,
            record=known,
        )
        for place, seed in enumerate(seeds)
    }


def _restored(workdir: pathlib.Path, wanted: Mapping[str, Any], total: int) -> tuple[Any, int]:
    """Returns what the last checkpoint of a run of `total` steps holds of `wanted`, and its step."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    store = checkpoint.Checkpoints(workdir / CHECKPOINTS)
    try:
        step = store.latest
        if step is None:
            raise UserError(f"{workdir / CHECKPOINTS}: no checkpoint here; start the run again to train")
        if step < total:
            raise UserError(f"{workdir} has not finished, it is at step {step} of {total}; start its run again")
        return store.load(checkpoint.abstract_like(wanted, device), step, partial=True), step
    finally:
        store.close()
