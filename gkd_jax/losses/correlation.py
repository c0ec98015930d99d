"""Matching class probabilities up to scale and shift, by their correlation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike

from gkd_jax.losses import fields
from gkd_jax.losses.logit import at, check_positive, check_weights, softened
from gkd_jax.losses.pairwise import centred
from gkd_jax.losses.term import Heads, Scheduled, State, Term, register
from gkd_jax.outputs import Batch, Outputs

# What the published code adds to the product of the lengths.
_ADDED = 1e-8


def pearson(x: Float[Array, "n m"], y: Float[Array, "n m"]) -> Float[Array, " n"]:
    r"""Correlation of each row of x with the same row of y.

    .. math:: \frac{\langle x - \bar x, y - \bar y \rangle}{\|x - \bar x\| \, \|y - \bar y\| + 10^{-8}}

    Args:
      x: of any float type.
      y: of the same shape.

    Returns:
      One float32 value a row, without unit, from -1 to 1. A row whose entries are all the same up to rounding on either
      side has no correlation (see `pairwise.centred`): value and derivative are 0, never NaN.
    """
    (x, of_x, known_x), (y, of_y, known_y) = centred(x), centred(y)
    lengths = of_x * of_y * max(x.shape[1] - 1, 1)  # a length is σ times the root of this
    return jnp.where(known_x & known_y, jnp.sum(x * y, axis=1) / (lengths + _ADDED), 0)


def dist(
    student_logits: Float[Array, "b c"],
    teacher_logits: Float[Array, "b c"],
    temperature: ScalarLike = 4.0,
    *,
    beta: float | int = 2.0,
    gamma: float | int = 2.0,
) -> Float[Array, ""]:
    r"""One minus the correlation of class probabilities, over the classes and over the batch.

    .. math:: T^2 \Big( \beta \, \frac1b \sum_i \big(1 - \rho(p_{i \cdot}, q_{i \cdot})\big)
              + \gamma \, \frac1c \sum_j \big(1 - \rho(p_{\cdot j}, q_{\cdot j})\big) \Big)

    with p and q the softmax of z_T / T and z_S / T and ρ the `pearson` correlation (Huang et al., `Knowledge
    Distillation from A Stronger Teacher <https://arxiv.org/abs/2205.10536>`_, 2022, section 4: the inter-class relation
    of each example, and the intra-class relation of each class). The factor T² is that of the published code. The
    teacher is a constant.

    Args:
      student_logits: z_S, of any float type.
      teacher_logits: z_T.
      temperature: T > 0.
      beta: β, of the relations between classes.
      gamma: γ, of those within a class.

    Returns:
      A float32 scalar for the batch, without unit, from 0 to 2 T² (β + γ); each part is T² times a mean of one minus a
      correlation. At equality a row or column whose centred entries have the length l counts 1e-8 / l² by the published
      constant: nothing at usual probabilities, all of 1 for a class that no example of the batch is given, or a batch
      of one.
    """
    temperature = jnp.asarray(temperature, jnp.float32)
    q = jax.nn.softmax(softened(student_logits, temperature))
    p = jax.nn.softmax(softened(jax.lax.stop_gradient(teacher_logits), temperature))
    inter, intra = 1 - jnp.mean(pearson(q, p)), 1 - jnp.mean(pearson(q.T, p.T))
    return temperature**2 * (beta * inter + gamma * intra)


@register("dist")
def dist_term(*, beta: float | int = 2.0, gamma: float | int = 2.0, temperature: Scheduled = 4.0) -> Term:
    """The term "dist": `dist` between the logits of the batch. It has no unit.

    Args:
      beta: weight of the relations between classes; published with 1 of the cross-entropy: 2.
      gamma: weight of the relations within a class; published: 2.
      temperature: a positive number, or a schedule `step -> temperature`; published: 4 for CIFAR-100, 1 for ImageNet.

    Raises:
      ValueError: if `beta` or `gamma` is negative, or `temperature` is a number that is not positive.
    """
    check_weights(beta=beta, gamma=gamma)
    check_positive("temperature", temperature)

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        now = at(temperature, batch.step)
        return dist(student.logits, fields.logits(teacher), now, beta=beta, gamma=gamma), state

    return Term("dist", loss, frozenset({"teacher.logits"}))
