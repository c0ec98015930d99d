"""Dense 3x3 convolutions on the CPU by kernels of our own (`gkd_jax.native`), which are twice as fast as XLA's.

They need one device that has all of the machine's threads: XLA does not know how to share their work among devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gkd_jax.models.convolution_cpu import Halves, Images, Kernel
from gkd_jax.models.trilinear import closed

_VECTOR = 8  # channels of a result: the kernels compute so many at once


def _convolution(stride: int, x: Images, kernel: Kernel) -> Halves:
    batch, height, width, _ = x.shape
    shape = (batch, height // stride, width // stride)
    return _call("convolution", stride, x, _padded(kernel, 3), shape, kernel.shape[3])


def _input_gradient(stride: int, dy: Halves, kernel: Kernel) -> Images:
    batch, height, width, _ = dy.shape
    shape = (batch, height * stride, width * stride)
    return _call("input_gradient", stride, dy, _padded(kernel, 2), shape, kernel.shape[2])


def _weight_gradient(stride: int, x: Images, dy: Halves) -> Kernel:
    return _call("weight_gradient", stride, x, _padded(dy, 3), (3, 3, x.shape[3]), dy.shape[3])


def _padded(x: Array, axis: int) -> Array:
    more = -x.shape[axis] % _VECTOR
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(4)]) if more else x


def _call(name: str, stride: int, one: Array, other: Array, shape: tuple[int, int, int], channels: int) -> Array:
    """Returns what the foreign function `name` gives, [*shape, channels]."""
    if 0 in (*one.shape, *other.shape):
        return jnp.zeros((*shape, channels), one.dtype)
    result = jax.ShapeDtypeStruct((*shape, channels + -channels % _VECTOR), one.dtype)
    function = jax.ffi.ffi_call(f"gkd_{name}_{one.dtype.name}", result, vmap_method="sequential")
    return function(one, other, stride=np.int64(stride))[..., :channels]


_closed = closed(_convolution, _input_gradient, _weight_gradient)


# A jit of its own, of the same name as the other: equal shapes are traced once, and `count.macs` knows both by it.
@functools.partial(jax.jit, static_argnames="stride")
def convolve_3x3(x: Images, kernel: Kernel, *, stride: int) -> Halves:
    """Returns what `convolution_cpu.convolve_3x3` does, of arrays of a type in `native.TYPES`.

    Raises:
      TypeError: if channels, element types or, at stride 2, sides do not fit.
    """
    if x.shape[3] != kernel.shape[2] or x.dtype != kernel.dtype or x.shape[1] % stride or x.shape[2] % stride:
        raise TypeError(f"images {x.dtype}{x.shape} and kernel {kernel.dtype}{kernel.shape} at stride {stride}")
    return _closed(stride, x, kernel)
