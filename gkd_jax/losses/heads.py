"""Learned projections of the student's side, as pure functions: the only file here that knows a module system."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Params = Mapping[str, Any]


class Head(NamedTuple):
    """A linear map of the last axis, trained with the student.

    Attributes:
      init: `(key, width_in, width_out) -> params`, the kernel by LeCun's normal (variance 1 / width_in,
        truncated), a bias of zeros.
      apply: `(params, x [... width_in]) -> [... width_out]`, in float32 whatever the type of `x`.
    """

    init: Callable[[PRNGKeyArray, int, int], Params]
    apply: Callable[[Params, Array], Array]


def _head(use_bias: bool) -> Head:
    def init(key: PRNGKeyArray, width_in: int, width_out: int) -> Params:
        dense = nn.Dense(width_out, use_bias=use_bias, dtype=jnp.float32)
        return dense.init(key, jnp.zeros((1, width_in), jnp.float32))["params"]

    def apply(params: Params, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        dense = nn.Dense(params["kernel"].shape[-1], use_bias=use_bias, dtype=jnp.float32)
        projected: Array = dense.apply({"params": params}, x)  # type: ignore[assignment]
        return projected

    return Head(init, apply)


LINEAR = _head(use_bias=True)
"""For embeddings, [b i] -> [b o]."""

POINTWISE = _head(use_bias=False)
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
