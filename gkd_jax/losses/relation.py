"""Matching how the examples of a batch lie to one another, rather than where each of them lies."""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from gkd_jax.losses import fields
from gkd_jax.losses.heads import TORCH, block
from gkd_jax.losses.pairwise import cosines, inner_products, squared_distances, unit
from gkd_jax.losses.term import Heads, State, Term, register
from gkd_jax.outputs import Batch, Outputs, Setup

# Of RKD, as published: the least squared distance of two examples. Its root has a derivative of at most 5e5.
_COINCIDENT = 1e-12

# Into a common space, as RepDistiller's: PyTorch's linear layer, but for its random bias.
_EMBED = block(bias=True, kernel_init=TORCH)

# Of PKT, as published: added to probabilities before the logarithm.
_PKT_EPSILON = 1e-7


def similarity_preserving(
    student: Float[Array, " b *s_shape"], teacher: Float[Array, " b *t_shape"]
) -> Float[Array, ""]:
    r"""Squared distance between the matrices of similarities within a batch.

    .. math:: \frac{1}{b^2} \| \tilde G_S - \tilde G_T \|_F^2, \qquad
       \tilde G_{i\cdot} = \frac{G_{i\cdot}}{\|G_{i\cdot}\|}, \quad G = A A^\top

    with A the activations of the batch, a row each example (Tung and Mori, `Similarity-Preserving Knowledge
    Distillation <https://arxiv.org/abs/1907.09682>`_, 2019, section 3). Widths and sizes of the two need not agree, and
    a scale of all activations cancels.

    Args:
      student: activations, of any float type; all axes but the first are one.
      teacher: activations, a constant.

    Returns:
      A float32 scalar without unit: the mean of squared differences over the b² entries, each about 1 / b, so that it
      falls like 1 / b² as the batch grows. Zero at equality. A row of zeros stays one.
    """

    def rows(x: Array) -> Array:
        flat = x.reshape(x.shape[0], -1)
        return unit(inner_products(flat, flat))[0]

    return jnp.mean((rows(student) - rows(jax.lax.stop_gradient(teacher))) ** 2)


def relational_distance(student: Float[Array, "b i"], teacher: Float[Array, "b j"]) -> Float[Array, ""]:
    r"""Difference between the distances of the examples, each in units of their mean.

    .. math:: \frac{1}{b^2} \sum_{ij} \ell\Big( \frac{d^S_{ij}}{\mu_S}, \frac{d^T_{ij}}{\mu_T} \Big), \qquad
       d_{ij} = \sqrt{\max(\|x_i - x_j\|^2, 10^{-12})}, \quad d_{ii} = 0

    with μ the mean of the positive distances, which is differentiated too, and l the smooth L1 loss (Huber's with its
    bend at 1) (Park, Kim, Lu and Cho, `Relational Knowledge Distillation <https://arxiv.org/abs/1904.05068>`_, 2019,
    section 3.2.1).

    Args:
      student: embeddings, of any width and float type.
      teacher: embeddings, a constant.

    Returns:
      A float32 scalar without unit, the mean over the b² pairs; zero at equality. Examples that coincide push one
      another nowhere: there the derivative is 0.
    """

    def relative(x: Array) -> Array:
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=0, keepdims=True)  # or distances of close points would be rounding of their lengths
        apart = ~jnp.eye(x.shape[0], dtype=bool)
        distance = jnp.where(apart, jnp.sqrt(jnp.maximum(squared_distances(x, x), _COINCIDENT)), 0)
        mean = jnp.sum(distance) / max(x.shape[0] * (x.shape[0] - 1), 1)
        return distance / jnp.maximum(mean, math.sqrt(_COINCIDENT))  # the bound is reached by a batch of one alone

    return jnp.mean(optax.losses.huber_loss(relative(student), relative(jax.lax.stop_gradient(teacher))))


def relational_angle(student: Float[Array, "b i"], teacher: Float[Array, "b j"]) -> Float[Array, ""]:
    r"""Difference between the cosines of the angles that any three examples form.

    .. math:: \frac{1}{b^3} \sum_{ijk} \ell(\cos \angle x^S_j x^S_i x^S_k, \; \cos \angle x^T_j x^T_i x^T_k)

    with l the smooth L1 loss (Park, Kim, Lu and Cho, `Relational Knowledge
    Distillation <https://arxiv.org/abs/1904.05068>`_, 2019, section 3.2.2). It takes b² d + b³ numbers of memory.

    Args:
      student: embeddings, of any width and float type.
      teacher: embeddings, a constant.

    Returns:
      A float32 scalar without unit, the mean over the b³ triples; zero at equality. Where two of the three coincide (no
      entry of their difference above 1e-6) the cosine is 0, with derivative 0.
    """

    def angles(x: Array) -> Array:
        x = x.astype(jnp.float32)
        away, _ = unit(x[None] - x[:, None], math.sqrt(_COINCIDENT))
        return inner_products(away, away)

    return jnp.mean(optax.losses.huber_loss(angles(student), angles(jax.lax.stop_gradient(teacher))))


