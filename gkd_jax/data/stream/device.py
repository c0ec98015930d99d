"""What is left to do on the device: mirroring, normalising, and what a teacher said of a kept view as logits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float, Float16, Float32, Int, UInt8

from gkd_jax.data.views import normalise


def mirrored(images: UInt8[Array, "b h w c"], flip: Bool[Array, " b"]) -> UInt8[Array, "b h w c"]:
    """Returns images of which those with `flip` are mirrored."""
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def seen(
    images: UInt8[Array, "b h w c"],
    flip: Bool[Array, " b"],
    mean: Sequence[float] | np.ndarray,
    std: Sequence[float] | np.ndarray,
) -> Float32[Array, "b h w c"]:
    """Returns images as a network sees them: those with `flip` mirrored, all normalised; see `data.normalise`."""
    return normalise(mirrored(images, flip), mean, std)


def teacher_logits(
    ids: Int[Array, "b k"], logs: Float16[Array, "b k"], rest: Float16[Array, " b"], num_classes: int
) -> Float32[Array, "b c"]:
    """Returns the logarithms of a teacher's probabilities, as far as they were kept: logits for any loss.

    The classes in `ids` have what was kept, the other c - k an equal share of `exp(rest)` each; then all are divided by
    their sum, which float16 left a little beside 1. At a temperature T these logits give softmax(logits / T) as the
    teacher's own would, but for the classes that share.

    Args:
      ids: the likeliest classes, different ones.
      logs: logarithms of their probabilities.
      rest: the logarithm of what all others have together; nothing reads it where k is c.
      num_classes: c.
    """
    others = max(num_classes - ids.shape[-1], 1)
    share = rest.astype(jnp.float32) - jnp.log(jnp.float32(others))
    dense = jnp.broadcast_to(share[:, None], (ids.shape[0], num_classes))
    rows = jnp.arange(ids.shape[0])[:, None]
    return jax.nn.log_softmax(dense.at[rows, ids].set(logs.astype(jnp.float32)))


def put(batch: Mapping[str, np.ndarray], sharding: Sharding) -> dict[str, Array]:
    """Returns a batch on the devices: of several hosts each gives its own part, and gets the whole."""
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def ahead(batches: Iterator[Any], place: Callable[[Any], Any], depth: int = 2) -> Iterator[Any]:
    """Yields `place(batch)` for each batch, `depth` of them before they are asked for: so they travel meanwhile."""
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(place(batch))
        if len(waiting) > depth:
            yield waiting.pop(0)
    yield from waiting


def soft_targets(
    ids: Int[np.ndarray, "m k"], logs: Float16[np.ndarray, "m k"], rest: Float16[np.ndarray, " m"], num_classes: int
) -> Float32[np.ndarray, "m c"]:
    """Returns a teacher's probabilities of all classes, on the host; see `teacher_logits`."""
    dense: Float[Array, "m c"] = teacher_logits(jnp.asarray(ids), jnp.asarray(logs), jnp.asarray(rest), num_classes)
    return np.exp(np.asarray(dense))
