"""Matching class probabilities at several temperatures: each by itself, between examples, between classes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gkd_jax.losses import fields
from gkd_jax.losses.logit import at, check_positive, check_weights, kd, softened
from gkd_jax.losses.pairwise import inner_products
from gkd_jax.losses.term import Heads, Scheduled, State, Term, register
from gkd_jax.outputs import Batch, Outputs


def gram_distances(
    student: Float[Array, "b c"], teacher: Float[Array, "b c"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Squared distances between the Gram matrices of class probabilities, of the examples and of the classes.

    .. math:: \frac1b \|q q^\top - p p^\top\|_F^2, \qquad \frac1c \|q^\top q - p^\top p\|_F^2

    (Jin, Wang and Lin, `Multi-Level Logit Distillation
    <https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html>`_,
    2023, batch level and class level).

    Args:
      student: q, rows that sum to 1.
      teacher: p, a constant.

    Returns:
      Two float32 scalars, zero at equality: sums of squared probabilities over the pairs that an example forms with
      the batch, averaged over the examples, at most b; and over the pairs that a class forms with the others, averaged
      over the classes, which grows like b².
    """
    q, p = student.astype(jnp.float32), jax.lax.stop_gradient(teacher).astype(jnp.float32)

    examples, classes = inner_products(q, q) - inner_products(p, p), inner_products(q.T, q.T) - inner_products(p.T, p.T)
    return jnp.sum(examples**2) / q.shape[0], jnp.sum(classes**2) / q.shape[1]


def _share_below_median(x: Float[Array, " n"]) -> Float[Array, ""]:
    return jnp.mean((x <= jnp.median(x)).astype(jnp.float32))


def mlkd(
    student_logits: Float[Array, "b c"],
    teacher_logits: Float[Array, "b c"],
    temperatures: Float[Array, " k"],
    *,
    instance: float | int = 1.0,
    batch: float | int = 1.0,
    classes: float | int = 1.0,
    standardize: bool = False,
    halve: bool = False,
) -> Float[Array, ""]:
    r"""Distillation at the level of instance, batch and class, summed over temperatures.

    .. math:: \sum_T \Big( w_i \, \frac1b \sum_n \mathrm{KD}_T(n) + w_b \, B(q_T, p_T) + w_c \, C(q_T, p_T) \Big)

    with KD of `logit.kd`, the two `gram_distances` B and C, and q_T, p_T the softmax of z_S / T and z_T / T. For the
    source see `gram_distances`. The teacher is a constant.

    Args:
      student_logits: z_S, of any float type.
      teacher_logits: z_T.
      temperatures: T, each above 0.
      instance: w_i.
      batch: w_b.
      classes: w_c.
      standardize: take `logit.standardised` logits on both sides, at the level of the instance only: so does the
        published code of logit standardisation.
      halve: multiply w_i and w_b by the share of examples whose largest teacher probability at T = 1 is at most the
        batch's median, and w_c by the share of classes whose teacher probability, summed over the batch, is at most
        the median. Without ties that is one half, for an even number.

    Returns:
      A float32 scalar for the batch, zero at equality: T² nats, and squared probabilities.
    """
    p = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32))
    of_examples = _share_below_median(jnp.max(p, axis=1)) if halve else 1.0
    of_classes = _share_below_median(jnp.sum(p, axis=0)) if halve else 1.0

    def at_one(temperature: Array) -> Array:
        total = jnp.zeros((), jnp.float32)
        if instance:
            alone = kd(student_logits, teacher_logits, temperature, standardize=standardize)
            total += of_examples * instance * jnp.mean(alone)
        if batch or classes:
            soft = (jax.nn.softmax(softened(z, temperature)) for z in (student_logits, teacher_logits))
            examples, between = gram_distances(*soft)
            total += of_examples * batch * examples + of_classes * classes * between
        return total

    return jnp.sum(jax.vmap(at_one)(temperatures))


@register("mlkd")
def mlkd_term(
    *,
    temperature: Scheduled = 4.0,
    others: Sequence[float | int] = (2.0, 3.0, 5.0, 6.0),
    instance: float | int = 1.0,
    batch: float | int = 1.0,
    classes: float | int = 1.0,
    standardize: bool = False,
    halve: bool = False,
) -> Term:
    """The term "mlkd": `mlkd` between the logits of one view, in T² nats and squared probabilities.

    The paper compares two views of each image, which are two lines here. Its published code, with a weight of 0.9 for
    all of it (9 with standardised logits, and base temperature 2) beside 0.1 of the cross-entropy of both views, has:

    - in the view "weak", all three levels at T = 4, 3, 5, 2, 6, each multiplied as `halve` says: the masks by
      confidence are applied to sums that are reduced already, so that only their mean is left;
    - in the view "strong", the level of the instance at T = 4, 3, 5, and at T = 2, 6 once more that of the view "weak",
      not halved: batch and class level are computed there, but not used.

    That is three lines: "weak" with `halve`; "weak" with `temperature` 2, `others` (6,) and the weights 1, 0, 0;
    "strong" with `others` (3, 5) and the weights 1, 0, 0.

    Args:
      temperature: the base temperature, a positive number, or a schedule `step -> temperature`.
      others: the other temperatures; may be empty.
      instance: weight of the level of the instance.
      batch: weight of the level of the batch.
      classes: weight of the level of the class.
      standardize: take `logit.standardised` logits at the level of the instance.
      halve: multiply by the share of examples, or classes, up to the median of the teacher's confidence.

    Raises:
      ValueError: if a weight is negative, or a temperature is a number that is not positive.
    """
    check_positive("temperature", temperature)
    for other in others:
        check_positive("others", other)
    check_weights(instance=instance, batch=batch, classes=classes)
    weights = {"instance": instance, "batch": batch, "classes": classes}

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        temperatures = jnp.stack([jnp.asarray(t, jnp.float32) for t in (at(temperature, batch.step), *others)])
        found = mlkd(
            student.logits, fields.logits(teacher), temperatures, **weights, standardize=standardize, halve=halve
        )
        return found, state

    return Term("mlkd", loss, frozenset({"teacher.logits"}))
