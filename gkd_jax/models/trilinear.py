"""A convolution and its two gradients, each differentiated by the other two.

They are the three faces of one trilinear form,
`<conv(x, w), dy> = <x, input_gradient(dy, w)> = <w, weight_gradient(x, dy)>`, so the derivatives of each are the other
two. With a rule that says so for each, the set is closed: reverse gradients of any order stay in it.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

Face = Callable[[int, Array, Array], Array]  # of a stride and two of x, w and dy


def closed(convolution: Face, input_gradient: Face, weight_gradient: Face) -> Face:
    """Returns the convolution, differentiable in reverse mode any number of times; forward mode raises TypeError.

    Args:
      convolution: (stride, x, w) -> y.
      input_gradient: (stride, dy, w) -> dx.
      weight_gradient: (stride, x, dy) -> dw.
    """
    conv, dx, dw = (_ruled(face) for face in (convolution, input_gradient, weight_gradient))
    conv.defvjp(_keep(conv), lambda stride, kept, dy: (dx(stride, dy, kept[1]), dw(stride, kept[0], dy)))
    dx.defvjp(_keep(dx), lambda stride, kept, ddx: (conv(stride, ddx, kept[1]), dw(stride, ddx, kept[0])))
    dw.defvjp(_keep(dw), lambda stride, kept, ddw: (dx(stride, kept[1], ddw), conv(stride, kept[0], ddw)))
    return conv


def _ruled(face: Face) -> Any:
    # A function of its own, since rules are attached to it
    return jax.custom_vjp(lambda stride, one, other: face(stride, one, other), nondiff_argnums=(0,))


def _keep(face: Face) -> Callable[..., Any]:
    return lambda stride, one, other: (face(stride, one, other), (one, other))
