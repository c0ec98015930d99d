"""The size of a network before it is run: parameters, multiply-accumulates, shapes of its outputs."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gkd_jax.outputs import Model, Outputs, Variables

Shape = tuple[int, ...]
# Convolutions whose jaxprs do other multiply-adds than they stand for, by the names of their jits
_REWRITTEN = ("depthwise_taps", "convolve_3x3")
_CONVOLUTIONS = ("conv_general_dilated", "convolve_3x3")
_LITTLE = 0.25
_ALL = ("conv_general_dilated", "dot_general", *_REWRITTEN)


class Summary(NamedTuple):
    """What a network costs and gives for one image.

    Attributes:
      parameters: trained values, without running statistics.
      macs: multiply-accumulates of convolutions and linear layers in one forward pass in eval mode.
      features: (height, width, channels) of the stem's and each stage's output; () if the network reports none.
      final: the same of the map that is pooled, None if not reported.
      embedding: length of the vector that the classifier reads, None if not reported.
    """

    parameters: int
    macs: int
    features: tuple[Shape, ...]
    final: Shape | None
    embedding: int | None


def summary(model: Model, image_shape: Shape) -> Summary:
    """Returns what `model` costs and gives for one image of shape (height, width, channels), without running it."""
    variables, jaxpr, outputs = _trace(model, image_shape)
    return Summary(
        parameters(variables),
        _count(jaxpr),
        _sides(outputs),
        None if outputs.final is None else outputs.final.shape[1:],
        None if outputs.embedding is None else outputs.embedding.shape[-1],
    )


def parameters(variables: Variables) -> int:
    """Returns the number of trained values in `variables`, which may be arrays or their shapes.

    These are the collection "params": neither running statistics nor what is frozen.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def feature_shapes(model: Model, image_shape: Shape) -> tuple[Shape, ...]:
    """Returns (height, width, channels) of the stem's and each stage's output for images of `image_shape`."""
    return _sides(_trace(model, image_shape)[2])


def macs(model: Model, image_shape: Shape) -> int:
    """Returns the multiply-accumulates of one image's forward pass in eval mode.

    Counted are convolutions, matrix products and convolutions written as something else, so every form of convolution
    gives the same number. BatchNorm, ReLU, additions and pooling are not, as is the custom. Loops
    of known length count each turn, alternatives the dearest, `while` loops one turn.
    """
    return _count(_trace(model, image_shape)[1])


def layer_outputs(model: Model, image_shape: Shape) -> tuple[int, ...]:
    """Returns how many values each convolution and linear layer gives for one image in eval mode, in their order."""
    return tuple(math.prod(layer.outvars[0].aval.shape) for layer in _layers(_trace(model, image_shape)[1]))


def mostly_pointwise(model: Model, image_shape: Shape) -> bool:
    """Returns whether little of `macs`, less than a quarter, is convolutions that are neither 1x1 nor depthwise."""
    jaxpr = _trace(model, image_shape)[1]
    return _count(jaxpr, _CONVOLUTIONS) < _LITTLE * _count(jaxpr)


def _trace(model: Model, image_shape: Shape) -> tuple[Variables, Any, Outputs]:
    """Returns the variables' shapes, the forward pass of one image as a jaxpr, and the outputs' shapes."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def forward(variables: Variables, images: jax.Array) -> Outputs:
        return model.apply(variables, images, train=False)[0]

    jaxpr, outputs = jax.make_jaxpr(forward, return_shape=True)(variables, image)
    return variables, jaxpr.jaxpr, outputs


def _sides(outputs: Outputs) -> tuple[Shape, ...]:
    return tuple(feature.shape[1:] for feature in outputs.features or ())


def _layers(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive.name in _ALL or equation.params.get("name") in _REWRITTEN:
            yield equation
        else:
            for inner in _jaxprs(equation.params):
                yield from _layers(inner)


def _count(jaxpr: Any, counted: tuple[str, ...] = _ALL) -> int:
    return sum(_of_equation(equation, counted) for equation in jaxpr.eqns)


def _of_equation(equation: Any, counted: tuple[str, ...]) -> int:
    name, given = equation.primitive.name, equation.params
    out = [math.prod(v.aval.shape) for v in equation.outvars]
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        macs = out[0] * math.prod(kernel) // kernel[given["dimension_numbers"].rhs_spec[0]]
        return macs if name in counted else 0
    if name == "dot_general":
        contracted = given["dimension_numbers"][0][0]
        macs = out[0] * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        return macs if name in counted else 0
    if given.get("name") in _REWRITTEN:
        return out[0] * math.prod(equation.invars[1].aval.shape[:3]) if given["name"] in counted else 0
    inner = [_count(jaxpr, counted) for jaxpr in _jaxprs(given)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (given["length"] if name == "scan" else 1)


def _jaxprs(given: Mapping[str, Any]) -> Iterator[Any]:
    # By what they have rather than by type: jax moves these types from one release to the next.
    for value in given.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one
