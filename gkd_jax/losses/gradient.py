"""Matching the directions in which teacher and student want to change."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from gkd_jax.losses import fields
from gkd_jax.losses.heads import POINTWISE, match, project
from gkd_jax.losses.pairwise import unit
from gkd_jax.losses.term import Heads, Need, State, Term, register
from gkd_jax.outputs import Batch, Gradient, Outputs, Setup


def residual(logits: Float[Array, "b c"], targets: Float[Array, "b c"]) -> Float[Array, "b c"]:
    r"""Derivative of the cross-entropy in the logits, p - y with p = softmax(z), without cancellation.

    .. math:: p_i - y_i = p_i (1 - y_i) - y_i (1 - p_i)

    where 1 - p_i is formed as the sum of the other probabilities for the likeliest class, and as a difference only for
    the others, whose p_i is at most 1/2. For one-hot targets each entry is then right to rounding as long as the
    probabilities do not underflow (a margin of 87 between logits); the plain difference is noise from a margin of 15.

    Args:
      logits: z, of any float type.
      targets: y, the rows summing to 1: one-hot, smoothed or mixed.

    Returns:
      One float32 row an example, in probability, summing to zero. Differentiable to any order in the logits.
    """
    targets = targets.astype(jnp.float32)
    p = jax.nn.softmax(logits.astype(jnp.float32))
    likeliest = jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1], dtype=bool)
    rest = jnp.sum(jnp.where(likeliest, 0, p), axis=-1, keepdims=True)
    return p * (1 - targets) - targets * jnp.where(likeliest, rest, 1 - p)


def _angle(a: Float[Array, " b *shape"], b: Float[Array, " b *shape"]) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
    """Returns `1 - cos` for each example, and whether both sides have a direction; 0 where they have not."""
    (a, known_a), (b, known_b) = (unit(x.reshape(x.shape[0], -1)) for x in (a, b))
    known = known_a & known_b
    # Half the squared distance of unit vectors is 1 - cos, but exactly zero, with its derivative, at equality.
    return jnp.where(known, 0.5 * jnp.sum((a - b) ** 2, axis=-1), 0), known


def gradient_cosine(a: Float[Array, " b *shape"], b: Float[Array, " b *shape"]) -> Float[Array, " b"]:
    r"""One minus the cosine between two gradients of each example.

    .. math:: 1 - \frac{\langle a, b \rangle}{\|a\| \, \|b\|}

    over all axes but the first. Each side is first divided by its largest magnitude, a constant to differentiation, so
    that the squares of tiny gradients do not underflow; the cosine does not depend on the scale.

    Args:
      a: gradients of the student, of any float type.
      b: gradients of the teacher.

    Returns:
      One float32 value an example, without unit, from 0 to 2. An example where either gradient is zero (no entry above
      1e-30) has value and derivative 0, never NaN. Derivatives are valid everywhere else.
    """
    return _angle(a, b)[0]


def classifier_gradient(
    student_logits: Float[Array, "b c"],
    teacher_logits: Float[Array, "b c"],
    targets: Float[Array, "b c"],
    student_embedding: Float[Array, "b d"],
    teacher_embedding: Float[Array, "b d"],
) -> Float[Array, " b"]:
    r"""One minus the cosine between the gradients of the cross-entropy in the classifiers' weights.

    For logits :math:`z = W^\top h + b` the gradient is the outer product :math:`(p - y) \otimes h`, and the cosine of
    outer products is the product of cosines:

    .. math:: 1 - \cos(p_S - y, p_T - y) \cdot \cos(h_S, h_T)

    so that logits, targets and embeddings are all it needs, and no second backward pass. Our derivation. The teacher is
    a constant.

    Args:
      student_logits: of the student.
      teacher_logits: of the teacher.
      targets: y, class probabilities.
      student_embedding: h_S, what the student's classifier reads, projected to the teacher's width.
      teacher_embedding: h_T.

    Returns:
      One float32 value an example, without unit, from 0 to 2; 0, with its derivative, where one of the gradients is
      zero.
    """
    teacher_logits, teacher_embedding = jax.lax.stop_gradient((teacher_logits, teacher_embedding))
    r, r_known = _angle(residual(student_logits, targets), residual(teacher_logits, targets))
    h, h_known = _angle(student_embedding, teacher_embedding)
    # 1 - (1 - r)(1 - h), without the cancellation.
    return jnp.where(r_known & h_known, r + h - r * h, 0)


def class_logit(which: str, at: str) -> Gradient:
    """Returns the request for the gradient of one logit of each example, that of a class which both networks share.

    The teacher's answer depends on the image and its class alone. Where only its direction counts, as here, it may be
    remembered; but then the student's class is that of the remembered logits, in float16, so that among two logits
    within 0.1 % of one another either may be taken for the largest.

    Args:
      which: "label", the class of the example; "argmax", the class that the teacher thinks likeliest.
      at: "input" or "feature:i", see `gkd_jax.outputs.Gradient`.

    Returns:
      A request named "label@AT" or "argmax@AT"; its answer is in logits per unit of what it is taken in.

    Raises:
      ValueError: if `which` is none of these.
    """

    def cotangent(logits: Array, teacher_logits: Array | None, batch: Batch, key: PRNGKeyArray) -> Array:
        seen = logits if teacher_logits is None else teacher_logits
        chosen = batch.labels if which == "label" else jnp.argmax(seen, axis=-1)
        return jax.nn.one_hot(chosen, logits.shape[-1])

    if which not in ("label", "argmax"):
        raise ValueError(f"unknown class {which!r}; known: label, argmax")
    return Gradient(f"{which}@{at}", at, cotangent, cacheable=True)


def _cross_entropy(at: str) -> Gradient:
    """Returns the request for the gradient of the *summed* cross-entropy, so that it does not shrink with the batch."""

    def cotangent(logits: Array, teacher_logits: Array | None, batch: Batch, key: PRNGKeyArray) -> Array:
        return residual(logits, batch.targets)

    return Gradient(f"ce@{at}", at, cotangent, cacheable=True)


def _of_input() -> Term:
    need = _cross_entropy("input")

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        target = jax.lax.stop_gradient(fields.gradient(teacher, need.name))
        return gradient_cosine(fields.gradient(student, need.name), target), state

    return Term("gradient", loss, frozenset({need}))


def _of_features(stage: int) -> Term:
    need = _cross_entropy(f"feature:{stage}")

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        widths = (fields.gradient(outputs, need.name).shape[-1] for outputs in (student, teacher))
        # Never left out: channels of two networks do not correspond, even where there are equally many.
        return {"projection": POINTWISE.init(key, *widths)}, ()

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        target = jax.lax.stop_gradient(fields.gradient(teacher, need.name))
        ours, target = fields.pool_alike(fields.gradient(student, need.name), target)
        return gradient_cosine(project(POINTWISE, heads, ours), target), state

    return Term("gradient", loss, frozenset({need}), init)


def _of_classifier() -> Term:
    needs: frozenset[Need] = frozenset({"teacher.logits", "teacher.embedding"})

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        widths = (fields.embedding(outputs).shape[-1] for outputs in (student, teacher))
        return match(POINTWISE, key, *widths), ()

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        ours = project(POINTWISE, heads, fields.embedding(student))
        logits, target = fields.logits(teacher), fields.embedding(teacher)
        return classifier_gradient(student.logits, logits, batch.targets, ours, target), state

    return Term("gradient", loss, needs, init)


@register("gradient")
def gradient_term(*, wrt: str = "input", stage: int = -2) -> Term:
    """The term "gradient": one minus the cosine between gradients of the cross-entropy of student and teacher.

    It has no unit. The cross-entropy is the sum over the batch, with the batch's targets. A step costs, in student
    forward passes where plain distillation costs 3: "input" 6; "features" 3 (1 + share of the stages behind `stage`);
    "classifier" 3.

    Args:
      wrt: what the gradients are taken in. "input", the normalised images (after Zagoruyko and Komodakis, `Paying More
        Attention to Attention <https://arxiv.org/abs/1612.03928>`_, 2017, section 3.2, with a cosine for the norm; see
        also Srinivas and Fleuret, `Knowledge Transfer with Jacobian Matching <https://arxiv.org/abs/1803.00443>`_,
        2018). "features", a feature map, the student's through a learned 1x1 projection and the larger map average-
        pooled to the smaller. "classifier", the classifier's weights, by `classifier_gradient`, where embeddings of
        another width go through a learned projection.
      stage: with "features", the index of the map; -2 is the one that enters the last stage.

    Raises:
      ValueError: if `wrt` is none of these.
    """
    kinds: dict[str, Any] = {"input": _of_input, "features": lambda: _of_features(stage), "classifier": _of_classifier}
    if wrt not in kinds:
        raise ValueError(f"unknown wrt {wrt!r}; known: {', '.join(kinds)}")
    term: Term = kinds[wrt]()
    return term
