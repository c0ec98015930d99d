"""Terms of any size, brought to the size of the cross-entropy."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from gkd_jax.losses.logit import cross_entropy
from gkd_jax.losses.term import Heads, State, Term
from gkd_jax.outputs import Batch, Outputs, Setup

_MOST = 1e6


def balanced(term: Term, *, decay: float = 0.99) -> Term:
    r"""Returns the term times the ratio of two running means, so that a weight of 1 is a sane start.

    .. math:: \tilde L_k = \frac{m(CE)}{m(|L_k|)} L_k, \qquad
       m(x)_{i} = d \, m(x)_{i-1} + (1 - d) \, \bar x_i

    with m(x) starting at zero, so that its bias cancels in the ratio, :math:`\bar x_i` the mean over the batch of step
    i, and CE the student's cross-entropy on the view that the term sees. The ratio is a constant to differentiation,
    and at most a million.

    Args:
      term: of any kind; where it is computed at every so many steps only, so are the means.
      decay: d, at least 0 and below 1.

    Returns:
      A term of the same name. Its state also holds the means, and its readings also give the ratio, "balance".
    """

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        heads, inner = term.init(key, student, teacher, setup)
        return heads, {"inner": inner, "own": jnp.zeros((), jnp.float32), "ce": jnp.zeros((), jnp.float32)}

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        values, inner = term.loss(heads, state["inner"], student, teacher, batch, key)
        seen = {"own": jnp.abs(values.astype(jnp.float32)), "ce": cross_entropy(student.logits, batch.targets)}
        means = {
            name: decay * state[name] + (1 - decay) * jax.lax.stop_gradient(jnp.mean(x)) for name, x in seen.items()
        }
        return _ratio(means) * values, {"inner": inner, **means}

    def readings(state: State) -> Mapping[str, Array]:
        return {**term.readings(state["inner"]), "balance": _ratio(state)}

    return term._replace(init=init, loss=loss, readings=readings)


def _ratio(means: Mapping[str, Array]) -> Array:
    return means["ce"] / jnp.maximum(means["own"], means["ce"] / _MOST + 1e-30)
