"""The overhaul of feature distillation: features before the ReLU, through a margin, by a partial distance."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gkd_jax.errors import UserError
from gkd_jax.losses import fields
from gkd_jax.losses.heads import KAIMING_FAN_OUT, block
from gkd_jax.losses.term import Heads, State, Term, register
from gkd_jax.outputs import Batch, Outputs, Setup

_CONNECTOR = block(norm=True, kernel_init=KAIMING_FAN_OUT)
_FAR = 2.0  # from here the fraction is right to rounding, and the difference begins to cancel
_DEPTH = 64


def margin(scale: Float[Array, " k"], bias: Float[Array, " k"]) -> Float[Array, " k"]:
    r"""Expected value of the negative responses of each channel behind a BatchNorm.

    .. math:: \mathrm{E}[x \mid x < 0] = \beta - |\gamma| \, \frac{\varphi(r)}{\Phi(-r)}, \qquad
              x \sim N(\beta, \gamma^2), \quad r = \beta / |\gamma|

    (Heo et al., `A Comprehensive Overhaul of Feature Distillation <https://arxiv.org/abs/1904.01866>`_, 2019, equation
    5). For large r the two summands cancel: there the continued fraction of Mills' ratio gives their difference,
    :math:`-|\gamma| / (r + 2 / (r + 3 / (r + \dots)))`. The published code sets :math:`-3 |\gamma|` where less than a
    thousandth is negative; this is exact there too.

    Args:
      scale: γ of the BatchNorm; its sign does not matter.
      bias: β.

    Returns:
      Float32, at most 0, for any γ and β, also for γ = 0.
    """
    scale = jnp.maximum(jnp.abs(scale.astype(jnp.float32)), 1e-12)
    ratio = bias.astype(jnp.float32) / scale
    near, far = jnp.minimum(ratio, _FAR), jnp.maximum(ratio, _FAR)
    hazard = jnp.exp(jax.scipy.stats.norm.logpdf(near) - jax.scipy.special.log_ndtr(-near))
    fraction = jax.lax.fori_loop(0, _DEPTH - 1, lambda i, below: far + (_DEPTH - i) / below, far)
    return -scale * jnp.where(ratio < _FAR, hazard - near, 1 / fraction)


def partial_distance(
    student: Float[Array, "b h w k"], teacher: Float[Array, "b h w k"], margins: Float[Array, " k"]
) -> Float[Array, " b"]:
    r"""Squared distance to the teacher's preactivations, where the student is wrong in what a ReLU lets through.

    .. math:: \sum_i [\, s_i > \tau_i \ \text{or}\ t_i > 0 \,] \, (s_i - \tau_i)^2, \qquad \tau_i = \max(t_i, m_i)

    with the margin m of the channel: a student below a negative target is left alone (Heo et al., `A Comprehensive
    Overhaul of Feature Distillation <https://arxiv.org/abs/1904.01866>`_, 2019, equations 4 and 6).

    Args:
      student: maps of the teacher's shape, of any float type.
      teacher: maps before the ReLU, a constant.
      margins: m, at most 0; see `margin`.

    Returns:
      One float32 value an example, in squared preactivations: a sum over positions and channels. Zero, with its
      derivative, wherever the student is the teacher or below a negative target.
    """
    target = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    through = target > 0
    target = jnp.maximum(target, jax.lax.stop_gradient(margins)[None, None, None])
    difference = student.astype(jnp.float32) - target
    return jnp.sum(jnp.where((difference > 0) | through, difference**2, 0), axis=(1, 2, 3))


def _compared(student: Outputs | None, teacher: Outputs | None) -> list[tuple[Any, Any]]:
    return fields.pairs(student, teacher, of=("preact", "preact"), from_deepest=True)


def _check(norms: Any, count: int) -> Any:
    """Returns `norms` if the last `count` of them are known."""
    if norms is None:
        raise UserError(
            "term 'ofd' needs the BatchNorm before each ReLU that ends a stage of the teacher: this teacher's network "
            "does not say which they are"
        )
    unknown = [stage for stage in range(len(norms) - count, len(norms)) if norms[stage] is None]
    if unknown:
        raise UserError(
            "term 'ofd' needs the BatchNorm before each ReLU that ends a stage of the teacher: this teacher's network "
            f"has none for stage {', '.join(map(str, unknown))} of 0 to {len(norms) - 1}"
        )
    return norms


@register("ofd")
def overhaul_term() -> Term:
    """The term "ofd": `partial_distance` between preactivations, summed over the stages behind the stem.

    The student's go through a 1x1 convolution and BatchNorm, at equal widths too; the margins come from the BatchNorm
    before each of the teacher's ReLUs. The deepest stage counts fully, each before it half of the next. Larger maps are
    average-pooled to the smaller size (the published code pools the teacher's alone); if one network has more stages,
    its shallowest are left out, as in mdistiller.

    Its unit is a squared preactivation, summed over positions, channels and stages: thousands, so that the published
    weight is 0.001 (Heo et al., `A Comprehensive Overhaul of Feature Distillation <https://arxiv.org/abs/1904.01866>`_,
    2019). `init` and `constants` raise UserError where the teacher's network names no such BatchNorm.
    """

    def constants(setup: Setup) -> Any:
        norms = _check(setup.teacher_norms, 0)  # how many are compared depends on the student
        return tuple(None if norm is None else margin(*norm) for norm in norms)

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        compared = _compared(student, teacher)
        _check(setup.teacher_norms, len(compared))
        heads = {}
        for i, (x, y) in enumerate(compared):
            heads[f"pair{i}"] = _CONNECTOR.init(jax.random.fold_in(key, i), x.shape[3], y.shape[3])
        return heads, ()

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        compared = _compared(student, teacher)
        value = jnp.zeros(compared[0][0].shape[0], jnp.float32)
        for i, ((x, y), margins) in enumerate(zip(compared, batch.constants[-len(compared) :], strict=True)):
            x, y = fields.pool_alike(x, y)
            value += partial_distance(_CONNECTOR.apply(heads[f"pair{i}"], x), y, margins) / 2 ** (len(compared) - 1 - i)
        return value, state

    return Term("ofd", loss, frozenset({"teacher.preact"}), init, constants)
