"""The teacher: a finished network, fitted to a student's run."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gkd_jax.data import AnyDataset
from gkd_jax.errors import UserError
from gkd_jax.models.simkd import Reused
from gkd_jax.outputs import Model, Norms, Variables
from gkd_jax.training import checkpoint
from gkd_jax.training.finished import Finished, load, rebuilt
from gkd_jax.training.forward import forward_shapes


class Teacher(NamedTuple):
    """A network that is asked and never changed.

    Attributes:
      model, variables: with BatchNorm folded into the convolutions, where the network has such a form.
      kernel, bias: of its classifier.
      finished: as it was loaded.
      norms: what its `Model.norms` said before they were folded.
    """

    model: Model
    variables: Variables
    kernel: Array
    bias: Array
    finished: Finished
    norms: Norms | None = None

    def reused(self, image_shape: tuple[int, int, int]) -> Reused:
        """Returns what a student takes over that speaks through its classifier; see `final_shape`."""
        return Reused(final_shape(self.model, image_shape, self.variables), self.kernel, self.bias)


def final_shape(
    model: Model, image_shape: tuple[int, int, int], variables: Variables | None = None
) -> tuple[int, int, int]:
    """Returns height, width and channels of a teacher's final map; None for the variables that it would begin with.

    Raises:
      UserError: if it reports none.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    if variables is None:
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
    final = forward_shapes(model, variables, images, (), train=False).final
    if final is None:
        raise UserError("student.reuse_classifier needs a teacher that reports its final map, and this one does not")
    _, height, width, channels = final.shape
    return height, width, channels


def prepare(workdir: str | pathlib.Path, name: str, dataset: AnyDataset, dtype: str) -> Teacher:
    """Returns the network of a finished run as the teacher of a student on `dataset`.

    Args:
      workdir: the teacher's run.
      name: the network that the configuration says it is.
      dataset: the student's.
      dtype: to compute in, whatever the teacher was trained in.

    Raises:
      UserError: if the run is not finished, or its network is another one or made for other images or classes.
    """
    finished = load(workdir)
    held = finished.config["student"]["model"]
    if held != name:
        raise UserError(f"teacher.model is {name!r}, but {workdir} holds a {held!r}")
    if len(finished.class_names) != dataset.num_classes:
        raise UserError(
            f"{workdir}: the teacher knows {len(finished.class_names)} classes, but {dataset.name} has "
            f"{dataset.num_classes}; teacher and student need the same classes"
        )
    if finished.image_shape != dataset.image_shape:
        raise UserError(
            f"{workdir}: the teacher takes images of {finished.image_shape}, but those of {dataset.name} are "
            f"{dataset.image_shape}"
        )
    if not (np.array_equal(finished.mean, dataset.mean) and np.array_equal(finished.std, dataset.std)):
        raise UserError(
            f"{workdir}: the teacher's images were normalised by mean {finished.mean} and std {finished.std}, those of "
            f"{dataset.name} are by {dataset.mean} and {dataset.std}; teacher and student need the same"
        )
    model = rebuilt({**finished.config, "dtype": dtype}, finished.record, dataset.num_classes)
    variables = finished.variables
    kernel, bias = model.classifier(variables)
    norms = model.norms(variables) if model.norms is not None else None
    if model.fold is not None:
        model, variables = model.fold(variables)
    return Teacher(model, variables, kernel, bias, finished, norms)


def said_by(teacher: Teacher, dataset: AnyDataset, dtype: str, platform: str) -> dict[str, Any]:
    """Returns what the teacher's outputs on an image depend on, as JSON can hold it; each kind of cache adds its own.

    Args:
      teacher: whose outputs they are.
      dataset: of the images.
      dtype: that it computes in.
      platform: that it computes on: each rounds in its own way, a GPU to TF32.
    """
    return {
        "teacher": teacher.finished.config["student"]["model"],
        "variables": checkpoint.sha256(teacher.finished.variables),
        "data": dataset.digest,
        "mean": [float(x) for x in dataset.mean],
        "std": [float(x) for x in dataset.std],
        "computed_in": dtype,
        "computed_on": platform,
    }


def leak(dataset: AnyDataset, finished: Finished) -> str | None:
    """Returns what to warn of if the teacher was trained on the student's validation images; None if it was not."""
    if not dataset.sizes.val:
        return None
    seen = dataset.seen_by(finished.record)
    if seen is None:
        return f"the teacher was trained on {finished.record['source']}; it may know the validation images"
    if seen:
        return (
            f"the teacher was trained on {seen} of the {dataset.sizes.val} validation images, accuracies on them "
            "are too high; use the same data.val_fraction, data.split_seed and data.num_train for both"
        )
    return None
