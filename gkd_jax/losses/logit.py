"""Cross-entropy, and distillation of softened class probabilities."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike

from gkd_jax.losses import fields
from gkd_jax.losses.pairwise import centred
from gkd_jax.losses.term import Heads, Scheduled, State, Term, register
from gkd_jax.outputs import Batch, Outputs

# What the published code adds to the standard deviation.
_ADDED = 1e-7


def at(option: Scheduled, step: Array) -> ScalarLike:
    """Returns the value of a scheduled option at `step`."""
    return option(step) if callable(option) else option


def check_positive(option: str, value: Scheduled) -> None:
    """Raises `ValueError` for a number that is not positive; what a schedule gives is not known beforehand."""
    if not callable(value) and not value > 0:
        raise ValueError(f"{option} is {value!r}; allowed: a positive number or a schedule")


def check_weights(**weights: Scheduled) -> None:
    """Raises `ValueError` for a weight that is a number below 0, or not finite."""
    for option, value in weights.items():
        if not callable(value) and not 0 <= value < float("inf"):
            raise ValueError(f"{option} is {value!r}; allowed: 0 or more")


def cross_entropy(logits: Float[Array, "b c"], targets: Float[Array, "b c"]) -> Float[Array, " b"]:
    r"""Cross-entropy between class probabilities and the softmax of logits.

    .. math:: -\sum_c y_c \log \mathrm{softmax}(z)_c

    Args:
      logits: z, of any float type.
      targets: y, the rows summing to 1: one-hot, smoothed or mixed.

    Returns:
      One float32 value an example, in nats: a sum over classes, at least the entropy of y.
    """
    return optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets.astype(jnp.float32))


def standardised(logits: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    r"""Logits with mean 0 and standard deviation 1 over the classes of each example.

    .. math:: \frac{z - \bar z}{\sigma(z) + 10^{-7}}, \qquad \sigma(z)^2 = \frac{1}{c - 1} \sum_c (z_c - \bar z)^2

    (Sun et al., `Logit Standardization in Knowledge Distillation <https://arxiv.org/abs/2403.01427>`_, 2024, algorithm
    1; the divisor c - 1 and the 1e-7 are those of the published code). What is left does not depend on the shift of the
    logits nor, but for the 1e-7, on their scale, so that the student need not match the size of the teacher's.

    Args:
      logits: z, of any float type.

    Returns:
      Logits in float32, without unit. Those of an example whose logits are all the same up to rounding (σ at most 1e-6
      of the largest magnitude) are zeros with derivative zero; elsewhere the derivative grows like 1 / σ.
    """
    z, deviation, known = centred(logits)
    return jnp.where(known[..., None], z / (deviation[..., None] + _ADDED), 0)


def softened(logits: Float[Array, "*b c"], temperature: ScalarLike, standardize: bool = False) -> Float[Array, "*b c"]:
    """Returns logits divided by the temperature, in float32, and `standardised` before that if asked for."""
    z = standardised(logits) if standardize else logits.astype(jnp.float32)
    return z / jnp.asarray(temperature, jnp.float32)


def kd(
    student_logits: Float[Array, "b c"],
    teacher_logits: Float[Array, "b c"],
    temperature: ScalarLike = 4.0,
    *,
    standardize: bool = False,
) -> Float[Array, " b"]:
    r"""Kullback-Leibler divergence from the student's softened class probabilities to the teacher's.

    .. math:: T^2 \, \mathrm{KL}\big(\mathrm{softmax}(z_T / T) \,\|\, \mathrm{softmax}(z_S / T)\big)

    summed over classes. The factor T² keeps the size of the gradient as T changes (Hinton, Vinyals and Dean,
    `Distilling the Knowledge in a Neural Network <https://arxiv.org/abs/1503.02531>`_, 2015, section 2). The teacher's
    logits are a constant: no derivative reaches them. One does reach T, by both sides and the factor.

    Args:
      student_logits: z_S, of any float type.
      teacher_logits: z_T.
      temperature: T > 0.
      standardize: take `standardised` logits on both sides.

    Returns:
      One float32 value an example, in T² nats, zero at equality.
    """
    temperature = jnp.asarray(temperature, jnp.float32)
    student = jax.nn.log_softmax(softened(student_logits, temperature, standardize))
    teacher = jax.nn.log_softmax(softened(jax.lax.stop_gradient(teacher_logits), temperature, standardize))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


@register("ce")
def cross_entropy_term(*, label_smoothing: float | int = 0.0) -> Term:
    """The term "ce": `cross_entropy` with the batch's targets, in nats. It needs no teacher.

    Args:
      label_smoothing: share of each target that is spread evenly over the classes.

    Raises:
      ValueError: if `label_smoothing` is outside [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing!r}; allowed: 0 <= label_smoothing < 1")

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        return cross_entropy(student.logits, optax.losses.smooth_labels(batch.targets, label_smoothing)), state

    return Term("ce", loss)


@register("kd")
def kd_term(*, temperature: Scheduled = 4.0, standardize: bool = False) -> Term:
    """The term "kd": `kd` between the logits, in T² nats.

    Args:
      temperature: a positive number, or a schedule `step -> temperature`.
      standardize: take `standardised` logits on both sides; published with it are a temperature of 2 and a weight of 9
        against 0.1 of the cross-entropy.

    Raises:
      ValueError: if `temperature` is a number that is not positive.
    """
    check_positive("temperature", temperature)

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        now = at(temperature, batch.step)
        return kd(student.logits, fields.logits(teacher), now, standardize=standardize), state

    return Term("kd", loss, frozenset({"teacher.logits"}))
