"""Distillation with the target class taken apart from the others."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, ScalarLike

from gkd_jax.losses import fields
from gkd_jax.losses.logit import at, check_positive, check_weights, softened
from gkd_jax.losses.term import Heads, Scheduled, State, Term, register
from gkd_jax.outputs import Batch, Outputs

# In place of a logit that is left out: no probability in float32, and its differences stay finite, unlike infinity's.
_ABSENT = -1e30


def is_target(labels: Int[Array, " b"], num_classes: int) -> Bool[Array, "b c"]:
    """Returns where each example's target class stands."""
    return jax.nn.one_hot(labels, num_classes, dtype=bool)


def without_target(logits: Float[Array, "b c"], labels: Int[Array, " b"]) -> Float[Array, "b c"]:
    """Returns logits, in float32, whose target class has no probability: of the same shape, and nothing infinite."""
    return jnp.where(is_target(labels, logits.shape[1]), _ABSENT, logits.astype(jnp.float32))


def target_kd(
    student_logits: Float[Array, "b c"],
    teacher_logits: Float[Array, "b c"],
    labels: Int[Array, " b"],
    temperature: ScalarLike = 4.0,
    *,
    standardize: bool = False,
) -> Float[Array, " b"]:
    r"""Divergence between the probabilities of "the target class" and "any other", of teacher and student.

    .. math:: T^2 \, \mathrm{KL}\big((p_y, 1 - p_y) \,\|\, (q_y, 1 - q_y)\big), \qquad
              p = \mathrm{softmax}(z_T / T), \; q = \mathrm{softmax}(z_S / T)

    with 1 - p as the sum of the other probabilities, in logarithms, without cancellation. The target class part of
    decoupled distillation (Zhao et al., `Decoupled Knowledge Distillation <https://arxiv.org/abs/2203.08679>`_, 2022,
    equation 6).

    Args:
      student_logits: z_S, of any float type.
      teacher_logits: z_T, a constant.
      labels: y.
      temperature: T > 0.
      standardize: take `logit.standardised` logits on both sides.

    Returns:
      One float32 value an example, in T² nats, zero at equality.
    """
    temperature = jnp.asarray(temperature, jnp.float32)

    def both(logits: Array) -> Array:
        z = softened(logits, temperature, standardize)
        z = z - jax.lax.stop_gradient(jnp.max(z, axis=1, keepdims=True))
        target = jnp.sum(jnp.where(is_target(labels, z.shape[1]), z, 0), axis=1)
        rest = jax.nn.logsumexp(without_target(z, labels), axis=1)
        return jax.nn.log_softmax(jnp.stack([target, rest], axis=1))

    student, teacher = both(student_logits), both(jax.lax.stop_gradient(teacher_logits))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


def nontarget_kd(
    student_logits: Float[Array, "b c"],
    teacher_logits: Float[Array, "b c"],
    labels: Int[Array, " b"],
    temperature: ScalarLike = 4.0,
    *,
    standardize: bool = False,
) -> Float[Array, " b"]:
    r"""Divergence between the probabilities of teacher and student among all classes but the target.

    .. math:: T^2 \, \mathrm{KL}(\hat p \,\|\, \hat q), \qquad
              \hat p_i = \frac{e^{z_{T,i} / T}}{\sum_{j \ne y} e^{z_{T,j} / T}} \text{ for } i \ne y

    and likewise for the student. The non-target part of decoupled distillation (Zhao et al., `Decoupled Knowledge
    Distillation <https://arxiv.org/abs/2203.08679>`_, 2022, equation 6). The target's logits do not enter, except into
    the mean and the deviation that `standardize` takes.

    Args:
      student_logits: z_S, of any float type.
      teacher_logits: z_T, a constant.
      labels: y.
      temperature: T > 0.
      standardize: take `logit.standardised` logits on both sides.

    Returns:
      One float32 value an example, in T² nats, zero at equality, and where there are fewer than three classes.
    """
    temperature = jnp.asarray(temperature, jnp.float32)

    def others(logits: Array) -> Array:
        return jax.nn.log_softmax(without_target(softened(logits, temperature, standardize), labels))

    student, teacher = others(student_logits), others(jax.lax.stop_gradient(teacher_logits))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


@register("dkd")
def dkd_term(
    *,
    alpha: float | int = 1.0,
    beta: float | int = 8.0,
    temperature: Scheduled = 4.0,
    standardize: bool = False,
) -> Term:
    r"""The term "dkd": α `target_kd` + β `nontarget_kd`, with the batch's labels, in T² nats.

    With α = 1 and, for each example, the teacher's 1 - p_y in the place of β, this would be "kd". The published weight
    rises linearly over the first 20 epochs, which is the schedule of the line. To schedule the two parts apart, take
    two lines, one with β = 0 and one with α = 0.

    Args:
      alpha: α.
      beta: β. Published for CIFAR-100: 8; 6 for vgg13 to vgg8 or mobilenetv2 and wrn_40_2 to wrn_16_2 or wrn_40_1; 2
        for resnet56 to resnet20 and resnet110 to resnet32.
      temperature: a positive number, or a schedule `step -> temperature`.
      standardize: take `logit.standardised` logits on both sides.

    Raises:
      ValueError: if `alpha` or `beta` is negative, or `temperature` is a number that is not positive.
    """
    check_weights(alpha=alpha, beta=beta)
    check_positive("temperature", temperature)

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        both = student.logits, fields.logits(teacher), batch.labels, at(temperature, batch.step)
        values = jnp.zeros(batch.labels.shape, jnp.float32)
        if alpha:
            values += alpha * target_kd(*both, standardize=standardize)
        if beta:
            values += beta * nontarget_kd(*both, standardize=standardize)
        return values, state

    return Term("dkd", loss, frozenset({"teacher.logits"}))
