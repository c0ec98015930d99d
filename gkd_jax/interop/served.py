"""The function that is exported: images as they come from a camera or a file in, logits out.

Preprocessing is part of it, so that whoever runs it elsewhere cannot get it wrong.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8

from gkd_jax import data, models
from gkd_jax.losses import fields
from gkd_jax.models.simkd import Reused, reuse_classifier
from gkd_jax.outputs import Model, Variables

Logits = Float32[np.ndarray, "n c"]
Images = UInt8[np.ndarray, "n h w k"]

INPUT, OUTPUT = "images", "logits"
"""What the argument and the result are called, where the format has names."""


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
    """A network to be exported, its variables and preprocessing inside.

    Attributes:
      name: the network's.
      logits: images of any number to logits, in float32.
      class_names: in the order of the logits.
      image_shape: height, width and channels.
      mean, std: by which `logits` normalises, of each channel, as shares of full brightness.
    """

    name: str
    logits: Callable[[UInt8[Array, "b h w k"]], Float32[Array, "b c"]]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def images(self, count: Any) -> jax.ShapeDtypeStruct:
        """Returns the shape of so many images; `count` may be a symbol of `jax.export`."""
        return jax.ShapeDtypeStruct((count, *self.image_shape), jnp.uint8)


def network(name: str, num_classes: int, *, final: tuple[int, int, int] | None = None, conv: str = "plain") -> Model:
    """Returns a network in float32, as it is exported: with plain convolutions, which other runtimes recognise.

    Args:
      name: of the student, see `gkd_jax.models.names`.
      num_classes: c.
      final: height, width and channels of the map that the classifier of a teacher reads, where the student speaks
        through one (`gkd_jax.models.simkd`); its kernel and bias are among the variables.
      conv: form of the convolutions, where it is not for export.
    """
    student = models.create(name, num_classes=num_classes, conv=conv)
    if final is None:
        return student
    reused = Reused.of_zeros(final, num_classes)
    return reuse_classifier(student, reused, pool=fields.pool, compute=models.Compute(conv=conv))


def serve(
    name: str,
    model: Model,
    variables: Variables,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    mean: np.ndarray,
    std: np.ndarray,
) -> Served:
    """Returns a network with its variables and preprocessing as one function of images.

    BatchNorm goes into the convolutions where the network has such a form: `Model.fold`.
    """
    if model.fold is not None:
        model, variables = model.fold(variables)
    # On the host, so that they are constants for whatever device the function is traced for
    held = jax.tree.map(np.asarray, variables)

    def logits(images: UInt8[Array, "b h w k"]) -> Float32[Array, "b c"]:
        known = jax.tree.map(jnp.asarray, held)
        outputs, _ = model.apply(known, data.normalise(images, mean, std), train=False)
        return outputs.logits.astype(jnp.float32)

    constants = ([float(value) for value in values] for values in (mean, std))
    return Served(name, logits, class_names, image_shape, *map(tuple, constants))
