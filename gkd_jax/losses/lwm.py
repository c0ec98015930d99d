"""Matching where teacher and student look for a class."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gkd_jax.losses import fields
from gkd_jax.losses.gradient import class_logit
from gkd_jax.losses.pairwise import unit
from gkd_jax.losses.term import Heads, State, Term, register
from gkd_jax.outputs import Batch, Outputs


def grad_cam(feature: Float[Array, "b h w k"], gradient: Float[Array, "b h w k"]) -> Float[Array, "b h w"]:
    r"""Where a feature map speaks for a class: Grad-CAM.

    .. math:: \mathrm{ReLU}\Big( \sum_k \alpha_k F_{\cdot\cdot k} \Big), \qquad
       \alpha_k = \frac{1}{hw} \sum_{uv} \frac{\partial z_y}{\partial F_{uvk}}

    (Selvaraju et al., `Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization <https://arxiv.org/abs/1610.02391>`_, 2017, equations 1 and 2).

    Args:
      feature: F, of any float type.
      gradient: of the class's logit in F.

    Returns:
      One float32 map an example, in units of the logit, not below 0: a sum over channels, of means over positions.
    """
    weights = jnp.mean(gradient.astype(jnp.float32), axis=(1, 2))
    # The default would round to TF32 or bfloat16 on accelerators.
    spoken = jnp.einsum("bhwk,bk->bhw", feature.astype(jnp.float32), weights, precision=jax.lax.Precision.HIGHEST)
    return jax.nn.relu(spoken)


def attention_distance(student: Float[Array, "b h w"], teacher: Float[Array, "b u v"]) -> Float[Array, " b"]:
    r"""L1 distance between two maps of attention, each divided by its length.

    .. math:: \sum_{uv} \left| \frac{Q^S_{uv}}{\|Q^S\|} - \frac{Q^T_{uv}}{\|Q^T\|} \right|

    with the larger map average-pooled to the smaller (Dhar et al., `Learning without
    Memorizing <https://arxiv.org/abs/1811.08051>`_, 2019, section 3.2).

    Args:
      student: maps, not below 0, of any float type.
      teacher: maps, a constant.

    Returns:
      One float32 value an example, without unit: a sum over n positions, from 0, at equality, to 2 sqrt(n). Being L1,
      its derivative does not fade near equality. A map of zeros stays one, with derivative 0; the distance to it is not
      0.
    """
    x, y = fields.pool_alike(student[..., None], jax.lax.stop_gradient(teacher)[..., None])
    x, y = (unit(maps.reshape(maps.shape[0], -1))[0] for maps in (x, y))
    return jnp.sum(jnp.abs(x - y), axis=1)


@register("lwm")
def lwm_term(*, at: str = "argmax", stage: int = -1) -> Term:
    """The term "lwm": `attention_distance` between the `grad_cam` of student and teacher for one class.

    It has no unit, and is a sum over the positions of the smaller map. The student's weights α are differentiated too:
    of a map behind which only pooling and the classifier follow they are the classifier's weights, and nothing is
    differentiated twice; of an earlier stage a step costs 3 (1 + share of the stages behind it) student forward passes,
    where plain distillation costs 3.

    Args:
      at: the class: "argmax", the one that the teacher thinks likeliest (after the paper, which takes the top one among
        the classes that the old network knows), or "label", the class of the example.
      stage: which feature map; the last by default.

    Raises:
      ValueError: if `at` is none of these.
    """
    need = class_logit(at, f"feature:{stage}")

    def attention(outputs: Outputs | None) -> Array:
        return grad_cam(fields.feature(outputs, stage), fields.gradient(outputs, need.name))

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        return attention_distance(attention(student), attention(teacher)), state

    return Term("lwm", loss, frozenset({need, "teacher.features"}))
