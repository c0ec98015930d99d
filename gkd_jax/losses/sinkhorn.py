"""Entropic optimal transport by a fixed number of Sinkhorn iterations, and the divergence built on it."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SOLVERS = ("ott", "unrolled")

FLOOR = 1e-6
"""The least mass of a class: exact zeros give NaN derivatives while the value stays finite."""


class Transport(NamedTuple):
    """Solutions of p problems.

    Attributes:
      cost: the regularised cost of each, in units of the ground cost.
      marginal_error: L1 distance of the plan's column sums to b; its row sums are a up to rounding.
    """

    cost: Float[Array, " p"]
    marginal_error: Float[Array, " p"]


class Divergence(NamedTuple):
    """A debiased divergence, and how far the solver was from convergence.

    Attributes:
      value: one for each pair of measures, in units of the ground cost.
      marginal_error: the largest L1 error of a marginal among the three problems behind each value; a constant.
    """

    value: Float[Array, "*e"]
    marginal_error: Float[Array, "*e"]


def relative_epsilon(cost: Float[Array, "p n m"], ratio: float | int) -> Float[Array, " p"]:
    """Returns `ratio * max(mean cost, 1e-6)` for each problem, a constant to differentiation."""
    return ratio * jnp.maximum(jnp.mean(jax.lax.stop_gradient(cost), axis=(1, 2)), 1e-6)


def floored(p: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """Returns `p (1 - c FLOOR) + FLOOR`: class probabilities of at least `FLOOR` that still sum to 1."""
    return p * (1 - p.shape[1] * FLOOR) + FLOOR


def solve(
    cost: Float[Array, "q n m"],
    a: Float[Array, "p n"],
    b: Float[Array, "p m"],
    epsilon: Float[Array, " p"],
    iterations: int = 10,
    solver: str = "ott",
) -> Transport:
    r"""Entropic optimal transport of p problems at once.

    .. math:: \mathrm{OT}_\varepsilon(a, b) = \min_P \langle P, C \rangle + \varepsilon \mathrm{KL}(P \,\|\, a b^\top)

    over the plans P with row sums a and column sums b (up to a constant: Cuturi, `Sinkhorn Distances
    <https://arxiv.org/abs/1306.0895>`_, 2013), in the dual form that OTT calls `reg_ot_cost`. Each iteration updates
    the column potential, then the row potential, so that the row sums of the final plan are exact and its column sums
    are not. The potentials start from half of ε log of their marginals, which solves OT(a, a) under a cost that keeps
    all points apart, and is the usual start from zero where the marginals are uniform: for class probabilities the
    derivatives are then up to six times as near to convergence.

    Derivatives are Danskin's: the potentials count as constants, which gives P in the cost and the row potential,
    less ε log a, in a. They are those of the minimum only as far as the iterations have converged, and only of first
    order: higher derivatives are wrong.

    Args:
      cost: C, float32; q is p, or 1 for a cost that all problems share.
      a: row marginals, positive.
      b: column marginals, positive.
      epsilon: ε; the iterations needed grow like max C / ε.
      iterations: how many, whatever the error. The solver "unrolled" compiles time proportional to it.
      solver: "ott", the reference, a loop on the device; or "unrolled", the same to rounding without the loop.

    Raises:
      ValueError: if `solver` is neither, or `iterations` is not positive.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; known: {', '.join(SOLVERS)}")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; allowed: 1 or more")
    return (_solve_ott if solver == "ott" else _solve_unrolled)(cost, a, b, epsilon, iterations)


def _solve_unrolled(
    cost: Float[Array, "q n m"],
    a: Float[Array, "p n"],
    b: Float[Array, "p m"],
    epsilon: Float[Array, " p"],
    iterations: int,
) -> Transport:
    scaled = cost / epsilon[:, None, None]
    log_a, log_b = jnp.log(a), jnp.log(b)
    # Potentials in units of epsilon.
    s, r, c = jax.lax.stop_gradient((scaled, log_a, log_b))
    g = c - jax.nn.logsumexp((r / 2)[:, :, None] - s, axis=1)
    f = r - jax.nn.logsumexp(g[:, None, :] - s, axis=2)
    for _ in range(iterations - 1):
        # The same from the plan's sums, which need no maximum taken out, and so a launch less: as the rows sum to a, no
        # column sums to more than 1, nor to less than its b times the least of a, since before the rows it summed to b.
        g = g + c - jnp.log(jnp.sum(jnp.exp(f[:, :, None] + g[:, None, :] - s), axis=1))
        f = f + r - jnp.log(jnp.sum(jnp.exp(f[:, :, None] + g[:, None, :] - s), axis=2))
    columns = jnp.sum(jnp.exp(f[:, :, None] + g[:, None, :] - scaled), axis=1)
    dual = jnp.sum(a * (f - log_a), axis=1) + jnp.sum(b * (g - log_b), axis=1)
    value = epsilon * (dual + jnp.sum(a, axis=1) * jnp.sum(b, axis=1) - jnp.sum(columns, axis=1))
    return Transport(value, jax.lax.stop_gradient(jnp.sum(jnp.abs(columns - b), axis=1)))


