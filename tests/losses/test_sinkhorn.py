import jax
import jax.numpy as jnp
import numpy as np
import numpy_transport as reference
import pytest
from scipy import special

from gkd_jax.losses import sinkhorn, transport

SOLVERS = ("ott", "unrolled")
solve = jax.jit(sinkhorn.solve, static_argnums=(4, 5))


def _problem(seed=0, p=3, n=7, m=5):
    rng = np.random.default_rng(seed)
    a, b = rng.dirichlet(np.ones(n), p), rng.dirichlet(np.ones(m), p)
    return [np.asarray(x, np.float32) for x in (rng.uniform(size=(p, n, m)), a, b, rng.uniform(0.2, 0.4, p))]


@pytest.mark.parametrize("solver", SOLVERS)
def test_cost_is_the_primal_at_convergence(solver):
    cost, a, b, epsilon = _problem()
    found = solve(*map(jnp.asarray, (cost, a, b, epsilon)), 60, solver)
    expected = [reference.primal(*map(np.float64, args)) for args in zip(cost, a, b, epsilon, strict=True)]
    np.testing.assert_allclose(found.cost, expected, atol=2e-6)
    assert np.max(found.marginal_error) < 1e-5


@pytest.mark.parametrize("solver", SOLVERS)
def test_derivatives_are_plan_and_potential(solver):
    cost, a, b, epsilon = _problem()
    f = lambda cost, a: sinkhorn.solve(cost, a, jnp.asarray(b), jnp.asarray(epsilon), 60, solver).cost.sum()
    in_cost, in_a = jax.grad(f, (0, 1))(jnp.asarray(cost), jnp.asarray(a))
    for i in range(len(a)):
        args = [np.float64(x[i]) for x in (cost, a, b, epsilon)]
        np.testing.assert_allclose(in_cost[i], reference.plan(*args), atol=1e-6)
        expected = reference.potentials(*args)[0]  # relative to a b, hence without epsilon log a
        np.testing.assert_allclose(in_a[i] - in_a[i].mean(), expected - expected.mean(), atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_solvers_agree_before_convergence(iterations):
    args = tuple(map(jnp.asarray, _problem()))

    def both(solver):
        f = lambda cost, a, b: sinkhorn.solve(cost, a, b, args[3], iterations, solver)
        return f(*args[:3]), jax.jit(jax.grad(lambda *x: f(*x).cost.sum(), (0, 1, 2)))(*args[:3])

    (ott, ott_grads), (ours, our_grads) = map(both, SOLVERS)
    np.testing.assert_allclose(ours.cost, ott.cost, atol=1e-5)
    np.testing.assert_allclose(ours.marginal_error, ott.marginal_error, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), our_grads, ott_grads)


@pytest.mark.parametrize("mass", [None, sinkhorn.FLOOR])
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e5])
def test_far_costs_and_little_mass_are_those_of_logarithms(scale, mass):
    """Costs of up to 1e5 ε, where every exponential that nothing is taken out of is 0: in double precision by NumPy."""
    rng = np.random.default_rng(3)
    cost = scale * rng.uniform(size=(1, 6, 6)) ** 4
    a, b = rng.dirichlet(np.ones(6), 2)
    if mass is not None:
        a[:3], b[2:5] = mass, mass
        a, b = a / a.sum(), b / b.sum()
    f = np.log(a) / 2
    for _ in range(10):
        g = np.log(b) - special.logsumexp(f[:, None] - cost[0], 0)
        f = np.log(a) - special.logsumexp(g[None] - cost[0], 1)
    wanted = a @ (f - np.log(a)) + b @ (g - np.log(b)) + 1 - np.exp(f[:, None] + g - cost[0]).sum()
    args = [jnp.asarray(x, jnp.float32) for x in (cost, a[None], b[None], [1.0])]
    ours = sinkhorn.solve(*args, 10, "unrolled")
    np.testing.assert_allclose(ours.cost, wanted, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda cost: sinkhorn.solve(cost, *args[1:], 10, "unrolled").cost.sum())(args[0])
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_marginal_error_is_that_of_the_columns(solver):
    cost, a, b, epsilon = map(jnp.asarray, _problem())
    plan = jax.grad(lambda c: solve(c, a, b, epsilon, 2, solver).cost.sum())(cost)
    np.testing.assert_allclose(plan.sum(2), a, atol=1e-6)
    expected = np.abs(plan.sum(1) - b).sum(1)
    assert expected.min() > 1e-4
    np.testing.assert_allclose(solve(cost, a, b, epsilon, 2, solver).marginal_error, expected, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_shared_cost_is_the_repeated_one(solver):
    cost, a, b, epsilon = map(jnp.asarray, _problem())
    shared = solve(cost[:1], a, b, epsilon, 5, solver)
    repeated = solve(jnp.repeat(cost[:1], 3, axis=0), a, b, epsilon, 5, solver)
    np.testing.assert_allclose(shared.cost, repeated.cost, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "iterations", "said"), [("pot", 10, "pot.*ott, unrolled"), ("ott", 0, "0.*1 or more")]
)
def test_bad_options(solver, iterations, said):
    with pytest.raises(ValueError, match=said):
        sinkhorn.solve(*map(jnp.asarray, _problem()), iterations, solver)


