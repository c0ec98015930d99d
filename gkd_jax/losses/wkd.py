"""Transport of probability between classes, as published: the term "wkd_l"."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, ScalarLike

from gkd_jax.losses import fields, transport
from gkd_jax.losses.decoupled import is_target, without_target
from gkd_jax.losses.logit import at, check_positive, check_weights, softened
from gkd_jax.losses.term import Heads, Scheduled, State, Term, register
from gkd_jax.outputs import Batch, Outputs, Setup

# What the published code adds to each divisor. It also bounds the scalings, and with them every derivative.
_ADDED = 1e-8


def target_loss(
    student_logits: Float[Array, "b c"], teacher_logits: Float[Array, "b c"], labels: Int[Array, " b"]
) -> Float[Array, " b"]:
    r"""Cross-entropy of the target class alone, weighted by what the teacher gives to it.

    .. math:: - p_{T,y} \log p_{S,y}

    at temperature 1 (Lv, Yang and Li, `Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
    Distillation <https://arxiv.org/abs/2412.08139>`_, 2024, the target part of WKD-L). The teacher is a constant.

    Args:
      student_logits: of any float type.
      teacher_logits: a constant.
      labels: y.

    Returns:
      One float32 value an example, in nats. It is not zero at equality.
    """
    target = is_target(labels, student_logits.shape[1])
    log_q = jax.nn.log_softmax(student_logits.astype(jnp.float32))
    p = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32))
    return -jnp.sum(jnp.where(target, p * log_q, 0), axis=1)


def transport_between_others(
    student_logits: Float[Array, "b c"],
    teacher_logits: Float[Array, "b c"],
    labels: Int[Array, " b"],
    cost: Float[Array, "c c"],
    *,
    temperature: ScalarLike = 8.0,
    epsilon: float | int = 0.05,
    iterations: int = 10,
) -> Float[Array, " b"]:
    r"""Cost of moving the student's probabilities to the teacher's, among all classes but the target.

    .. math:: \sum_{ij} P_{ij} C_{ij}, \qquad P = \mathrm{diag}(u) \, e^{-C / \varepsilon} \, \mathrm{diag}(v)

    where u and v come from alternating divisions, from a constant u,

    .. math:: v = \frac{\hat p_T}{K^\top u + 10^{-8}}, \quad u = \frac{\hat p_S}{K v + 10^{-8}}, \quad
              K = e^{-C / \varepsilon}

    and :math:`\hat p` is the softmax of z / T without the target class (Lv, Yang and Li, `Wasserstein Distance Rivals
    Kullback-Leibler Divergence for Knowledge Distillation <https://arxiv.org/abs/2412.08139>`_, 2024, the non-target
    part of WKD-L; regularised transport: Cuturi, `Sinkhorn Distances <https://arxiv.org/abs/1306.0895>`_, 2013). The
    published code cuts the target's row and column out of the cost of each example. Here all classes stay, the target
    with no mass, which gives the same plan from one matrix for all examples.

    This is neither the value nor the derivative of `sinkhorn.solve`: the plan's own cost, without the entropy, and
    its derivative goes through all the iterations.

    Args:
      student_logits: of any float type.
      teacher_logits: a constant.
      labels: of the target classes.
      cost: C, a constant, symmetric, with zeros on the diagonal; see `transport.class_cost`.
      temperature: T > 0; there is no factor T².
      epsilon: ε > 0, in units of the cost.
      iterations: how many, whatever the error; they are unrolled.

    Returns:
      One float32 value an example, in units of the cost. It is not zero at equality: the regularised plan also moves
      mass from a class to its like. See `transport.sinkhorn_logits` for a form without that bias.
    """
    cost = jax.lax.stop_gradient(cost).astype(jnp.float32)
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    other = ~is_target(labels, cost.shape[0])

    def probabilities(logits: Array) -> Array:
        return jnp.where(other, jax.nn.softmax(without_target(softened(logits, temperature), labels)), 0)

    def times(x: Array, matrix: Array) -> Array:
        # The default would round to TF32 or bfloat16 on accelerators.
        return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)

    a, b = probabilities(student_logits), probabilities(teacher_logits)
    kernel = jnp.exp(-cost / epsilon)
    u, v = other.astype(jnp.float32) / max(cost.shape[0] - 1, 1), b
    for _ in range(iterations):
        v = b / (times(u, kernel) + _ADDED)
        u = a / (times(v, kernel.T) + _ADDED)
    return jnp.sum(u * times(v, (kernel * cost).T), axis=1)


@register("wkd_l")
def wkd_l_term(
    *,
    target: Scheduled = 1.0,
    others: Scheduled = 600.0,
    temperature: Scheduled = 8.0,
    similarity: str = "cosine",
    sharpen: float | int = 1.0,
    epsilon: float | int = 0.05,
    iterations: int = 10,
) -> Term:
    """The term "wkd_l": `target` x `target_loss` + `others` x `transport_between_others`, with the batch's labels.

    The cost between classes is `transport.class_cost` of the teacher's classifier. The published runs on CIFAR-100
    take the kernel alignment (CKA) between the teacher's outputs for all training images of two classes, computed
    beforehand; the published alternative, which needs no images, is the cosine between the weights of the classes.

    The first part is in nats, the second in units of that cost, which has none.

    Args:
      target: weight of the part of the target class, a number, or a schedule `step -> weight`; published: 1.
      others: weight of the other part, likewise. Published for CIFAR-100: 600 for resnet32x4 to resnet8x4 and 200 for
        wrn_40_2 to shufflenetv1, from epoch 150 of 240 down to zero by a cosine, while `target` stays.
      temperature: of the other part, a positive number, or a schedule; published: 8, and 6 for the second pair.
      similarity: of classes: "cosine" or "cka", see `transport.class_cost`.
      sharpen: κ of the cost; published: 1. With 0, the cost is one minus the similarity.
      epsilon: regularisation, in units of the cost; published: 0.05.
      iterations: of Sinkhorn's algorithm; published: 10.

    Raises:
      ValueError: if an option is not one of those named, or out of range.
    """
    check_weights(target=target, others=others, sharpen=sharpen)
    check_positive("temperature", temperature)
    check_positive("epsilon", epsilon)
    transport.check_similarity(similarity)
    if iterations < 1:
        raise ValueError(f"iterations is {iterations!r}; allowed: 1 or more")

    def constants(setup: Setup) -> Any:
        if not others:
            return ()
        return transport.class_cost(fields.classifier_kernel(setup), similarity=similarity, sharpen=sharpen)

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        both = student.logits, fields.logits(teacher), batch.labels
        values = jnp.zeros(batch.labels.shape, jnp.float32)
        if target:
            values += at(target, batch.step) * target_loss(*both)
        if others:
            now = at(temperature, batch.step)
            values += at(others, batch.step) * transport_between_others(
                *both, batch.constants, temperature=now, epsilon=epsilon, iterations=iterations
            )
        return values, state

    return Term("wkd_l", loss, frozenset({"teacher.logits"}), constants=constants)
