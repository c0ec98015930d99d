"""Variational information distillation: how likely the teacher's features are, given the student's."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gkd_jax.losses import fields
from gkd_jax.losses.heads import block, stack
from gkd_jax.losses.term import Heads, State, Term, register
from gkd_jax.outputs import Batch, Outputs, Setup

_EPSILON = 1e-5  # the least variance, as published
_REGRESSOR = stack(block(relu=True), block(relu=True), block())


def negative_log_likelihood(
    mean: Float[Array, "b h w k"], raw_variance: Float[Array, " k"], teacher: Float[Array, "b h w k"]
) -> Float[Array, " b"]:
    r"""Negative log-likelihood of the teacher's features under normal distributions, without its constant.

    .. math:: \frac1{nk} \sum_{pc} \frac{(t_{pc} - \mu_{pc})^2}{2 \sigma_c^2} + \frac12 \log \sigma_c^2, \qquad
              \sigma_c^2 = \log(1 + e^{\alpha_c}) + 10^{-5}

    (Ahn et al., `Variational Information Distillation for Knowledge Transfer <https://arxiv.org/abs/1904.05835>`_,
    2019, equations 5 and 6; the mean over the n positions and k channels is the published code's).

    Args:
      mean: μ, what the student predicts, of any float type.
      raw_variance: α, one a channel.
      teacher: t, a constant.

    Returns:
      One float32 value an example in nats an entry, half a logarithm of 2π short. It may be negative; where μ = t it is
      the mean of log σ, not zero.
    """
    variance = (jax.nn.softplus(raw_variance.astype(jnp.float32)) + _EPSILON)[None, None, None]
    difference = mean.astype(jnp.float32) - jax.lax.stop_gradient(teacher).astype(jnp.float32)
    return jnp.mean(0.5 * (difference**2 / variance + jnp.log(variance)), axis=(1, 2, 3))


@register("vid")
def vid_term(*, stages: Sequence[int] = (), init_variance: float | int = 5.0) -> Term:
    """The term "vid": `negative_log_likelihood`, summed over stages.

    At each stage the mean comes from the student's map through three 1x1 convolutions without bias, of the teacher's
    width, with ReLUs between them; larger maps are average-pooled to the smaller size first. The variances are
    trained too, as in RepDistiller (mdistiller leaves them where they start). Its unit is nats: the mean over positions
    and channels, summed over stages. Published weight: 1.

    Args:
      stages: indices into the features of both networks; none for all behind the stem, see `fields.pairs`.
      init_variance: of each channel at the start.

    Raises:
      ValueError: if `init_variance` is not above 1e-5, or a stage is no integer.
    """
    fields.check_stages(stages)
    if not init_variance > _EPSILON:
        raise ValueError(f"init_variance is {init_variance!r}; allowed: more than {_EPSILON}")
    start = init_variance - _EPSILON
    raw = start + math.log(-math.expm1(-start))  # log(exp(start) - 1), without its overflow

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        heads = {}
        for i, (x, y) in enumerate(fields.pairs(student, teacher, stages)):
            regressor = _REGRESSOR.init(jax.random.fold_in(key, i), x.shape[3], y.shape[3])
            heads[f"pair{i}"] = {"regressor": regressor, "raw_variance": jnp.full(y.shape[3], raw, jnp.float32)}
        return heads, ()

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        values = []
        for i, (x, y) in enumerate(fields.pairs(student, teacher, stages)):
            head = heads[f"pair{i}"]
            x, y = fields.pool_alike(x, y)
            values.append(negative_log_likelihood(_REGRESSOR.apply(head["regressor"], x), head["raw_variance"], y))
        return sum(values[1:], values[0]), state

    return Term("vid", loss, frozenset({"teacher.features"}), init)
