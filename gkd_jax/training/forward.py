"""A network's forward pass with any number of gradients pulled back through it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gkd_jax.objective import stream
from gkd_jax.outputs import Gradient, Model, Outputs, Variables


def forward(
    model: Model,
    variables: Variables,
    images: Array,
    wanted: Sequence[Gradient] = (),
    *,
    train: bool,
    batch: Any = None,
    teacher_logits: Array | None = None,
    key: Any = None,
) -> tuple[Outputs, Variables]:
    """Applies `model`, and differentiates what each of `wanted` asks for by one forward pass.

    The forward pass is linearised once (`jax.vjp`) at the images and at probes of zeros that are added to the
    features asked for; each request then pulls its own cotangent of the logits back. With one request that is one
    forward and one backward pass. It may itself be differentiated in the parameters.

    Args:
      model: the network.
      variables: its parameters and statistics.
      images: normalised, [b h w k].
      wanted: the gradients to compute.
      train: whether BatchNorm uses the statistics of the batch; the pullback goes through them too.
      batch: the `Batch` that the cotangents read; needed if anything is wanted.
      teacher_logits: likewise, [b c]; None stands for the network's own.
      key: of this step, for networks and cotangents that draw.

    Returns:
      The outputs, with `grads` filled, and the new batch statistics.
    """
    if not wanted:
        return model.apply(variables, images, train=train, key=key)
    shapes: Any = ()
    if any(gradient.at != "input" for gradient in wanted):
        shapes = jax.eval_shape(lambda: model.apply(variables, images, train=train, key=key)[0]).features or ()
    place = {gradient.at: _canonical(gradient.at, len(shapes)) for gradient in wanted}
    points = {at: images if at == "input" else _zeros(shapes[_index(at)]) for at in sorted(set(place.values()))}

    def logits_at(points: dict[str, Array]) -> tuple[Array, tuple[Outputs, Variables]]:
        probes = {at: probe for at, probe in points.items() if at != "input"}
        outputs, statistics = model.apply(variables, points.get("input", images), train=train, key=key, probes=probes)
        return outputs.logits, (outputs, statistics)

    logits, pull_back, (outputs, statistics) = jax.vjp(logits_at, points, has_aux=True)
    seen = logits if teacher_logits is None else teacher_logits
    grads = {}
    for gradient in wanted:
        drawn: Any = None if key is None else stream(key, f"cotangent of {gradient.name}")
        cotangent = gradient.cotangent(logits, seen, batch, drawn)
        (pulled,) = pull_back(cotangent.astype(logits.dtype))
        grads[gradient.name] = pulled[place[gradient.at]]
    return outputs._replace(grads=grads), statistics


def forward_shapes(
    model: Model, variables: Variables, images: jax.ShapeDtypeStruct, wanted: Sequence[Gradient], *, train: bool
) -> Outputs:
    """Returns the shapes of what `forward` returns for a batch of `images`, as `jax.ShapeDtypeStruct`s."""
    outputs = jax.eval_shape(lambda v, x: model.apply(v, x, train=train, key=jax.random.key(0))[0], variables, images)
    features = outputs.features or ()
    grads = {
        gradient.name: images if gradient.at == "input" else features[_index(_canonical(gradient.at, len(features)))]
        for gradient in wanted
    }
    return outputs._replace(grads=grads)


def _zeros(shape: Any) -> Array:
    return jnp.zeros(shape.shape, shape.dtype)


def _index(at: str) -> int:
    return int(at.removeprefix("feature:"))


def _canonical(at: str, stages: int) -> str:
    """Returns "feature:2" for "feature:-2" of a network with four stages."""
    if at == "input":
        return at
    index = _index(at)
    if not -stages <= index < stages:
        raise ValueError(f"{at}: the network has {stages} feature maps, 0 to {stages - 1} or -{stages} to -1")
    return f"feature:{index % stages}"
