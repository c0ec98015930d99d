"""One convolution in several forms: what is fast differs from backend to backend."""

from jax import lax
from jaxtyping import Array, Float

from gkd_jax import native
from gkd_jax.models import convolution_cpu, convolution_native
from gkd_jax.models.depthwise import depthwise_taps

CONV_FORMS = ("matmul", "cpu", "native", "plain")
_LEAST = 8  # channels of maps: of images, which have fewer, the derivatives that lax.conv brings are the faster ones


def convolve(
    x: Float[Array, "b h w k"],
    kernel: Float[Array, "kh kw i o"],
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    form: str = "matmul",
) -> Float[Array, "b y z o"]:
    """Returns the convolution of `x` (NHWC) with `kernel` (HWIO, i = k / groups), zero-padded alike on all four sides.

    The forms give the same values and reverse-mode gradients of every order, up to rounding:

    * "matmul": 1x1 kernels multiply `[b·h·w, k]` by `[k, o]`, after a slice where strided, in groups
      `[g, b·h·w, k/g]` by `[g, k/g, o/g]`; depthwise kernels are `depthwise_taps`, their gradient one sum, and raise
      TypeError in forward mode (`jax.jvp`, `jax.hessian`); everything else is `lax.conv_general_dilated`.
    * "cpu": as "matmul", but a depthwise kernel's gradient is a sum for each tap, and ungrouped 3x3 kernels with a
      padding of 1 that read eight channels or more are `convolution_cpu.convolve_3x3`, at stride 1 and, on maps of even
      height and width, at stride 2. These raise TypeError in forward mode.
    * "native": as "cpu", but these convolutions, also of fewer channels, are kernels of our own where the element type
      is one of `native.TYPES`; for one device, of a CPU, if `native.available()`.
    * "plain": `lax.conv_general_dilated` throughout, which exporters and other runtimes recognise.
    """
    height, width, _, out = kernel.shape
    if form != "plain" and groups == x.shape[-1] == out:
        return depthwise_taps(x, kernel, stride=stride, padding=padding, one_sum=form == "matmul")
    if form != "plain" and (height, width, padding) == (1, 1, 0):
        return _pointwise(_every(x, stride), kernel[0, 0], groups)
    halves = stride == 2 and x.shape[1] % 2 == x.shape[2] % 2 == 0
    if (height, width, padding, groups) == (3, 3, 1, 1) and (stride == 1 or halves):
        if form == "native" and x.dtype.name in native.TYPES:
            return convolution_native.convolve_3x3(x, kernel, stride=stride)
        if form in ("cpu", "native") and x.shape[-1] >= _LEAST:
            return convolution_cpu.convolve_3x3(x, kernel, stride=stride)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _every(x: Float[Array, "b h w k"], stride: int) -> Float[Array, "b i j k"]:
    if stride == 1:
        return x
    # Apart from the product: where a convolution reads the same map, XLA for GPUs (jaxlib 0.10.2) dies of fusing both
    return lax.optimization_barrier(x[:, ::stride, ::stride])


def _pointwise(x: Float[Array, "b h w k"], kernel: Float[Array, "i o"], groups: int) -> Float[Array, "b h w o"]:
    # Positions in one dimension, since XLA's CPU backend is four times slower in the kernel's gradient with three.
    positions, (inputs, out) = x.reshape(-1, x.shape[-1]), kernel.shape
    if groups == 1:
        return (positions @ kernel).reshape(*x.shape[:3], out)
    # Groups first: with them between the others the same backend is up to twice as slow.
    split = positions.reshape(-1, groups, inputs).swapaxes(0, 1)
    kernels = kernel.reshape(inputs, groups, out // groups).swapaxes(0, 1)
    return (split @ kernels).swapaxes(0, 1).reshape(*x.shape[:3], out)
