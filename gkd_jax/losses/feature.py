"""Matching feature maps stage by stage: hints, attention maps and the selectivity of neurons."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gkd_jax.losses import fields
from gkd_jax.losses.heads import Head, regressor
from gkd_jax.losses.pairwise import inner_products, unit
from gkd_jax.losses.term import Heads, State, Term, register
from gkd_jax.outputs import Batch, Outputs, Setup

# As published: a map or channel with no entry above this has no direction, and derivatives are at most its inverse.
_NEGLIGIBLE = 1e-12


def mean_square(student: Float[Array, " b *shape"], teacher: Float[Array, " b *shape"]) -> Float[Array, " b"]:
    r"""Mean squared difference of two arrays of each example.

    .. math:: \frac1n \sum_i (s_i - t_i)^2

    over all axes but the first, so that its size does not depend on theirs. The teacher is a constant.

    Returns:
      One float32 value an example, zero at equality.
    """
    difference = student.astype(jnp.float32) - jax.lax.stop_gradient(teacher).astype(jnp.float32)
    return jnp.mean(difference**2, axis=tuple(range(1, difference.ndim)))


def attention_transfer(
    student: Float[Array, "b h w i"], teacher: Float[Array, "b u v j"], *, power: float | int = 2
) -> Float[Array, " b"]:
    r"""Mean squared difference between the attention maps of two feature maps.

    .. math:: \frac1n \sum_p \Big( \frac{q_S}{\|q_S\|} - \frac{q_T}{\|q_T\|} \Big)_p^2, \qquad
              q_p = \frac1k \sum_c |f_{pc}|^P

    over the n positions p of the smaller map, to which the larger is average-pooled first (Zagoruyko and Komodakis,
    `Paying More Attention to Attention <https://arxiv.org/abs/1612.03928>`_, 2017, section 3.1: activation-based, with
    the sum of powers; the mean over positions and the pooling are those of RepDistiller's code). The size of the
    features does not matter. The widths need not be equal: there is nothing to learn.

    Args:
      student: maps, of any float type.
      teacher: maps, a constant.
      power: P >= 1.

    Returns:
      One float32 value an example, the mean over positions: from 0, at equality, to 2 / n. A map of zeros counts as
      one without attention, never as NaN.
    """

    def attention(x: Array) -> Array:
        return unit(jnp.mean(jnp.abs(x) ** power, axis=3).reshape(x.shape[0], -1), _NEGLIGIBLE)[0]

    x, y = fields.pool_alike(student, jax.lax.stop_gradient(teacher))
    return mean_square(attention(x), attention(y))


def neuron_selectivity(student: Float[Array, "b h w i"], teacher: Float[Array, "b u v j"]) -> Float[Array, " b"]:
    r"""Maximum mean discrepancy between the channels of two feature maps, as sets of directions in space.

    .. math:: \frac1{i^2} \sum_{cc'} (a_c \cdot a_{c'})^2 + \frac1{j^2} \sum_{cc'} (b_c \cdot b_{c'})^2
              - \frac2{ij} \sum_{cc'} (a_c \cdot b_{c'})^2

    with a and b the channels' activations over the positions of the smaller map, to which the larger is average-pooled,
    divided by their lengths (Huang and Wang, `Like What You Like: Knowledge Distill via Neuron Selectivity Transfer
    <https://arxiv.org/abs/1707.01219>`_, 2017, equation 6 with the polynomial kernel, d = 2, c = 0). The order of the
    channels and the size of each do not matter.

    For :math:`G = \frac1i \sum_c a_c a_c^\top` it is the squared distance of the two G: that form, of positions by
    positions, is taken where there are fewer positions than channels; else the products of channels, as above.

    Args:
      student: maps, of any float type.
      teacher: maps, a constant, of any width.

    Returns:
      One float32 value an example, a mean over pairs of channels: from 0, at equality, to 2.
    """
    maps = fields.pool_alike(student, jax.lax.stop_gradient(teacher))
    x, y = (unit(jnp.swapaxes(fields.tokens(z), 1, 2), _NEGLIGIBLE)[0] for z in maps)
    if x.shape[2] <= max(x.shape[1], y.shape[1]):
        by_position = [jnp.swapaxes(z, 1, 2) for z in (x, y)]
        a, b = (inner_products(z, z) / z.shape[2] for z in by_position)
        return jnp.sum((a - b) ** 2, axis=(1, 2))
    same, other, across = (jnp.mean(inner_products(*z) ** 2, axis=(1, 2)) for z in ((x, x), (y, y), (x, y)))
    return same + other - 2 * across


@register("fitnet")
def fitnet_term(*, stage: int = 2, relu: bool = True) -> Term:
    """The term "fitnet": `mean_square` between the student's regressed features and the teacher's, at one stage.

    The regressor is `heads.regressor`, there at equal widths too, so the value is not zero for a copy of the teacher.
    Where no size is twice the other, what comes out of it and the teacher's map are average-pooled to the smaller
    (ours). Romero et al., `FitNets: Hints for Thin Deep Nets <https://arxiv.org/abs/1412.6550>`_, 2015, equation 3; as
    in RepDistiller, trained along with the rest rather than in a stage before it, and a mean where the paper has half a
    sum.

    Its unit is one squared feature: the mean over positions and channels. Published weight: 100.

    Args:
      stage: which feature map, 0 for the stem's; the published `hint_layer` is 2.
      relu: whether the regressor ends in a ReLU, as published.
    """
    return regressed("fitnet", stage, lambda x, y: mean_square(*fields.pool_alike(x, y)), relu=relu)


def regressed(name: str, stage: int, compare: Callable[[Array, Array], Array], *, relu: bool = True) -> Term:
    """Returns a term that compares the student's features, through a `heads.regressor`, with the teacher's."""

    def head(x: Any, y: Any) -> Head:  # arrays, or their shapes
        return regressor(x.shape[1], y.shape[1], relu=relu)

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        x, y = fields.feature(student, stage), fields.feature(teacher, stage)
        return {"regressor": head(x, y).init(key, x.shape[3], y.shape[3])}, ()

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        x, y = fields.feature(student, stage), fields.feature(teacher, stage)
        return compare(head(x, y).apply(heads["regressor"], x), y), state

    return Term(name, loss, frozenset({"teacher.features"}), init)


def _summed(name: str, stages: Sequence[int], compare: Callable[[Array, Array], Array]) -> Term:
    """Returns a term without heads that adds up `compare` over stages."""
    fields.check_stages(stages)

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        values = [compare(x, y) for x, y in fields.pairs(student, teacher, stages)]
        return sum(values[1:], values[0]), state

    return Term(name, loss, frozenset({"teacher.features"}))


@register("at")
def attention_term(*, stages: Sequence[int] = (), power: float | int = 2.0) -> Term:
    """The term "at": `attention_transfer`, summed over stages.

    Its unit is a squared difference of unit maps, averaged over positions and summed over stages. Published weight:
    1000.

    Args:
      stages: indices into the features of both networks; none for all behind the stem, see `fields.pairs`.
      power: to which magnitudes are raised.

    Raises:
      ValueError: if `power` is below 1, or a stage is no integer.
    """
    if not power >= 1:
        raise ValueError(f"power is {power!r}; allowed: 1 or more")
    return _summed("at", stages, lambda x, y: attention_transfer(x, y, power=power))


@register("nst")
def selectivity_term(*, stages: Sequence[int] = ()) -> Term:
    """The term "nst": `neuron_selectivity`, summed over stages.

    Its unit is a squared cosine between channels, averaged over pairs of them and summed over stages. Published weight:
    50.

    Args:
      stages: indices into the features of both networks; none for all behind the stem, see `fields.pairs`.

    Raises:
      ValueError: if a stage is no integer.
    """
    return _summed("nst", stages, neuron_selectivity)
