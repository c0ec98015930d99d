"""A convolution and its two gradients, each differentiated by the other two.

They are the three faces of one trilinear form,
`<conv(x, w), dy> = <x, input_gradient(dy, w)> = <w, weight_gradient(x, dy)>`, so the derivatives of each are the other
two. With a rule that says so for each, the set is closed: reverse gradients of any order stay in it.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

Face = Callable[[Any, Array, Array], Array]  # of what is static, the stride say, and two of x, w and dy


def closed(convolution: Face, input_gradient: Face, weight_gradient: Face) -> Face:
    """Returns the convolution, differentiable in reverse mode any number of times; forward mode raises TypeError.

    Args:
      convolution: (static, x, w) -> y; what is static has a hash.
      input_gradient: (static, dy, w) -> dx.
      weight_gradient: (static, x, dy) -> dw.
    """
    conv, dx, dw = (_ruled(face) for face in (convolution, input_gradient, weight_gradient))
    conv.defvjp(_keep(conv), lambda static, kept, dy: (dx(static, dy, kept[1]), dw(static, kept[0], dy)))
    dx.defvjp(_keep(dx), lambda static, kept, ddx: (conv(static, ddx, kept[1]), dw(static, ddx, kept[0])))
    dw.defvjp(_keep(dw), lambda static, kept, ddw: (dx(static, kept[1], ddw), conv(static, kept[0], ddw)))
    return conv


def _ruled(face: Face) -> Any:
    # A function of its own, since rules are attached to it
    return jax.custom_vjp(lambda static, one, other: face(static, one, other), nondiff_argnums=(0,))


def _keep(face: Face) -> Callable[..., Any]:
    return lambda static, one, other: (face(static, one, other), (one, other))
