"""Cross-entropy, and distillation of softened class probabilities."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike

from gkd_jax.losses import fields
from gkd_jax.losses.term import Heads, State, Term, register
from gkd_jax.outputs import Batch, Outputs


def cross_entropy(logits: Float[Array, "b c"], targets: Float[Array, "b c"]) -> Float[Array, " b"]:
    r"""Cross-entropy between class probabilities and the softmax of logits.

    .. math:: -\sum_c y_c \log \mathrm{softmax}(z)_c

    Args:
      logits: z, of any float type.
      targets: y, the rows summing to 1: one-hot, smoothed or mixed.

    Returns:
      One float32 value an example.
    """
    return optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets.astype(jnp.float32))


def kd(
    student_logits: Float[Array, "b c"], teacher_logits: Float[Array, "b c"], temperature: ScalarLike = 4.0
) -> Float[Array, " b"]:
    r"""Kullback-Leibler divergence from the student's softened class probabilities to the teacher's.

    .. math:: T^2 \, \mathrm{KL}\big(\mathrm{softmax}(z_T / T) \,\|\, \mathrm{softmax}(z_S / T)\big)

    summed over classes. The factor T² keeps the size of the gradient as T changes (Hinton, Vinyals and Dean,
    `Distilling the Knowledge in a Neural Network <https://arxiv.org/abs/1503.02531>`_, 2015, section 2). The teacher is
    a constant: no derivative reaches it.

    Args:
      student_logits: z_S, of any float type.
      teacher_logits: z_T.
      temperature: T > 0.

    Returns:
      One float32 value an example, zero at equality.
    """
    temperature = jnp.asarray(temperature, jnp.float32)
    student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


@register("ce")
def cross_entropy_term(*, label_smoothing: float | int = 0.0) -> Term:
    """The term "ce": `cross_entropy` with the batch's targets. It needs no teacher.

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
def kd_term(*, temperature: float | int | Callable[[Array], ScalarLike] = 4.0) -> Term:
    """The term "kd": `kd` between the logits.

    Args:
      temperature: a positive number, or a schedule `step -> temperature`.

    Raises:
      ValueError: if `temperature` is a number that is not positive.
    """
    if not callable(temperature) and not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; allowed: a positive number or a schedule")

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        now = temperature(batch.step) if callable(temperature) else temperature
        return kd(student.logits, fields.logits(teacher), now), state

    return Term("kd", loss, frozenset({"teacher.logits"}))
