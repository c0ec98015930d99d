"""Knowledge review: the student's stages, fused from deep to shallow, against the teacher's."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gkd_jax.losses import fields
from gkd_jax.losses.feature import mean_square
from gkd_jax.losses.heads import KAIMING_UNIFORM, block
from gkd_jax.losses.term import Heads, State, Term, register
from gkd_jax.outputs import Batch, Outputs, Setup

_WIDEST = 512
_SIDES = (4, 2, 1)

_ENTER = block(norm=True, kernel_init=KAIMING_UNIFORM)
_LEAVE = block(3, norm=True, kernel_init=KAIMING_UNIFORM)
_ATTENTION = block(bias=True)


def hierarchical_context(student: Float[Array, "b h w k"], teacher: Float[Array, "b h w k"]) -> Float[Array, " b"]:
    r"""Mean squared difference of two maps at several resolutions.

    .. math:: \frac{\sum_l 2^{-l} \, \mathrm{mse}(P_l s, P_l t)}{\sum_l 2^{-l}}

    where P_0 is the map itself and P_1, P_2, ... average-pool it to those of 4x4, 2x2 and 1x1 positions that are
    smaller than it (Chen et al., `Distilling Knowledge via Knowledge Review <https://arxiv.org/abs/2104.09044>`_, 2021,
    section 3.3; the weights are the published code's).

    Args:
      student: maps of the teacher's shape, of any float type.
      teacher: maps, a constant.

    Returns:
      One float32 value an example, in squared features: a mean over positions and channels. Zero at equality.
    """
    value, weight, total = mean_square(student, teacher), 1.0, 1.0
    for side in _SIDES:
        if side < min(student.shape[1:3]):
            weight /= 2
            total += weight
            value += weight * mean_square(fields.pool(student, side, side), fields.pool(teacher, side, side))
    return value / total


def _levels(student: Outputs | None, teacher: Outputs | None) -> list[tuple[Any, Any]]:
    """Returns the features of the student with the preactivations of the teacher, shallow to deep, without the stem."""
    return fields.pairs(student, teacher, of=("features", "preact"), from_deepest=True)


def _fuse(head: Any, x: Array, deeper: Array) -> Array:
    deeper = fields.nearest(deeper, x.shape[1], x.shape[2])
    weights = jax.nn.sigmoid(_ATTENTION.apply(head, jnp.concatenate([x, deeper], axis=3)))
    return x * weights[..., :1] + deeper * weights[..., 1:]


@register("reviewkd")
def review_term(*, max_width: int = _WIDEST) -> Term:
    """The term "reviewkd": `hierarchical_context` between fused features of the student and the teacher's, summed.

    The levels are the stages behind the stem and, deepest, the embedding as a map of one position. From deep to
    shallow, a level's map goes through a 1x1 convolution and BatchNorm; what came from the level below is resized to
    it, and the two are added with weights at each position, the sigmoid of a 1x1 convolution of both. The sum, resized
    to the teacher's size, goes on to the next level, and through a 3x3 convolution and BatchNorm to the teacher's
    width, where it is compared with the teacher's map before its ReLU, and with the teacher's embedding (Chen et al.,
    `Distilling Knowledge via Knowledge Review <https://arxiv.org/abs/2104.09044>`_, 2021, sections 3.2 and 3.3; sizes
    and widths come from the networks, where the published code has a table of pairs). Resizing takes the nearest
    position. If one network has more stages, its shallowest are left out.

    Its unit is one squared feature: the mean over positions and channels, summed over levels. It learns at equal widths
    too, so it is not zero for a copy of the teacher. Published weight: 5 for most pairs, rising over the first 20
    epochs.

    Args:
      max_width: of the maps that are fused; it is that of the student's embedding if less.

    Raises:
      ValueError: if `max_width` is not positive.
    """
    if max_width < 1:
        raise ValueError(f"max_width is {max_width!r}; allowed: 1 or more")

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        deepest, target = fields.embedding(student).shape[1], fields.embedding(teacher).shape[1]
        widths = [(x.shape[3], y.shape[3]) for x, y in _levels(student, teacher)] + [(deepest, target)]
        between, heads = min(max_width, deepest), {}
        for i, (width_in, width_out) in enumerate(widths):
            keys = jax.random.split(jax.random.fold_in(key, i), 3)
            heads[f"level{i}"] = {
                "enter": _ENTER.init(keys[0], width_in, between),
                "leave": _LEAVE.init(keys[1], between, width_out),
            }
            if i < len(widths) - 1:
                heads[f"level{i}"]["attention"] = _ATTENTION.init(keys[2], 2 * between, 2)
        return heads, ()

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        deepest, target = (fields.embedding(outputs)[:, None, None] for outputs in (student, teacher))
        levels = [*_levels(student, teacher), (deepest, target)]
        value, fused = jnp.zeros(deepest.shape[0], jnp.float32), None
        for i, (x, y) in reversed(list(enumerate(levels))):
            head = heads[f"level{i}"]
            x = _ENTER.apply(head["enter"], x)
            if fused is not None:
                x = _fuse(head["attention"], x, fused)
            fused = fields.nearest(x, y.shape[1], y.shape[2])
            value += hierarchical_context(_LEAVE.apply(head["leave"], fused), y)
        return value, state

    return Term("reviewkd", loss, frozenset({"teacher.preact", "teacher.embedding"}), init)
