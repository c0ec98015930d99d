import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from gkd_jax.losses import pairwise

unit, squared_distances = jax.jit(pairwise.unit), jax.jit(pairwise.squared_distances)
cosines, inner_products = jax.jit(pairwise.cosines), jax.jit(pairwise.inner_products)
centred = jax.jit(pairwise.centred)


def _arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def test_all_pairs_equal_scipys():
    x, y = _arrays((5, 7), (4, 7))
    x64, y64 = np.float64(x), np.float64(y)
    np.testing.assert_allclose(squared_distances(x, y), cdist(x64, y64, "sqeuclidean"), rtol=1e-5)
    np.testing.assert_allclose(cosines(x, y), 1 - cdist(x64, y64, "cosine"), atol=1e-6)
    np.testing.assert_allclose(inner_products(x, y), x64 @ y64.T, atol=1e-5)


def test_leading_axes_are_a_batch():
    x, y = _arrays((2, 3, 5, 7), (2, 3, 4, 7))
    for function in (squared_distances, cosines, inner_products):
        found = function(x, y)
        assert found.shape == (2, 3, 5, 4)
        np.testing.assert_allclose(found[1, 2], function(x[1, 2], y[1, 2]), atol=1e-6)


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
def test_gradients_equal_central_differences(metric):
    x, y, weight = _arrays((5, 3), (4, 3), (5, 4))
    ours = squared_distances if metric == "sqeuclidean" else lambda x, y: 1 - cosines(x, y)
    found = jax.grad(lambda x: jnp.sum(weight * ours(x, y)))(x)
    expected = central_gradient(lambda x: np.sum(np.float64(weight) * cdist(x, np.float64(y), metric)), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1e3, 1e25])
def test_directions_do_not_depend_on_the_scale(scale):
    (x,) = _arrays((6, 5))
    found, known = unit(x * scale)
    expected = np.float64(x) / np.linalg.norm(np.float64(x), axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.all(known)
    weight = _arrays((6, 5), seed=1)[0]
    f = lambda x: np.sum(np.float64(weight) * x / np.linalg.norm(x, axis=1, keepdims=True))
    grad = jax.grad(lambda x: jnp.sum(weight * unit(x)[0]))(x * scale)
    np.testing.assert_allclose(np.float64(grad) * scale, central_gradient(f, x), rtol=1e-4, atol=1e-5)


def test_zeros_have_no_direction_and_no_derivative():
    (x,) = _arrays((4, 3))
    x = x.at[0].set(0).at[1].set(1e-33)
    value, pull, known = jax.vjp(unit, x, has_aux=True)
    (grad,) = pull(jnp.ones((4, 3)))
    np.testing.assert_array_equal(known, [False, False, True, True])
    assert not np.any(value[:2])
    assert not np.any(grad[:2])
    assert np.all(np.any(grad[2:], axis=1))
    assert not np.any(cosines(x, x)[0])


@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("value", [0.0, 0.1, 3.7, -1e4])
def test_spread_of_rows(n, value):
    (x,) = _arrays((3, n))
    x = x.at[0].set(value).at[1].add(30)
    rest, deviation, known = centred(x)
    expected = np.float64(x) - np.float64(x).mean(1, keepdims=True)
    np.testing.assert_allclose(rest, expected, atol=1e-6 * (1 + 30 + abs(value)))
    np.testing.assert_array_equal(known, [False, n > 1, n > 1])
    if n > 1:
        np.testing.assert_allclose(deviation[1:], expected[1:].std(1, ddof=1), rtol=1e-5)
    assert deviation[0] == 1


def test_nan_is_seen():
    assert np.all(centred(jnp.asarray([[1.0, jnp.nan, 1.0]]))[2])
    (x,) = _arrays((2, 3))
    value, known = unit(x.at[0, 1].set(jnp.nan))
    assert np.all(known)
    assert np.any(np.isnan(value[0]))
    assert not np.any(np.isnan(value[1]))


def test_bfloat16_gives_float32():
    x, y = (a.astype(jnp.bfloat16) for a in _arrays((5, 7), (4, 7)))
    found = squared_distances(x, y)
    assert found.dtype == unit(x)[0].dtype == cosines(x, y).dtype == jnp.float32
    np.testing.assert_allclose(found, cdist(np.float64(x), np.float64(y), "sqeuclidean"), rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_cosines_are_symmetric_and_of_directions_alone(seed, scale):
    (x,) = _arrays((5, 3), seed=seed)
    found = np.asarray(cosines(x, x))
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(found), np.ones(5), atol=1e-6)
    assert np.abs(found).max() <= 1 + 1e-6
    np.testing.assert_allclose(cosines(x * jnp.float32(scale), x), found, atol=2e-6)
    half = 1 - squared_distances(unit(x)[0], unit(x)[0]) / 2  # on the sphere they say the same
    np.testing.assert_allclose(half, found, atol=2e-6)
