"""Dense 3x3 convolutions with derivatives of their own, for XLA's CPU backend.

There the derivatives that `lax.conv_general_dilated` brings are slow: the weight gradient is a convolution with a
window as large as the image, the input gradient one with a reversed kernel, and both leave the fast library that
forward convolutions and matrix products run in. So here they are written as forward convolutions and products; but for
the weight gradients of few channels, where that was measured to be slower and the library's own are kept.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gkd_jax.models.trilinear import closed

Images = Float[Array, "b h w c"]
Halves = Float[Array, "b i j k"]  # as large as the images where the stride is 1, else half as high and wide
Kernel = Float[Array, "3 3 c k"]

# Up to so many channels the copies of an outer product cost more than a convolution with a large window. That holds for
# a device with one thread, as two devices on two cores are; and outside of loops, where such windows are slow.
_FEW = 32


def _convolve(x: Array, kernel: Array, stride: tuple[int, int], padding: tuple[tuple[int, int], ...]) -> Array:
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolution(stride: int, x: Images, kernel: Kernel) -> Halves:
    channels, out = kernel.shape[2:]
    if stride == 1 and x.shape[2] % 2 == 0 and max(channels, out) <= 16 and min(channels, out) >= 8:
        # Two neighbours of a row at a time: XLA has no fast convolution for so few channels, out least of all.
        pair = jnp.stack([jnp.pad(kernel, ((0, 0), (p, 1 - p), (0, 0), (0, 0))) for p in (0, 1)], 3)
        y = _convolve(x, pair.reshape(3, 4, channels, 2 * out), (1, 2), ((1, 1), (1, 1)))
        return y.reshape(*x.shape[:3], out)
    return _convolve(x, kernel, (stride, stride), ((1, 1), (1, 1)))


def _input_gradient(stride: int, dy: Halves, kernel: Kernel) -> Images:
    if stride == 1:
        return _convolution(1, dy, kernel[::-1, ::-1].swapaxes(2, 3))
    # Along each axis x[2n] met the kernel's middle at dy[n]; x[2n+1] its last at dy[n] and its first at dy[n+1].
    phases = ((slice(1, 2), (0, 0)), (slice(None, None, -2), (0, 1)))
    kernel = kernel.swapaxes(2, 3)
    rows = [
        jnp.stack([_convolve(dy, kernel[p, q], (1, 1), (pad_y, pad_x)) for q, pad_x in phases], 3)
        for p, pad_y in phases
    ]
    batch, height, width, _ = dy.shape
    return jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, kernel.shape[3])


def _weight_gradient(stride: int, x: Images, dy: Halves) -> Kernel:
    # So that BatchNorm and ReLU are not computed again in each of the copies; jaxlib 0.10.2 drops it before it fuses.
    x, dy = lax.optimization_barrier((x, dy))
    channels, out = x.shape[3], dy.shape[3]
    height, width = dy.shape[1:3]
    if stride == 1 and max(channels, out) <= _FEW and min(channels, out) >= 8:
        transposed = jax.linear_transpose(
            lambda kernel: _convolve(x, kernel, (1, 1), ((1, 1), (1, 1))),
            jax.ShapeDtypeStruct((3, 3, channels, out), x.dtype),
        )
        return transposed(dy)[0]
    if stride == 1:
        # One outer product of three copies of x, shifted along a row, with three of dy, shifted along a column, has
        # all nine taps: half the copying of nine copies of x.
        x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
        dy = jnp.pad(dy, ((0, 0), (1, 1), (0, 0), (0, 0)))
        x = jnp.concatenate([x[:, :, q : q + width] for q in range(3)], 3)
        dy = jnp.concatenate([dy[:, 2 - p : 2 - p + height] for p in range(3)], 3)
        return _product(x, dy).reshape(3, channels, 3, out).transpose(2, 0, 1, 3)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [x[:, p : p + 2 * height : 2, q : q + 2 * width : 2] for p in range(3) for q in range(3)]
    return _product(jnp.concatenate(taps, 3), dy).reshape(3, 3, channels, out)


def _product(x: Float[Array, "b h w m"], dy: Float[Array, "b h w n"]) -> Float[Array, "m n"]:
    """Returns the sum over all positions of the outer products of the channels, summed in at least float32."""
    # Two dimensions each: to contract three, XLA's CPU backend would transpose its operands first.
    x, dy = x.reshape(-1, x.shape[3]), dy.reshape(-1, dy.shape[3])
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return lax.dot_general(x, dy, (((0,), (0,)), ((), ())), preferred_element_type=wide).astype(x.dtype)


_closed = closed(_convolution, _input_gradient, _weight_gradient)


# A jit of its own: equal shapes are traced once, and `count.macs` knows these multiply-adds by its name.
@functools.partial(jax.jit, static_argnames="stride")
def convolve_3x3(x: Images, kernel: Kernel, *, stride: int) -> Halves:
    """Returns `y[b,i,j,k] = Σ_{p,q,c} x[b, stride·i+p-1, stride·j+q-1, c] · kernel[p,q,c,k]`, zero beyond the edges.

    Values and reverse-mode gradients of every order are those of `lax.conv_general_dilated` with a padding of 1, up to
    rounding. Forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) raises TypeError.

    Args:
      x: the images.
      kernel: HWIO, of the same type as the images.
      stride: 1 or 2, in both directions; for 2, height and width must be even.
    """
    return _closed(stride, x, kernel)