def probabilistic_transfer(student: Float[Array, "b i"], teacher: Float[Array, "b j"]) -> Float[Array, ""]:
    r"""Kullback-Leibler divergence between the probabilities that examples pick one another as neighbours.

    .. math:: \frac{1}{b^2} \sum_{ij} p^T_{ij} \log \frac{p^T_{ij} + 10^{-7}}{p^S_{ij} + 10^{-7}}, \qquad
       p_{ij} = \frac{K_{ij}}{\sum_k K_{ik}}, \quad K_{ij} = \tfrac12 (1 + \cos(x_i, x_j))

    (Passalis and Tefas, `Learning Deep Representations with Probabilistic Knowledge
    Transfer <https://arxiv.org/abs/1803.10837>`_, 2018, section 3, with the cosine kernel and, as in their code, the
    mean over entries). The length of each embedding cancels.

    Args:
      student: embeddings, of any width and float type.
      teacher: embeddings, a constant.

    Returns:
      A float32 scalar in nats: the sum over neighbours, averaged over examples, once more divided by b. Zero at
      equality. An embedding of zeros has the cosine 0 to all.
    """

    def conditional(x: Array) -> Array:
        kernel = jnp.maximum(0.5 * (1 + cosines(x, x)), 0)  # opposite directions may round to below -1
        return kernel / jnp.sum(kernel, axis=1, keepdims=True)

    p, q = conditional(jax.lax.stop_gradient(teacher)), conditional(student)
    return jnp.mean(p * (jnp.log(p + _PKT_EPSILON) - jnp.log(q + _PKT_EPSILON)))


def consecutive_correlation(student: Float[Array, "b d"], teacher: Float[Array, "b d"]) -> Float[Array, ""]:
    r"""Products of the differences between student and teacher in consecutive rows of a batch.

    .. math:: \frac{1}{b-1} \sum_{i=1}^{b-1} \big\langle |s_i - t_i|, |s_{i+1} - t_{i+1}| \big\rangle

    This is what RepDistiller computes under the name of correlation congruence, and what its published numbers stand
    for; it says to have the code from the paper's author (Tian, Krishnan and Isola, `Contrastive Representation
    Distillation <https://arxiv.org/abs/1910.10699>`_, 2020, experiments). The formula of the paper itself is
    `kernel_correlation`. The value depends on the order of the batch, which is drawn anew each epoch.

    Args:
      student: embeddings in a common space, of any float type.
      teacher: embeddings in that space; differentiated too, as its projection is trained.

    Returns:
      A float32 scalar in squared units of the common space: summed over d, averaged over the b - 1 pairs; 0 for a batch
      of one. Zero at equality, with its derivative.
    """
    delta = jnp.abs(student.astype(jnp.float32) - teacher.astype(jnp.float32))
    return jnp.sum(delta[:-1] * delta[1:]) / max(delta.shape[0] - 1, 1)


def kernel_correlation(
    student: Float[Array, "b i"], teacher: Float[Array, "b j"], gamma: float | int = 0.4, order: int = 2
) -> Float[Array, ""]:
    r"""Squared distance between the kernel matrices of a batch.

    .. math:: \frac{1}{b^2} \| K_S - K_T \|_F^2, \qquad
       K_{ij} = e^{-2\gamma} \sum_{p=0}^{P} \frac{(2\gamma)^p}{p!} \cos(x_i, x_j)^p

    K is the Taylor polynomial of a Gaussian kernel of directions, :math:`\exp(-\gamma \|u_i - u_j\|^2)` (Peng et al.,
    `Correlation Congruence for Knowledge Distillation <https://arxiv.org/abs/1904.01802>`_, 2019, section 3, with their
    γ and P).

    Args:
      student: embeddings, of any width and float type.
      teacher: embeddings, a constant.
      gamma: γ > 0.
      order: P >= 1.

    Returns:
      A float32 scalar without unit: the mean over the b² pairs of squared differences, each at most 1. Zero at
      equality.
    """

    def kernel(x: Array) -> Array:
        near = cosines(x, x)
        total = jnp.ones_like(near)
        for p in range(order, 0, -1):
            total = 1 + (2 * gamma / p) * near * total
        return math.exp(-2 * gamma) * total

    return jnp.mean((kernel(student) - kernel(jax.lax.stop_gradient(teacher))) ** 2)


