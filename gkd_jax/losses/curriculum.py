"""Distillation at a temperature that is learned against the student."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gkd_jax.losses import fields
from gkd_jax.losses.logit import at, check_positive, check_weights, kd
from gkd_jax.losses.term import Heads, Scheduled, State, Term, register
from gkd_jax.outputs import Batch, Outputs, Setup

# Of the trained parameter, in the published code: with its span of 20, a temperature of 15.6.
_START = 1.0


@jax.custom_vjp
def reverse(x: Float[Array, "*shape"], strength: Float[Array, ""]) -> Float[Array, "*shape"]:
    """Returns x; its derivative is -strength times the right one, so that a descent climbs.

    (Ganin and Lempitsky, `Unsupervised Domain Adaptation by Backpropagation <https://arxiv.org/abs/1409.7495>`_, 2015.)
    No derivative reaches the strength, and there is none in forward mode.
    """
    return x


def _forward(x: Array, strength: Array) -> tuple[Array, Array]:
    return x, strength


def _backward(strength: Array, cotangent: Array) -> tuple[Array, Array]:
    return -strength * cotangent, jnp.zeros_like(strength)


reverse.defvjp(_forward, _backward)


@register("ctkd")
def ctkd_term(
    *, low: float | int = 1.0, span: float | int = 20.0, strength: Scheduled = 1.0, standardize: bool = False
) -> Term:
    r"""The term "ctkd": `logit.kd`, in T² nats, at a temperature that is trained to make it larger.

    .. math:: T = \mathrm{low} + \mathrm{span} \cdot \mathrm{sigmoid}(\theta)

    with one trained number θ, from 1, whose gradient is reversed and multiplied by λ: the student descends, the
    temperature climbs (Li et al., `Curriculum Temperature for Knowledge Distillation
    <https://arxiv.org/abs/2211.16231>`_, 2022, the global form, equations 4 to 8). θ is in the heads, so that the
    student's optimiser trains it, weight decay included, as in the published code. The temperature of the last step is
    carried in the state and reported as "temperature".

    Args:
      low: the temperature lies above it; published as t_start: 1.
      span: and below low + span; published as t_end: 20.
      strength: λ, a number, or a schedule `step -> strength`. Published: (1 - cos(π min(e, 10) / 10)) / 2 in the epoch
        e, counted from 1.
      standardize: take `logit.standardised` logits on both sides.

    Raises:
      ValueError: if `low` or `span` is not positive, or `strength` is a number below 0.
    """
    check_positive("low", low)
    check_positive("span", span)
    check_weights(strength=strength)

    def temperature(parameter: Array) -> Array:
        return low + span * jax.nn.sigmoid(parameter)

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        start = jnp.asarray(_START, jnp.float32)
        return {"temperature": start}, {"temperature": temperature(start)}

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        now = temperature(reverse(heads["temperature"], jnp.asarray(at(strength, batch.step), jnp.float32)))
        values = kd(student.logits, fields.logits(teacher), now, standardize=standardize)
        return values, {"temperature": jax.lax.stop_gradient(now)}

    def readings(state: State) -> Mapping[str, Array]:
        return {"temperature": state["temperature"]}

    return Term("ctkd", loss, frozenset({"teacher.logits"}), init, readings=readings)
