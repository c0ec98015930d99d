import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_logit
import numpy_transport as reference
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax

from gkd_jax.errors import UserError
from gkd_jax.losses import term, transport

SOLVERS = ("ott", "unrolled")


def _rng(seed=0):
    return np.random.default_rng(seed)


def _arrays(*shapes, seed=0):
    rng = _rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


COST = transport.class_cost(_arrays((16, 6), seed=9)[0])
LABELS = jnp.asarray(_rng().integers(0, 4, 16))
KEY = jax.random.key(3, impl="rbg")
UNROLLED = {"solver": "unrolled"}
# Of student, teacher and labels, of which most know nothing
KINDS = {
    "sinkhorn": ((16, 8), lambda x, y, of: transport.sinkhorn_divergence(x, y, of).value),
    "sinkhorn-unrolled": ((16, 8), lambda x, y, of: transport.sinkhorn_divergence(x, y, of, **UNROLLED).value),
    "plain": ((16, 8), lambda x, y, of: transport.sinkhorn_divergence(x, y).value),
    "tokens": ((8, 6, 6, 5), lambda x, y, of: transport.sinkhorn_tokens(x, y).value),
    "gaussian": ((8, 6, 6, 5), lambda x, y, of: transport.gaussian(x, y)),
    "sliced": ((16, 8), lambda x, y, of: transport.sliced(x, y, KEY)),
    "sliced-tokens": ((8, 9, 5), lambda x, y, of: transport.sliced(x, y, KEY)),
    "logit": ((8, 6), lambda x, y, of: transport.sinkhorn_logits(x, y, COST).value),
    "logit-unrolled": ((8, 6), lambda x, y, of: transport.sinkhorn_logits(x, y, COST, **UNROLLED).value),
}
OF_DIRECTIONS = sorted(set(KINDS) - {"gaussian", "logit", "logit-unrolled"})
SEES_PERMUTATION = sorted(set(KINDS) - {"plain", "sliced"})


def _compiled(function):
    def total(x, y, labels):
        value = function(x, y, labels)
        return jnp.sum(value), value

    @jax.jit  # once for all the tests below
    def all_three(x, y, labels):
        (in_x, in_y), value = jax.grad(total, (0, 1), has_aux=True)(x, y, labels)
        return value, in_x, in_y

    return lambda x, y, labels=LABELS: all_three(x, y, labels)


COMPILED = {kind: _compiled(function) for kind, (_, function) in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10))
def test_zero_at_equality_with_its_gradient(kind, seed, scale):
    (x,) = _arrays(KINDS[kind][0], seed=seed)
    value, grad, _ = COMPILED[kind](scale * x, scale * x)
    assert value.dtype == jnp.float32
    assert np.abs(value).max() < 1e-6
    assert np.abs(grad).max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_positive_elsewhere_and_the_teacher_is_constant(kind):
    shape = KINDS[kind][0]
    value, grad, in_teacher = COMPILED[kind](*_arrays(shape, shape))
    assert np.min(value) > 1e-3
    assert np.abs(grad).max() > 1e-4
    assert not np.any(in_teacher)


@pytest.mark.parametrize("kind", SEES_PERMUTATION)
def test_a_permuted_batch_is_another(kind):
    (y,) = _arrays(KINDS[kind][0])
    value, grad, _ = COMPILED[kind](jnp.roll(y, 1, axis=0), y)
    assert np.mean(value) > 1e-2
    assert np.abs(grad).max() > 1e-4