def common_heads(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, width: int) -> Heads:
    """Returns a linear head for the embeddings of each network, into one space of `width` dimensions."""
    keys = dict(zip(("student", "teacher"), jax.random.split(key), strict=True))
    widths = {"student": fields.embedding(student).shape[-1], "teacher": fields.embedding(teacher).shape[-1]}
    return {side: _EMBED.init(keys[side], widths[side], width) for side in keys}


def in_common(
    heads: Heads, student: Outputs, teacher: Outputs | None
) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
    """Returns the embeddings of both networks in the space of `common_heads`.

    Both heads are trained. Of the teacher it is the head alone: its embedding is a constant.
    """
    target = jax.lax.stop_gradient(fields.embedding(teacher))
    return _EMBED.apply(heads["student"], fields.embedding(student)), _EMBED.apply(heads["teacher"], target)


@register("sp", needs={"teacher.features"})
def sp_term(student: Outputs, teacher: Outputs | None, *, stage: int = -1) -> Float[Array, ""]:
    """The term "sp": `similarity_preserving` of one stage's maps. It has no unit.

    Args:
      student: its outputs.
      teacher: its outputs.
      stage: which map; the last, as in RepDistiller, by default.
    """
    return similarity_preserving(fields.feature(student, stage), fields.feature(teacher, stage))


@register("pkt", needs={"teacher.embedding"})
def pkt_term(student: Outputs, teacher: Outputs | None) -> Float[Array, ""]:
    """The term "pkt": `probabilistic_transfer` of the embeddings, in nats over the size of the batch."""
    return probabilistic_transfer(fields.embedding(student), fields.embedding(teacher))


@register("rkd")
def rkd_term(*, distance: float | int = 25.0, angle: float | int = 50.0) -> Term:
    """The term "rkd": `relational_distance` and `relational_angle` of the embeddings, added up. It has no unit.

    Args:
      distance: weight of the distances; 0 leaves them out. The defaults are those of RepDistiller and of the paper's
        classification experiments.
      angle: weight of the angles; 0 leaves them out.

    Raises:
      ValueError: if a weight is negative, or both are 0.
    """
    if distance < 0 or angle < 0 or distance + angle == 0:
        raise ValueError(f"distance is {distance!r} and angle {angle!r}; allowed: 0 or more, one of them above 0")

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        both = fields.embedding(student), fields.embedding(teacher)
        value = jnp.zeros((), jnp.float32)
        if distance:
            value += distance * relational_distance(*both)
        if angle:
            value += angle * relational_angle(*both)
        return value, state

    return Term("rkd", loss, frozenset({"teacher.embedding"}))


@register("cc")
def cc_term(*, kind: str = "consecutive", dim: int = 128, gamma: float | int = 0.4, order: int = 2) -> Term:
    """The term "cc": correlation congruence between the embeddings.

    "consecutive" is in squared units of the space behind the heads, a sum over its `dim`; "kernel" has no unit.

    Args:
      kind: "consecutive" (`consecutive_correlation`, as RepDistiller does it: the embeddings of student and teacher go
        through a linear head each, both trained) or "kernel" (`kernel_correlation`, the paper's formula, without
        heads).
      dim: with "consecutive", the width behind the heads.
      gamma: with "kernel", of the kernel.
      order: with "kernel", of its polynomial.

    Raises:
      ValueError: if an option is none of those named, or out of range.
    """
    if kind not in ("consecutive", "kernel"):
        raise ValueError(f"unknown kind {kind!r}; known: consecutive, kernel")
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma!r}; allowed: a positive number")
    for option, size in {"dim": dim, "order": order}.items():
        if size < 1:
            raise ValueError(f"{option} is {size!r}; allowed: 1 or more")

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        return (common_heads(key, student, teacher, dim) if kind == "consecutive" else {}), ()

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        if kind == "consecutive":
            return consecutive_correlation(*in_common(heads, student, teacher)), state
        return kernel_correlation(fields.embedding(student), fields.embedding(teacher), gamma, order), state

    return Term("cc", loss, frozenset({"teacher.embedding"}), init)
