"""Matching what the logits of teacher and student answer to a change of the image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gkd_jax.losses import fields
from gkd_jax.losses.gradient import class_logit, gradient_cosine
from gkd_jax.losses.pairwise import unit
from gkd_jax.losses.term import Heads, State, Term, register
from gkd_jax.outputs import Batch, Gradient, Outputs


def normalised_difference(student: Float[Array, " b *shape"], teacher: Float[Array, " b *shape"]) -> Float[Array, " b"]:
    r"""Squared distance between the directions of two gradients of each example.

    .. math:: \Big\| \frac{g_S}{\|g_S\|} - \frac{g_T}{\|g_T\|} \Big\|^2 = 2 (1 - \cos(g_S, g_T))

    over all axes but the first (Srinivas and Fleuret, `Knowledge Transfer with Jacobian
    Matching <https://arxiv.org/abs/1803.00443>`_, 2018, with g a row of the Jacobian).

    Args:
      student: gradients of the student, of any float type.
      teacher: gradients of the teacher, a constant.

    Returns:
      One float32 value an example, without unit, from 0 to 4: twice `gradient_cosine`, with its rule for zeros.
    """
    return 2 * gradient_cosine(student, jax.lax.stop_gradient(teacher))


def squared_difference(student: Float[Array, " b *shape"], teacher: Float[Array, " b *shape"]) -> Float[Array, " b"]:
    r"""Squared distance :math:`\| g_S - g_T \|^2` between two gradients of each example, over all axes but the first.

    Args:
      student: gradients of the student, of any float type.
      teacher: gradients of the teacher, a constant.

    Returns:
      One float32 value an example, in squared units of the gradients, a sum; zero at equality.
    """
    difference = student.astype(jnp.float32) - jax.lax.stop_gradient(teacher).astype(jnp.float32)
    return jnp.sum(difference.reshape(difference.shape[0], -1) ** 2, axis=1)


def random_logit(at: str) -> Gradient:
    """Returns the request for the gradient of a random mixture of each example's logits.

    The mixture is uniform on the unit sphere, drawn for each example and step, and the same for teacher and student,
    who have the same key at a step. Nothing can remember the answer.

    Args:
      at: "input" or "feature:i", see `gkd_jax.outputs.Gradient`.
    """

    def cotangent(logits: Array, teacher_logits: Array | None, batch: Batch, key: PRNGKeyArray) -> Array:
        return unit(jax.random.normal(key, logits.shape, jnp.float32))[0]

    return Gradient(f"random@{at}", at, cotangent)


@register("jacobian")
def jacobian_term(*, at: str = "label") -> Term:
    """The term "jacobian": `normalised_difference` of the gradients of one logit in the normalised image.

    It has no unit. A step costs 6 student forward passes where plain distillation costs 3. Only the direction of the
    teacher's gradient counts, so that a cache may hold it.

    Args:
      at: whose logit: "label", the class of the example, or "argmax", the class that the teacher thinks likeliest.

    Raises:
      ValueError: if `at` is none of these.
    """
    need = class_logit(at, "input")

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        return normalised_difference(fields.gradient(student, need.name), fields.gradient(teacher, need.name)), state

    return Term("jacobian", loss, frozenset({need}))


@register("sobolev")
def sobolev_term() -> Term:
    r"""The term "sobolev": `squared_difference` of the gradients of a random mixture of logits in the normalised image.

    .. math:: \| \nabla_x \langle v, z_S \rangle - \nabla_x \langle v, z_T \rangle \|^2, \qquad \|v\| = 1

    with v random, the same for both (Czarnecki et al., `Sobolev Training for Neural
    Networks <https://arxiv.org/abs/1706.04859>`_, 2017, section 2, the stochastic form). Over v it is 1 / c of the
    squared Frobenius distance between the Jacobians. One value an example, in squared logits per squared unit of the
    normalised image, summed over pixels and channels: it grows with both the image and the logits. A step costs 6
    student forward passes where plain distillation costs 3.
    """
    need = random_logit("input")

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        return squared_difference(fields.gradient(student, need.name), fields.gradient(teacher, need.name)), state

    return Term("sobolev", loss, frozenset({need}))
