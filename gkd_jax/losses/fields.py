"""What the terms read from a network's outputs, and how maps of different size are brought together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gkd_jax.errors import UserError
from gkd_jax.outputs import Outputs


def _read(outputs: Outputs | None, name: str) -> Any:
    found = getattr(outputs, name, None)
    if found is None:
        raise UserError(f"a term needs {name!r} of a network's outputs: not computed, or not held by the cache")
    return found


def logits(outputs: Outputs | None) -> Any:
    """Returns the logits [b c], or their shape where `outputs` holds shapes.

    Raises:
      UserError: if there are no outputs.
    """
    return _read(outputs, "logits")


def embedding(outputs: Outputs | None) -> Any:
    """Returns the embedding [b d], or its shape where `outputs` holds shapes.

    Raises:
      UserError: if it was not computed.
    """
    return _read(outputs, "embedding")


def feature(outputs: Outputs | None, stage: int) -> Any:
    """Returns the feature map [b h w k] of a stage, or its shape where `outputs` holds shapes.

    Args:
      outputs: of a network.
      stage: index into the features, negative from the deepest.

    Raises:
      UserError: if the features were not computed, or there are fewer.
    """
    maps = _read(outputs, "features")
    if not -len(maps) <= stage < len(maps):
        raise UserError(f"stage is {stage}, but the network has {len(maps)} features: {-len(maps)} to {len(maps) - 1}")
    return maps[stage]


def gradient(outputs: Outputs | None, name: str) -> Any:
    """Returns the gradient that was asked for under `name`, or its shape where `outputs` holds shapes.

    Raises:
      UserError: if it was not computed.
    """
    grads = _read(outputs, "grads")
    if name not in grads:
        raise UserError(f"a term needs the gradient {name!r}: not computed, or not held by the cache")
    return grads[name]


def _windows(size: int, bins: int) -> np.ndarray:
    """Returns the matrix [bins size] whose rows average the windows of adaptive pooling."""
    i = np.arange(bins)[:, None]
    start, stop = i * size // bins, -(-(i + 1) * size // bins)
    inside = (start <= np.arange(size)[None]) & (np.arange(size)[None] < stop)
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def pool(x: Float[Array, "b h w k"], height: int, width: int) -> Float[Array, "b height width k"]:
    """Average-pools maps to `height` x `width` positions, in float32.

    Bin i of n averages the rows from floor(i h / n) to ceil((i + 1) h / n), as `adaptive_avg_pool2d` of PyTorch does:
    equal blocks where n divides h, overlapping ones elsewhere.

    Raises:
      ValueError: if the maps are smaller than what they are to become.
    """
    if height > x.shape[1] or width > x.shape[2]:
        raise ValueError(f"cannot pool maps of {x.shape[1]}x{x.shape[2]} positions to {height}x{width}")
    x = x.astype(jnp.float32)
    if x.shape[1:3] == (height, width):
        return x
    rows, columns = _windows(x.shape[1], height), _windows(x.shape[2], width)
    # The default would round to TF32 or bfloat16 on accelerators.
    return jnp.einsum("ih,bhwk,jw->bijk", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


def pool_alike(
    x: Float[Array, "b h w i"], y: Float[Array, "b u v j"], side: int | None = None
) -> tuple[Float[Array, "b p q i"], Float[Array, "b p q j"]]:
    """Average-pools two maps to the smaller of their heights and widths, and to at most `side` of each if given."""
    height, width = (min(x.shape[a], y.shape[a], side or x.shape[a]) for a in (1, 2))
    return pool(x, height, width), pool(y, height, width)


def tokens(x: Float[Array, "b h w k"]) -> Float[Array, "b n k"]:
    """Returns the positions of maps as one set an example."""
    return x.reshape(x.shape[0], -1, x.shape[3])
