"""The term "wasserstein": which of the distances of `transport` is taken, between what."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from gkd_jax.losses import fields, transport
from gkd_jax.losses.heads import LINEAR, POINTWISE, Head, match, project
from gkd_jax.losses.logit import at, check_positive
from gkd_jax.losses.sinkhorn import SOLVERS, Divergence
from gkd_jax.losses.term import Heads, Scheduled, State, Term, register
from gkd_jax.outputs import Batch, Outputs, Setup

KINDS = ("sinkhorn", "sinkhorn_tokens", "gaussian", "sliced", "logit")
MEASURES = ("embedding", "tokens")

_Compare = Callable[[Array, Array, State, Batch, PRNGKeyArray], Array | Divergence]


class _Side(NamedTuple):
    """What is compared: the field, where it stands in the outputs, and how the student's is projected."""

    need: str
    read: Callable[[Outputs | None], Any]
    head: Head


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {option} {value!r}; known: {', '.join(allowed)}")


def _within(option: str, value: float | int, allowed: bool, rule: str) -> None:
    if not allowed:
        raise ValueError(f"{option} is {value!r}; allowed: {rule}")


@register("wasserstein")
def wasserstein_term(
    *,
    kind: str = "sinkhorn",
    epsilon: float | int | None = None,
    iterations: int = 10,
    label_cost: float | int = 1.0,
    solver: str = "ott",
    grid: int = 4,
    stage: int = -1,
    projections: int = 64,
    ratio: float | int = 1.0,
    over: str = "embedding",
    temperature: Scheduled = 1.0,
) -> Term:
    """The term "wasserstein": a distance between what student and teacher see as measures.

    Where the widths differ, the student's side goes through a learned projection of this term. The kinds with
    Sinkhorn's algorithm carry `marginal_error` of the last step in their state, and report it.

    "gaussian" is in squared features, a sum over channels. The others have no unit: squared distances between vectors
    of length 1, or for "logit" costs between classes from 0 to 2, averaged by the plan or over points and directions.

    Args:
      kind: "sinkhorn", the embeddings of the batch (`transport.sinkhorn_divergence`); "sinkhorn_tokens", the positions
        of a map in each example (`transport.sinkhorn_tokens`); "gaussian", the channels' means and standard deviations
        (`transport.gaussian`); "sliced", embeddings or positions along random directions (`transport.sliced`); "logit",
        class probabilities, with a cost from the teacher's classifier (`transport.sinkhorn_logits`).
      epsilon: regularisation in units of the mean cost, for the kinds with Sinkhorn's algorithm. None is 0.1, but 0.5
        for "logit", where ten iterations do not converge below that.
      iterations: of Sinkhorn's algorithm.
      label_cost: for "sinkhorn", added to the cost between examples of different classes.
      solver: of Sinkhorn: "ott", or "unrolled", the same without a loop, for accelerators.
      grid: for positions, the most of them a side.
      stage: which feature map positions and channels are taken from.
      projections: for "sliced", the number of directions, drawn anew at each step.
      ratio: for "gaussian", the weight of the means against the standard deviations.
      over: for "sliced": "embedding" or "tokens".
      temperature: for "logit", divides the logits; a positive number, or a schedule `step -> temperature`.

    Raises:
      ValueError: if an option is not one of those named, or out of range.
    """
    _one_of("kind", kind, KINDS)
    _one_of("solver", solver, SOLVERS)
    _one_of("over", over, MEASURES)
    if epsilon is None:
        epsilon = 0.5 if kind == "logit" else 0.1
    for option, size in {"iterations": iterations, "grid": grid, "projections": projections}.items():
        _within(option, size, size >= 1, "1 or more")
    _within("epsilon", epsilon, epsilon > 0, "a positive number")
    check_positive("temperature", temperature)
    for option, weight in {"label_cost": label_cost, "ratio": ratio}.items():
        _within(option, weight, weight >= 0, "0 or more")
    solving: dict[str, Any] = {"epsilon": epsilon, "iterations": iterations, "solver": solver}

    def by_embedding(x: Array, y: Array, state: State, batch: Batch, key: PRNGKeyArray) -> Divergence:
        return transport.sinkhorn_divergence(x, y, batch.labels, label_cost=label_cost, **solving)

    def by_tokens(x: Array, y: Array, state: State, batch: Batch, key: PRNGKeyArray) -> Divergence:
        return transport.sinkhorn_tokens(x, y, grid=grid, **solving)

    def by_moments(x: Array, y: Array, state: State, batch: Batch, key: PRNGKeyArray) -> Array:
        return transport.gaussian(x, y, ratio=ratio)

    def by_slices(x: Array, y: Array, state: State, batch: Batch, key: PRNGKeyArray) -> Array:
        if over == "tokens":
            x, y = fields.tokens(x), fields.tokens(y)
        return transport.sliced(x, y, key, projections=projections)

    def by_logits(x: Array, y: Array, state: State, batch: Batch, key: PRNGKeyArray) -> Divergence:
        now = at(temperature, batch.step)
        return transport.sinkhorn_logits(x, y, batch.constants, temperature=now, **solving)

    kinds: dict[str, _Compare] = {
        "sinkhorn": by_embedding,
        "sinkhorn_tokens": by_tokens,
        "gaussian": by_moments,
        "sliced": by_slices,
        "logit": by_logits,
    }
    compare = kinds[kind]
    positions = kind == "sinkhorn_tokens" or (kind == "sliced" and over == "tokens")
    if kind == "logit":
        side = _Side("logits", fields.logits, LINEAR)
    elif positions or kind == "gaussian":
        side = _Side("features", lambda outputs: fields.feature(outputs, stage), POINTWISE)
    else:
        side = _Side("embedding", fields.embedding, LINEAR)

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        state: dict[str, Array] = {}
        if kind.startswith("sinkhorn") or kind == "logit":
            state["marginal_error"] = jnp.zeros((), jnp.float32)
        return match(side.head, key, side.read(student).shape[-1], side.read(teacher).shape[-1]), state

    def constants(setup: Setup) -> Any:
        return transport.class_cost(fields.classifier_kernel(setup)) if kind == "logit" else ()

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        x, y = side.read(student), jax.lax.stop_gradient(side.read(teacher))
        if positions:  # before the projection, which is linear, and cheaper on fewer positions
            x, y = fields.pool_alike(x, y, grid)
        found = compare(project(side.head, heads, x), y, state, batch, key)
        if isinstance(found, Divergence):
            return found.value, {**state, "marginal_error": jnp.mean(found.marginal_error)}
        return found, state

    def readings(state: State) -> Mapping[str, Array]:
        return {name: state[name] for name in ("marginal_error",) if name in state}

    return Term("wasserstein", loss, frozenset({f"teacher.{side.need}"}), init, constants, readings)
