"""Learned maps of the student's side, as pure functions: the only file here that knows a module system."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Params = Mapping[str, Any]
Initializer = Callable[..., Any]

_EPSILON = 1e-5  # of BatchNorm, as in the networks


class Head(NamedTuple):
    """A map of the last axis, or of maps, trained with the student.

    Attributes:
      init: `(key, width_in, width_out) -> params`.
      apply: `(params, x [... width_in]) -> [... width_out]`, in float32 whatever the type of `x`.
    """

    init: Callable[[PRNGKeyArray, int, int], Params]
    apply: Callable[[Params, Array], Array]


LECUN: Initializer = nn.initializers.lecun_normal()
"""Variance 1 / inputs, normal, truncated: flax's default, and ours for plain projections."""

TORCH: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within ±1/√inputs: PyTorch's default, `kaiming_uniform_` with a = √5, of layers that are not transposed."""

TORCH_TRANSPOSED: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
"""The same of PyTorch's transposed layers, whose weights it reads the other way round."""

KAIMING_UNIFORM: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""Uniform within ±√(3 / inputs): PyTorch's `kaiming_uniform_` with a = 1."""

KAIMING_FAN_OUT: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Normal with variance 2 / (size² · outputs)."""


def block(
    size: int = 1,
    *,
    stride: int = 1,
    transposed: bool = False,
    bias: bool = False,
    norm: bool = False,
    relu: bool = False,
    kernel_init: Initializer = TORCH,
) -> Head:
    """Returns what all heads are made of: a linear map or convolution, perhaps BatchNorm, perhaps a ReLU.

    Terms exist in training only, so BatchNorm always takes the batch's own statistics: the biased variance, in
    float32, and no running averages are kept. Its scale starts at 1, its shift and the layer's bias at 0 (PyTorch's
    layers start with random biases).

    Args:
      size: side of the kernel. 1 with stride 1 is a matrix product over the last axis, whatever comes before it; others
        take maps [b h w i], padded to keep their size where the stride is 1.
      stride: in both directions.
      transposed: multiply height and width by the stride instead, as PyTorch's `ConvTranspose2d` does with a padding of
        `(size - stride) / 2`.
      bias: whether the layer has one. It has no effect before BatchNorm.
      norm: whether BatchNorm follows.
      relu: whether a ReLU ends it.
      kernel_init: of the kernel.
    """

    def layer(width: int) -> nn.Dense | nn.Conv | nn.ConvTranspose:
        common: dict[str, Any] = {"use_bias": bias, "dtype": jnp.float32, "kernel_init": kernel_init}
        if size == stride == 1:
            return nn.Dense(width, **common)
        side = size - 1 - (size - stride) // 2 if transposed else size // 2
        window: dict[str, Any] = {"strides": (stride, stride), "padding": ((side, side), (side, side))}
        return (nn.ConvTranspose if transposed else nn.Conv)(width, (size, size), **window, **common)

    def init(key: PRNGKeyArray, width_in: int, width_out: int) -> Params:
        example = (1, width_in) if size == stride == 1 else (1, size, size, width_in)
        params = layer(width_out).init(key, jnp.zeros(example, jnp.float32))["params"]
        if not norm:
            return params
        return {**params, "norm": {"scale": jnp.ones(width_out), "bias": jnp.zeros(width_out)}}

    def apply(params: Params, x: Float[Array, "*batch i"]) -> Float[Array, "*other o"]:
        linear = {name: params[name] for name in ("kernel", "bias") if name in params}
        y: Array = layer(params["kernel"].shape[-1]).apply({"params": linear}, x)  # type: ignore[assignment]
        if norm:
            y = _normalise(params["norm"], y)
        return jax.nn.relu(y) if relu else y

    return Head(init, apply)


def _normalise(params: Params, x: Array) -> Array:
    axes, channels = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + (-1,)
    centred = x - jnp.mean(x, axes, keepdims=True)
    # Around the mean: the difference of moments loses the variance of channels far from zero.
    inverse = jax.lax.rsqrt(jnp.mean(centred**2, axes, keepdims=True) + _EPSILON)
    return centred * inverse * params["scale"].reshape(channels) + params["bias"].reshape(channels)


def stack(*blocks: Head, between: Callable[[int], int] = lambda width_out: width_out) -> Head:
    """Returns the composition of `blocks`, the first applied first.

    Args:
      *blocks: of the stack.
      between: `width_out -> width` of what is between the blocks; the width that leaves the stack, by default.
    """

    def init(key: PRNGKeyArray, width_in: int, width_out: int) -> Params:
        widths = [width_in, *[between(width_out)] * (len(blocks) - 1), width_out]
        keys = jax.random.split(key, len(blocks))
        return {f"block{i}": b.init(keys[i], widths[i], widths[i + 1]) for i, b in enumerate(blocks)}

    def apply(params: Params, x: Float[Array, "*batch i"]) -> Float[Array, "*other o"]:
        for i, each in enumerate(blocks):
            x = each.apply(params[f"block{i}"], x)
        return x

    return Head(init, apply)


def regressor(student_side: int, teacher_side: int, *, relu: bool = True) -> Head:
    """Returns a convolution without bias, BatchNorm and ReLU, which takes the student's maps to the teacher's size.

    It is RepDistiller's and mdistiller's `ConvReg`, which FitNets and WKD-F use there: 1x1 for equal sizes, 3x3 with
    stride 2 where the student's side is twice the teacher's, transposed 4x4 with stride 2 where it is half. For other
    sizes they take a kernel of 1 + the difference, or fail; ours is 1x1 then, and does not change the size.

    Args:
      student_side: height of the student's maps.
      teacher_side: height of the teacher's.
      relu: whether it ends in a ReLU, as the teacher's features usually do.
    """
    if student_side == 2 * teacher_side:
        return block(3, stride=2, norm=True, relu=relu)
    if 2 * student_side == teacher_side:
        return block(4, stride=2, transposed=True, norm=True, relu=relu, kernel_init=TORCH_TRANSPOSED)
    return block(norm=True, relu=relu)


LINEAR = block(bias=True, kernel_init=LECUN)
"""For embeddings, [b i] -> [b o]."""

POINTWISE = block(kernel_init=LECUN)
"""For maps, [b h w i] -> [b h w o]: a 1x1 convolution, written as the matrix product that it is. Without a bias it also
maps gradients and directions, where zero has to stay zero."""


def match(head: Head, key: PRNGKeyArray, student_width: int, teacher_width: int) -> dict[str, Params]:
    """Returns the heads of a term that compares these widths: `{}` where they are equal, or else one projection."""
    if student_width == teacher_width:
        return {}
    return {"projection": head.init(key, student_width, teacher_width)}


def project(head: Head, heads: Mapping[str, Params], x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
    """Returns `x` through the projection that `match` made, in float32; where it made none, `x` itself in float32."""
    if "projection" not in heads:
        return x.astype(jnp.float32)
    return head.apply(heads["projection"], x)