@pytest.mark.parametrize("kind", ["plain", "sliced"])
def test_without_labels_a_permuted_batch_is_the_same(kind):
    (y,) = _arrays(KINDS[kind][0])
    assert abs(COMPILED[kind](jnp.roll(y, 1, axis=0), y)[0]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_order_of_the_batch_does_not_matter(kind, seed):
    shape = KINDS[kind][0]
    x, y = _arrays(shape, shape, seed=seed)
    order = np.random.default_rng(seed).permutation(shape[0])
    labels = LABELS[order] if len(order) == len(LABELS) else LABELS
    value, grad, _ = COMPILED[kind](x, y)
    turned, turned_grad, _ = COMPILED[kind](x[order], y[order], labels)
    np.testing.assert_allclose(turned, value[order] if value.ndim else value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(turned_grad, grad[order], atol=1e-5)


@pytest.mark.parametrize("kind", OF_DIRECTIONS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_length_of_the_students_features_does_not_matter(kind, seed):
    shape = KINDS[kind][0]
    x, y = _arrays(shape, shape, seed=seed)
    # Each point has its own, but for positions that are pooled; from 10 on, the constant inside the roots is nothing.
    each = (shape[0], *(1,) * (len(shape) - 1)) if kind == "tokens" else (*shape[:-1], 1)
    length = jnp.asarray(np.random.default_rng(seed).uniform(1, 100, each), jnp.float32)
    value = COMPILED[kind](10 * x, y)[0]
    np.testing.assert_allclose(COMPILED[kind](10 * length * x, y)[0], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["tokens", "gaussian", "sliced-tokens"])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_places_of_positions_do_not_matter(kind, seed):
    shape = KINDS[kind][0]
    x, y = _arrays(shape, shape, seed=seed)
    value = COMPILED[kind](x, y)[0]
    moved = x[:, ::-1] if kind == "tokens" else x[:, np.random.default_rng(seed).permutation(shape[1])]
    assert np.abs(moved - x).max() > 1
    np.testing.assert_allclose(COMPILED[kind](moved, y)[0], value, rtol=1e-5, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-10, 10), scale=st.floats(0.1, 10))
def test_gaussian_in_other_units_and_from_another_origin(seed, shift, scale):
    x, y = _arrays(*(KINDS["gaussian"][0],) * 2, seed=seed)
    value = COMPILED["gaussian"](x, y)[0]
    # Means of features near 10 round to 1e-6.
    np.testing.assert_allclose(COMPILED["gaussian"](x + shift, y + shift)[0], value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(COMPILED["gaussian"](scale * x, scale * y)[0], scale**2 * value, rtol=1e-4)


@pytest.mark.parametrize("kind", ["logit", "logit-unrolled"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-20, 20))
def test_a_shift_of_logits_does_not_matter(kind, seed, shift):
    x, y = _arrays((8, 6), (8, 6), seed=seed)
    # Sums with the shift round to 1e-6, and a probability to as much of itself.
    np.testing.assert_allclose(COMPILED[kind](x + shift, y - shift)[0], COMPILED[kind](x, y)[0], atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_are_finite(kind):
    shape = KINDS[kind][0]
    for found in COMPILED[kind](jnp.zeros(shape), *_arrays(shape)):
        assert np.all(np.isfinite(found))


@pytest.mark.parametrize("kind", ["sinkhorn", "tokens", "gaussian", "sliced", "logit"])
def test_bfloat16_gives_float32(kind):
    shape, function = KINDS[kind]
    x, y = (v.astype(jnp.bfloat16) for v in _arrays(shape, shape))
    value = jax.jit(function)(x, y, LABELS)
    assert value.dtype == jnp.float32
    exact = COMPILED[kind](x.astype(jnp.float32), y.astype(jnp.float32))[0]
    np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 50.0, 1000.0])
@pytest.mark.parametrize("kind", ["logit", "logit-unrolled"])
def test_peaked_logits_are_finite(kind, scale):
    shape = KINDS[kind][0]
    value, grad, _ = COMPILED[kind](*(scale * v for v in _arrays(shape, shape)))
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(grad))
    assert np.min(value) > -1e-6


@pytest.mark.parametrize("label_cost", [0.0, 1.0])
def test_a_shrunken_student_does_not_score_better(label_cost):
    rng = _rng()
    y = rng.normal(size=(32, 8))
    noise, labels = rng.normal(size=y.shape), jnp.asarray(rng.integers(0, 4, 32))

    @jax.jit
    def divergence(x):
        return transport.sinkhorn_divergence(x, jnp.asarray(y, jnp.float32), labels, label_cost=label_cost).value

    def score(x):
        return float(divergence(jnp.asarray(x, jnp.float32)))

    assert score(0.1 * y + 0.05 * noise) >= score(y + 0.05 * noise)
    assert score(0.1 * (y + 0.05 * noise)) == pytest.approx(score(y + 0.05 * noise), abs=1e-5)


def test_sinkhorn_against_the_reference():
    x, y = _arrays((16, 8), (16, 8))
    args = np.float64(x), np.float64(y), reference.extra_cost(np.asarray(LABELS), 0.7)
    epsilon = reference.point_epsilon(*args, 0.3)
    exact = functools.partial(transport.sinkhorn_divergence, label_cost=0.7, epsilon=0.3, iterations=200)
    found = jax.jit(exact)(x, y, LABELS)
    np.testing.assert_allclose(found.value, reference.point_divergence(*args, epsilon), atol=2e-6)
    assert found.marginal_error < 1e-5
    early = functools.partial(transport.sinkhorn_divergence, iterations=1, solver="unrolled")
    assert jax.jit(early)(x, y, LABELS).marginal_error > 1e-3


def test_tokens_against_the_reference():
    x, y = _arrays((2, 8, 8, 3), (2, 4, 6, 3))
    of = functools.partial(transport.sinkhorn_tokens, grid=2, epsilon=0.5, iterations=100)
    grad, found = jax.jit(jax.grad(lambda x: (of(x, y).value.sum(), of(x, y).value), has_aux=True))(x)
    for i in range(2):
        u = np.float64(x[i]).reshape(2, 4, 2, 4, 3).mean((1, 3)).reshape(4, 3)
        v = np.float64(y[i]).reshape(2, 2, 2, 3, 3).mean((1, 3)).reshape(4, 3)
        epsilon = reference.point_epsilon(u, v, 0, 0.5)
        np.testing.assert_allclose(found[i], reference.point_divergence(u, v, 0, epsilon), atol=1e-5)
        # Each of 16 positions has its share of what is pooled from them; epsilon counts as a constant.
        pooled = central_gradient(lambda u: reference.point_divergence(u, v, 0, epsilon), u, 1e-4).reshape(2, 2, 3)  # noqa: B023
        expected = pooled.repeat(4, axis=0).repeat(4, axis=1) / 16
        np.testing.assert_allclose(grad[i], expected, atol=1e-3 * np.abs(expected).max())


def test_gaussian_closed_form_value_and_gradient():
    x, y = _arrays((3, 4, 4, 5), (3, 2, 3, 5))

    def exact(x):
        u, v = (np.float64(m).reshape(3, -1, 5) for m in (x, y))
        return 2 * ((u.mean(1) - v.mean(1)) ** 2).sum(1) + ((u.std(1) - v.std(1)) ** 2).sum(1)

    np.testing.assert_allclose(transport.gaussian(x, y, ratio=2.0), exact(x), rtol=1e-5)
    grad = jax.grad(lambda x: transport.gaussian(x, y, ratio=2.0).sum())(x)
    np.testing.assert_allclose(grad, central_gradient(lambda x: exact(x).sum(), x), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(transport.gaussian(x + 3, x), np.full(3, 45.0), rtol=1e-4)  # a shift: its squared length
    flat = jnp.ones((3, 4, 4, 5))
    assert np.all(np.isfinite(jax.grad(lambda x: transport.gaussian(x, y).sum())(flat)))


def test_sliced_against_scipy():
    # In one dimension, unit points are signs: W2^2 is four times the mass that has to change sides.
    x, y = jnp.asarray([[1.0], [2], [3], [-1]]), jnp.asarray([[-1.0], [-2], [5], [-7]])
    expected = 2 * stats.wasserstein_distance(np.sign(x[:, 0]), np.sign(y[:, 0]))
    np.testing.assert_allclose(transport.sliced(x, y, KEY, projections=4), expected, rtol=1e-5)


def test_sliced_along_given_directions():
    x, y = _arrays((12, 5), (12, 5))
    theta = np.asarray(jax.random.normal(KEY, (64, 5), jnp.float32), np.float64)
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)

    def exact(x):
        u, v = (np.sort(reference.unit(np.float64(m)) @ theta.T, axis=0) for m in (x, y))
        return np.mean((u - v) ** 2)

    value, grad = jax.value_and_grad(lambda x: transport.sliced(x, y, KEY))(x)
    np.testing.assert_allclose(value, exact(x), rtol=1e-4)
    # No two projections are as near to one another as the step.
    expected = central_gradient(exact, x, 1e-7)
    np.testing.assert_allclose(grad, expected, atol=1e-5 * np.abs(expected).max())


def test_class_cost():
    cost = np.asarray(transport.class_cost(jnp.asarray([[1.0, 2, 0], [0, 0, 3]])))
    np.testing.assert_allclose(cost, [[0, 0, 1], [0, 0, 1], [1, 1, 0]], atol=1e-6)


@pytest.mark.parametrize("similarity", transport.SIMILARITIES)
@pytest.mark.parametrize("sharpen", [0.0, 1.0, 3.0])
def test_class_cost_of_a_similarity(similarity, sharpen):
    kernel = _rng().normal(size=(16, 5)) + 0.5
    kernel[:, 1] = -2 * kernel[:, 0] + 3  # opposite up to a shift
    if similarity == "cosine":
        unit = kernel / np.linalg.norm(kernel, axis=0)
        alike = unit.T @ unit
    else:  # CKA of X and Y, [n 1] each: |Y'X|^2 / (|X'X| |Y'Y|) of the centred columns
        alike = np.corrcoef(kernel.T) ** 2
    expected = np.where(np.eye(5, dtype=bool), 0, 1 - alike)
    if sharpen:
        expected = 1 - np.exp(-sharpen * expected)
    found = transport.class_cost(jnp.asarray(kernel, jnp.float32), similarity=similarity, sharpen=sharpen)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.any(np.diag(found))
    assert (found[0, 1] < 1e-6) == (similarity == "cka")


def test_class_cost_of_bfloat16_zeros_and_an_unknown_similarity():
    cost = transport.class_cost(jnp.zeros((4, 3), jnp.bfloat16), similarity="cka", sharpen=1.0)
    assert cost.dtype == jnp.float32
    np.testing.assert_allclose(cost, (1 - np.exp(-1)) * (1 - np.eye(3)), atol=1e-6)
    with pytest.raises(ValueError, match="unknown similarity 'dot'; known: cosine, cka"):
        transport.class_cost(jnp.ones((4, 3)), similarity="dot")


@pytest.mark.parametrize("solver", SOLVERS)
def test_logits_against_the_reference(solver):
    x, y = _arrays((4, 6), (4, 6))
    options = {"temperature": 2.0, "epsilon": 0.5, "iterations": 30, "solver": solver}
    of = functools.partial(transport.sinkhorn_logits, cost=COST, **options)
    grad, found = jax.jit(jax.grad(lambda x: (of(x, y).value.sum(), of(x, y).value), has_aux=True))(x)
    for i in range(4):
        exact = lambda z, i=i: _between_probabilities(softmax(z / 2), softmax(np.float64(y[i]) / 2))
        np.testing.assert_allclose(found[i], exact(np.float64(x[i])), atol=2e-5)
        np.testing.assert_allclose(grad[i], central_gradient(exact, x[i], 1e-4), atol=2e-5)


def _between_probabilities(p, q):
    """The divergence at the cost `COST`, converged."""
    cost, pairs = np.float64(COST), ((p, q, 1), (p, p, -0.5), (q, q, -0.5))
    return sum(w * reference.primal(cost, a, b, 0.5 * cost.mean()) for a, b, w in pairs)


def test_the_temperature_of_logits_may_be_a_schedule():
    x, y = (np.float64(z) for z in _arrays((6, 5), (6, 5)))
    options = {"kind": "logit", "solver": "unrolled", "temperature": lambda step: 1.0 + step}
    scheduled = numpy_logit.Compiled("wasserstein", **options)
    for step in (0, 3):
        fixed = numpy_logit.Compiled("wasserstein", **{**options, "temperature": 1.0 + step})
        for found, expected in zip(scheduled(x, y, step=step)[:2], fixed(x, y)[:2], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(scheduled(x, y, step=0)[0] - scheduled(x, y, step=3)[0]).min() > 1e-4
    assert term.schedulable("wasserstein") == ["temperature"]
    assert term.schedulable("crd") == []  # its constants are those of the first step's
    with pytest.raises(UserError, match="temperature is 0.0; allowed: a positive number or a schedule"):
        term.create("wasserstein", kind="logit", temperature=0.0)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("scale", [1.0, 4.0, 10.0])
def test_logit_gradient_at_ten_iterations(classes, scale):
    rng = _rng(1)
    similar = rng.normal(size=(16, classes)) + np.repeat(rng.normal(size=(16, classes // 5)), 5, axis=1)
    cost = transport.class_cost(jnp.asarray(similar, jnp.float32))
    y = rng.normal(size=(8, classes))
    x, y = (jnp.asarray(scale * v, jnp.float32) for v in (y + 0.5 * rng.normal(size=y.shape), y))

    def grad(iterations, solver):
        f = lambda x: transport.sinkhorn_logits(x, y, cost, iterations=iterations, solver=solver).value.sum()
        return jax.jit(jax.grad(f))(x)

    ours = grad(10, "unrolled")
    assert reference.relative_error(ours, grad(300, "ott")) <= 0.03
    np.testing.assert_allclose(ours, grad(10, "ott"), atol=1e-5)
