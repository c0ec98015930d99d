"""The same function in operations that converters of other runtimes recognise.

Windows that are reduced, which is what pooling is to JAX, are foreign to some of them: LiteRT's quantiser has no sum
over a window and takes the -inf around a map for a value of it, ONNX Runtime has no maximum over windows that also lie
along batch and channels. Such an operation is replaced by others of the same value.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array

Function = Callable[[Array], Array]
Rule = Callable[..., Array]

# Functions within a function, and where their program stands among the parameters; they are written out
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}


def rewritten(function: Function, argument: jax.ShapeDtypeStruct, rules: Mapping[str, Rule]) -> Function:
    """Returns a function of the same values, with some operations replaced.

    Args:
      function: of one array.
      argument: its shape and type, for which alone the result is.
      rules: by the name of the operation: `(operand, **parameters) -> result`.
    """
    traced = jax.make_jaxpr(function)(argument)

    def again(x: Array) -> Array:
        (result,) = _run(traced.jaxpr, traced.consts, [x], rules)
        return result

    return again


def _run(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], rules: Mapping[str, Rule]) -> list[Any]:
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        name, given = equation.primitive.name, [value(atom) for atom in equation.invars]
        inner = equation.params.get(_CALLS.get(name, ""))
        if inner is not None:
            closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
            results = _run(closed.jaxpr, closed.consts, given, rules)
        elif name in rules:
            results = [rules[name](*given, **equation.params)]
        else:
            found = equation.primitive.bind(*given, **equation.params)
            results = list(found) if equation.primitive.multiple_results else [found]
        values.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _of_maps(rule: Rule, primitive: Any) -> Rule:
    """Returns a rule for windows over the positions of maps, [b h w k]; all others stay as they are."""

    @functools.wraps(rule)
    def either(x: Array, **parameters: Any) -> Array:
        dilated = {*parameters["base_dilation"], *parameters["window_dilation"]} != {1}
        window, strides, padding = (parameters[name] for name in ("window_dimensions", "window_strides", "padding"))
        single = [window[axis] == strides[axis] == 1 and padding[axis] == (0, 0) for axis in range(x.ndim)]
        empty = any(max(around) >= size for around, size in zip(padding, window, strict=True))
        if x.ndim != 4 or dilated or empty or not (single[0] and single[3]):
            return primitive.bind(x, **parameters)
        return rule(x, window[1:3], strides[1:3], padding[1:3])

    return either


_Two = tuple[int, int]
_Padding = tuple[_Two, _Two]


def _sum(x: Array, window: _Two, strides: _Two, padding: _Padding) -> Array:
    """Returns the sum of each window as a depthwise convolution with ones, which every runtime has."""
    ones = jnp.ones((*window, 1, x.shape[-1]), x.dtype)
    return lax.conv_general_dilated(
        x,
        ones,
        window_strides=strides,
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _edged(x: Array, padding: _Padding) -> Array:
    """Returns maps with their outermost values around them, which leaves the largest of each window what it is.

    A window that lies over the edge holds the outermost value besides, since it is wider than the padding.
    """
    for axis, (before, after) in enumerate(padding, 1):
        first, last = lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
        x = jnp.concatenate([first] * before + [x] + [last] * after, axis) if before or after else x
    return x


def _largest(x: Array, window: _Two, strides: _Two, padding: _Padding) -> Array:
    """Returns the largest of each window, with nothing but numbers around the map."""
    x, none = _edged(x, padding), (0, 0)
    return lax.reduce_window_max_p.bind(
        x,
        window_dimensions=(1, *window, 1),
        window_strides=(1, *strides, 1),
        padding=(none,) * 4,
        base_dilation=(1,) * 4,
        window_dilation=(1,) * 4,
    )


def _largest_of_slices(x: Array, window: _Two, strides: _Two, padding: _Padding) -> Array:
    """Returns the largest of each window as that of slices, along one axis after the other."""
    x = _edged(x, padding)
    for axis, (size, stride) in enumerate(zip(window, strides, strict=True), 1):
        last = (x.shape[axis] - size) // stride * stride
        slices = [lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(size)]
        x = functools.reduce(lax.max, slices)
    return x


LITERT: Mapping[str, Rule] = {
    "reduce_window_sum": _of_maps(_sum, lax.reduce_window_sum_p),
    "reduce_window_max": _of_maps(_largest, lax.reduce_window_max_p),
}
ONNX: Mapping[str, Rule] = {
    "reduce_window_sum": _of_maps(_sum, lax.reduce_window_sum_p),
    "reduce_window_max": _of_maps(_largest_of_slices, lax.reduce_window_max_p),
}
