"""Max-pooling in two forms, as convolutions have theirs."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def max_pool(
    x: Float[Array, "b h w k"], size: int = 2, *, stride: int = 2, padding: int = 0, form: str = "matmul"
) -> Float[Array, "b i j k"]:
    """Returns the largest of each window of `size` x `size` positions; one that does not fit in is left out.

    Of equal ones the first in reading order gets the derivative, as in PyTorch. NaN stays NaN.

    Args:
      x: the maps.
      size: side of a window.
      stride: from one window to the next.
      padding: positions around the map that are never the largest; less than `size`.
      form: as in `convolution.convolve`. "plain" is `flax.linen.max_pool`, which exporters recognise; all others are
        comparisons of slices, whose derivatives run four times as fast on CPU and fuse elsewhere.
    """
    around = (padding, padding)
    if form == "plain":
        return nn.max_pool(x, (size, size), (stride, stride), (around, around))
    if padding:
        x = jnp.pad(x, ((0, 0), around, around, (0, 0)), constant_values=-jnp.inf)
    # Columns before rows: of equal ones the first row comes before the first column
    return _largest(_largest(x, 2, size, stride), 1, size, stride)


def _largest(x: Array, axis: int, size: int, stride: int) -> Array:
    last = (x.shape[axis] - size) // stride * stride
    slices = (lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(size))
    return functools.reduce(_larger, slices)


def _larger(x: Array, y: Array) -> Array:
    # `jnp.maximum` would halve the derivative among equals.
    return jnp.where((x >= y) | jnp.isnan(x), x, y)
