import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_transport as reference
import pytest
from scipy import stats
from scipy.special import softmax

from gkd_jax.losses import transport

SOLVERS = ("ott", "unrolled")


def _rng(seed=0):
    return np.random.default_rng(seed)


def _arrays(*shapes, seed=0):
    rng = _rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


COST = transport.class_cost(_arrays((16, 6), seed=9)[0])
LABELS = jnp.asarray(_rng().integers(0, 4, 16))
KEY = jax.random.key(3, impl="rbg")
KINDS = {
    "sinkhorn": ((16, 8), lambda x, y: transport.sinkhorn_divergence(x, y, LABELS).value),
    "sinkhorn-unrolled": ((16, 8), lambda x, y: transport.sinkhorn_divergence(x, y, LABELS, solver="unrolled").value),
    "plain": ((16, 8), lambda x, y: transport.sinkhorn_divergence(x, y).value),
    "tokens": ((8, 6, 6, 5), lambda x, y: transport.sinkhorn_tokens(x, y).value),
    "gaussian": ((8, 6, 6, 5), transport.gaussian),
    "sliced": ((16, 8), lambda x, y: transport.sliced(x, y, KEY)),
    "sliced-tokens": ((8, 9, 5), lambda x, y: transport.sliced(x, y, KEY)),
    "logit": ((8, 6), lambda x, y: transport.sinkhorn_logits(x, y, COST).value),
    "logit-unrolled": ((8, 6), lambda x, y: transport.sinkhorn_logits(x, y, COST, solver="unrolled").value),
}
SEES_PERMUTATION = sorted(set(KINDS) - {"plain", "sliced"})


def _compiled(function):
    def total(x, y):
        value = function(x, y)
        return jnp.sum(value), value

    def all_three(x, y):
        (in_x, in_y), value = jax.grad(total, (0, 1), has_aux=True)(x, y)
        return value, in_x, in_y

    return jax.jit(all_three)  # once for all the tests below


COMPILED = {kind: _compiled(function) for kind, (_, function) in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_zero_at_equality_with_its_gradient(kind):
    (x,) = _arrays(KINDS[kind][0])
    value, grad, _ = COMPILED[kind](x, x)
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
def test_zeros_are_finite(kind):
    shape = KINDS[kind][0]
    for found in COMPILED[kind](jnp.zeros(shape), *_arrays(shape)):
        assert np.all(np.isfinite(found))


@pytest.mark.parametrize("kind", ["sinkhorn", "tokens", "gaussian", "sliced", "logit"])
def test_bfloat16_gives_float32(kind):
    shape, function = KINDS[kind]
    x, y = (v.astype(jnp.bfloat16) for v in _arrays(shape, shape))
    value = jax.jit(function)(x, y)
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
    found = jax.jit(functools.partial(transport.sinkhorn_tokens, grid=2, epsilon=0.5, iterations=100))(x, y).value
    for i in range(2):
        u = np.float64(x[i]).reshape(2, 4, 2, 4, 3).mean((1, 3)).reshape(4, 3)
        v = np.float64(y[i]).reshape(2, 2, 2, 3, 3).mean((1, 3)).reshape(4, 3)
        epsilon = reference.point_epsilon(u, v, 0, 0.5)
        np.testing.assert_allclose(found[i], reference.point_divergence(u, v, 0, epsilon), atol=1e-5)


def test_gaussian_closed_form():
    x, y = _arrays((3, 4, 4, 5), (3, 2, 3, 5))
    u, v = (np.float64(m).reshape(3, -1, 5) for m in (x, y))
    expected = 2 * ((u.mean(1) - v.mean(1)) ** 2).sum(1) + ((u.std(1) - v.std(1)) ** 2).sum(1)
    np.testing.assert_allclose(transport.gaussian(x, y, ratio=2.0), expected, rtol=1e-5)
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
    u, v = (np.sort(reference.unit(np.float64(m)) @ theta.T, axis=0) for m in (x, y))
    np.testing.assert_allclose(transport.sliced(x, y, KEY), np.mean((u - v) ** 2), rtol=1e-4)


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
    found = jax.jit(lambda x, y: transport.sinkhorn_logits(x, y, COST, **options))(x, y)
    cost = np.float64(COST)
    for i in range(4):
        p, q = softmax(np.float64(x[i]) / 2), softmax(np.float64(y[i]) / 2)
        pairs = ((p, q, 1), (p, p, -0.5), (q, q, -0.5))
        expected = sum(w * reference.primal(cost, a, b, 0.5 * cost.mean()) for a, b, w in pairs)
        np.testing.assert_allclose(found.value[i], expected, atol=2e-5)


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
