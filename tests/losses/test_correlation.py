import jax
import jax.numpy as jnp
import numpy as np
import numpy_logit as reference
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from gkd_jax.errors import UserError
from gkd_jax.losses import correlation, term

DIST = reference.Compiled("dist", beta=1.5, gamma=0.7, temperature=lambda step: 1.0 + step)  # 4 at step 3
pearson = jax.jit(correlation.pearson)


def _correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    return x @ y / (np.sqrt(x @ x) * np.sqrt(y @ y) + 1e-8)


def _dist(s, t, beta=1.5, gamma=0.7, temperature=4.0):
    q, p = softmax(s / temperature, axis=1), softmax(t / temperature, axis=1)
    inter = np.mean([1 - _correlation(q[i], p[i]) for i in range(len(q))])
    intra = np.mean([1 - _correlation(q[:, j], p[:, j]) for j in range(q.shape[1])])
    return temperature**2 * (beta * inter + gamma * intra)


@pytest.mark.parametrize("scale", [0.5, 2.0, 10.0])
def test_value_and_gradient(scale):
    s, t = reference.logits(scale)
    value, grad, *_ = DIST(s, t)
    np.testing.assert_allclose(value, _dist(s, t), rtol=2e-5)
    expected = central_gradient(lambda s: _dist(s, t), s)
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=2e-5 * np.abs(expected).max())


def test_the_published_code_in_torch():
    torch = pytest.importorskip("torch")
    s, t = reference.logits(2.0)
    z = torch.tensor(s, requires_grad=True)
    q, p = torch.softmax(z / 4, 1), torch.softmax(torch.tensor(t) / 4, 1)

    def relation(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    expected = 16 * (1.5 * relation(q, p) + 0.7 * relation(q.T, p.T))
    expected.backward()
    value, grad, *_ = DIST(s, t)
    np.testing.assert_allclose(value, expected.item(), rtol=2e-5)
    np.testing.assert_allclose(grad, z.grad, rtol=1e-3, atol=1e-5)


def test_any_batch():
    reference.check_common(DIST, ())


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_at_equality_only_the_published_constant_is_left(scale):
    s, _ = reference.logits(scale)
    value, grad, *_ = DIST(s, s)
    assert abs(value - _dist(s, s)) < 1e-5
    assert value < 1e-4
    assert np.abs(grad).max() < 1e-3


def test_correlation():
    x, y = reference.logits(shape=(4, 9))
    y[1], y[2] = 3 * x[1] + 2, -x[2]
    found = pearson(*(jnp.asarray(v, jnp.float32) for v in (x, y)))
    np.testing.assert_allclose(found, [np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)], atol=1e-6)
    np.testing.assert_allclose(found[1:3], [1, -1], atol=1e-6)


@pytest.mark.parametrize("n", [7, 1000])  # the mean of a thousand equal numbers rounds
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
def test_a_constant_row_has_no_correlation_and_no_derivative(value, n):
    x, y = (jnp.asarray(v, jnp.float32) for v in reference.logits(shape=(3, n)))
    x, y = x.at[0].set(value), y.at[1].set(value)
    found, pull = jax.vjp(pearson, x, y)
    for grad in jax.jit(pull)(jnp.ones(3)):
        assert np.all(np.isfinite(grad))
        assert not np.any(grad[:2])
        assert np.any(grad[2])
    assert not np.any(found[:2])


def test_correlation_shows_nan():
    x, y = (jnp.asarray(v, jnp.float32) for v in reference.logits(shape=(2, 4)))
    assert np.isnan(pearson(x.at[0, 0].set(jnp.nan), y)[0])


def test_one_example():
    s, t = (jnp.asarray(z, jnp.float32) for z in reference.logits(shape=(1, 5)))
    value, grad = jax.jit(jax.value_and_grad(lambda s: correlation.dist(s, t, gamma=1.0)))(s)
    inter = 1 - _correlation(*(softmax(np.float64(z[0]) / 4) for z in (s, t)))
    np.testing.assert_allclose(value, 16 * (2 * inter + 1), rtol=1e-5)
    assert np.all(np.isfinite(grad))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-20, 20))
def test_invariances(seed, shift):
    s, t = reference.logits(2.0, seed)
    order = np.random.default_rng(seed).permutation(reference.B)
    classes = np.random.default_rng(seed).permutation(reference.CLASSES)
    value = DIST(s, t)[0]
    np.testing.assert_allclose(DIST(s[order], t[order])[0], value, rtol=1e-5)
    np.testing.assert_allclose(DIST(s[:, classes], t[:, classes])[0], value, rtol=1e-5)
    np.testing.assert_allclose(DIST(s + shift, t - shift)[0], value, rtol=1e-4)
    assert -1e-5 < value < 16 * 2 * 2.2


def test_correlation_knows_no_scale_and_no_shift():
    x, y = (jnp.asarray(v, jnp.float32) for v in reference.logits(shape=(5, 9)))
    np.testing.assert_allclose(pearson(0.2 * x - 4, 30 * y + 7), pearson(x, y), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"), [({"beta": -1.0}, "beta is -1.0"), ({"temperature": 0.0}, "temperature is 0.0")]
)
def test_wrong_options(given, said):
    with pytest.raises(UserError, match=said):
        term.create("dist", **given)
