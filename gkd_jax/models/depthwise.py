"""Depthwise convolutions as one shifted multiply-add for each tap of the kernel."""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gkd_jax.models.trilinear import closed


class Static(NamedTuple):
    """The stride, the sides of the kernel and those of the padded maps."""

    stride: int
    height: int
    width: int
    high: int
    across: int

    @property
    def rows(self) -> int:
        """Of the result."""
        return (self.high - self.height) // self.stride + 1

    @property
    def columns(self) -> int:
        """Of the result."""
        return (self.across - self.width) // self.stride + 1


# A jit of its own: equal shapes are traced once, and `count.macs` knows these multiply-adds by its name.
@functools.partial(jax.jit, static_argnames=("stride", "padding", "one_sum"))
def depthwise_taps(
    x: Float[Array, "b h w k"], kernel: Float[Array, "kh kw 1 k"], *, stride: int, padding: int, one_sum: bool = False
) -> Float[Array, "b i j k"]:
    """Returns the depthwise convolution of `x` with `kernel`, zero-padded alike on all four sides.

    XLA's CPU backend runs depthwise convolutions in naive loops, 20 to 60 times slower; elsewhere the taps fuse. They
    are summed in at least float32, as convolutions are.

    Args:
      x: the maps.
      kernel: a kernel for each channel.
      stride: in both directions.
      padding: on each side.
      one_sum: whether the kernel's gradient is one sum for all taps, and not one for each: two kernels on a GPU, not
        eighteen, for a small map's gradient is all launches. Forward mode then raises TypeError.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    convolution = _in_one_sum if one_sum else _taps
    return convolution(Static(stride, *kernel.shape[:2], *x.shape[1:3]), x, kernel)


def _shifts(static: Static, x: Array) -> Iterator[tuple[tuple[int, int], Array]]:
    """Yields each tap's place in the kernel and what it meets."""
    step = static.stride
    for i, j in itertools.product(range(static.height), range(static.width)):
        rows = slice(i, i + step * (static.rows - 1) + 1, step)
        yield (i, j), x[:, rows, j : j + step * (static.columns - 1) + 1 : step]


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _taps(static: Static, x: Array, kernel: Array) -> Array:
    total = jnp.zeros((x.shape[0], static.rows, static.columns, x.shape[3]), _wide(x).dtype)
    for place, shifted in _shifts(static, x):
        total = total + _wide(shifted) * _wide(kernel[place][None, None])
    return total.astype(x.dtype)


def _input_gradient(static: Static, dy: Array, kernel: Array) -> Array:
    maps = jax.ShapeDtypeStruct((dy.shape[0], static.high, static.across, dy.shape[3]), dy.dtype)
    (dx,) = jax.linear_transpose(lambda x: _taps(static, x, kernel), maps)(dy)
    return dx


def _weight_gradient(static: Static, x: Array, dy: Array) -> Array:
    # Stacked, so that a compiler sees one sum; it reads the maps themselves and keeps no copy of a stack
    shifted = jnp.stack([shifted for _, shifted in _shifts(static, x)])
    taps = jnp.sum(_wide(shifted) * _wide(dy)[None], (1, 2, 3))
    return taps.reshape(static.height, static.width, 1, -1).astype(dy.dtype)


_in_one_sum = closed(_taps, _input_gradient, _weight_gradient)