@functools.cache
def _ott() -> tuple[Any, Any, Any]:
    """Imports OTT: slow, and only some terms need it."""
    # Where this happens inside a trace, constants of the imported modules must not become part of it.
    with warnings.catch_warnings(), jax.ensure_compile_time_eval():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="jaxopt")
        from ott.geometry.geometry import Geometry
        from ott.problems.linear.linear_problem import LinearProblem
        from ott.solvers.linear.sinkhorn import Sinkhorn
    return Geometry, LinearProblem, Sinkhorn


def _solve_ott(
    cost: Float[Array, "q n m"],
    a: Float[Array, "p n"],
    b: Float[Array, "p m"],
    epsilon: Float[Array, " p"],
    iterations: int,
) -> Transport:
    geometry, problem, sinkhorn = _ott()
    solver = sinkhorn(
        min_iterations=iterations,
        max_iterations=iterations,
        inner_iterations=iterations,
        threshold=0.0,  # never an int, which fails where the loop is differentiated
        implicit_diff=None,
        use_danskin=True,  # not the default without implicit differentiation
    )

    def one(cost: Array, a: Array, b: Array, epsilon: Array) -> tuple[Array, Array]:
        posed = problem(geometry(cost_matrix=cost, epsilon=epsilon), a=a, b=b)
        # The loop sees constants: its derivative, which Danskin's theorem makes needless, is then never traced.
        fixed, start = jax.lax.stop_gradient((posed, (epsilon * jnp.log(a) / 2, epsilon * jnp.log(b) / 2)))
        out = solver(fixed, init=start)
        value: Array = out.set_cost(posed, lse_mode=True, use_danskin=True).reg_ot_cost
        return value, out.errors[-1]

    if cost.shape[0] == a.shape[0]:
        batched: Callable[..., tuple[Array, Array]] = jax.vmap(one)
    else:
        cost, batched = cost[0], jax.vmap(one, in_axes=(None, 0, 0, 0))
    with jax.numpy_rank_promotion("allow"):  # OTT relies on it
        return Transport(*batched(cost, a, b, epsilon))


def debiased(
    cost: Float[Array, "p n n"],
    a: Float[Array, "e n"],
    b: Float[Array, "e n"],
    epsilon: Float[Array, " e"],
    iterations: int = 10,
    solver: str = "ott",
) -> Divergence:
    r"""Sinkhorn divergence of e pairs of measures.

    .. math:: S_\varepsilon(a, b) = \mathrm{OT}_\varepsilon(a, b) - \tfrac12 \mathrm{OT}_\varepsilon(a, a)
              - \tfrac12 \mathrm{OT}_\varepsilon(b, b)

    (Feydy et al., `Interpolating between Optimal Transport and MMD using Sinkhorn Divergences
    <https://arxiv.org/abs/1810.08278>`_, 2019), all with the same ε: with one of its own for each problem,
    a shrunken a would come too cheap. The term ½ OT(a, a) contributes its value, and the derivative of OT(a, a') in a
    at the constant a' = a: at convergence that is the same by symmetry, and before it makes value *and* derivative
    exactly zero at equality.

    Derivatives reach a, and costs that depend on it; b is a constant. See `solve` for when they are valid.

    Args:
      cost: the costs between a and b, then a and a, then b and b, [3e n n]; or [1 n n], one cost for all. The caller
        stops the gradient of what is constant in it: the second argument of each cost, and the third cost.
      a: masses, positive.
      b: masses, positive.
      epsilon: ε of each pair.
      iterations: see `solve`.
      solver: see `solve`.

    Returns:
      e values, zero at equality, with their marginal errors.

    Raises:
      ValueError: as `solve`.
    """
    fixed, b = jax.lax.stop_gradient((a, b))
    rows, columns = jnp.concatenate([a, a, b]), jnp.concatenate([b, fixed, b])
    solved = solve(cost, rows, columns, jnp.tile(epsilon, 3), iterations, solver)
    cross, own, teacher = jnp.split(solved.cost, 3)
    value = cross - (own - jax.lax.stop_gradient(own) / 2) - teacher / 2
    return Divergence(value, jnp.max(solved.marginal_error.reshape(3, -1), axis=0))