def test_floor_keeps_the_mass():
    p = np.asarray(sinkhorn.floored(jnp.asarray([[1.0, 0, 0, 0], [0.25] * 4])))
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(p[0, 1:], 1e-6, rtol=1e-5)


def _batch(kind, b=64, d=32, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, b)
    centres_s, centres_t = rng.normal(size=(2, classes, d))
    if kind == "random":
        x, y = rng.normal(size=(2, b, d))
    elif kind == "clustered":
        x, y = (np.maximum(m[labels] + 0.5 * rng.normal(size=(b, d)), 0) for m in (centres_s, centres_t))
    elif kind == "offset":  # post-ReLU embeddings share a large mean
        x, y = (m[labels] + 3 + 0.5 * rng.normal(size=(b, d)) for m in (centres_s, centres_t))
    else:
        y = np.maximum(centres_t[labels] + 0.5 * rng.normal(size=(b, d)), 0)
        x = y + 0.3 * rng.normal(size=(b, d))
    return np.float32(x), np.float32(y), labels


def _value_and_grad(x, y, labels, **options):
    f = lambda x: transport.sinkhorn_divergence(x, jnp.asarray(y), jnp.asarray(labels), **options).value
    return jax.jit(jax.value_and_grad(f))(jnp.asarray(x))


@pytest.mark.parametrize("label_cost", [0.0, 1.0])
@pytest.mark.parametrize("d", [32, 128])
@pytest.mark.parametrize("kind", ["random", "clustered", "offset", "near"])
def test_ten_iterations_against_convergence(kind, d, label_cost):
    x, y, labels = _batch(kind, d=d)
    extra = reference.extra_cost(labels, label_cost)
    epsilon = reference.point_epsilon(np.float64(x), np.float64(y), extra, 0.1)
    value, grad = _value_and_grad(x, y, labels, label_cost=label_cost, solver="unrolled")
    args = np.float64(x), np.float64(y), extra, epsilon
    np.testing.assert_allclose(value, reference.point_divergence(*args), rtol=3e-3)
    assert reference.relative_error(grad, reference.point_gradient(*args)) <= 0.03


def test_solvers_agree_on_a_batch():
    args = _batch("near", b=16, d=8)
    (value, grad), (ott_value, ott_grad) = (_value_and_grad(*args, solver=solver) for solver in SOLVERS)
    np.testing.assert_allclose(value, ott_value, atol=1e-6)
    np.testing.assert_allclose(grad, ott_grad, atol=1e-5 * np.abs(ott_grad).max())


def test_reference_gradient_is_the_finite_difference():
    x, y, labels = _batch("random", b=12, d=5)
    x, y = np.float64(x), np.float64(y)
    extra = reference.extra_cost(labels, 1.0)
    epsilon = reference.point_epsilon(x, y, extra, 0.1)  # held fixed: it counts as a constant
    direction = np.random.default_rng(1).normal(size=x.shape)
    plus, minus = (reference.point_divergence(x + h * direction, y, extra, epsilon) for h in (1e-4, -1e-4))
    expected = np.sum(reference.point_gradient(x, y, extra, epsilon) * direction)
    np.testing.assert_allclose((plus - minus) / 2e-4, expected, rtol=1e-5)
    _, ours = _value_and_grad(np.float32(x), np.float32(y), labels, iterations=400)
    np.testing.assert_allclose(np.sum(np.asarray(ours) * direction), (plus - minus) / 2e-4, rtol=1e-3)
