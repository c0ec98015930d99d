import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from gkd_jax.losses import logit


def _arrays(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(scale * rng.normal(size=(8, 5)), jnp.float32) for _ in range(2)]


def test_cross_entropy():
    z, y = _arrays()[0], np.random.default_rng(1).dirichlet(np.ones(5), 8)
    expected = -np.sum(y * log_softmax(np.float64(z), axis=1), axis=1)
    np.testing.assert_allclose(logit.cross_entropy(z, jnp.asarray(y, jnp.float32)), expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1, 4.0, jnp.float32(2.5)])
def test_kd_value_and_gradient(temperature):
    s, t = _arrays(3.0)
    T = float(temperature)
    p, q = softmax(np.float64(t) / T, axis=1), softmax(np.float64(s) / T, axis=1)
    np.testing.assert_allclose(logit.kd(s, t, temperature), T**2 * np.sum(p * np.log(p / q), axis=1), rtol=1e-4)
    grad = jax.grad(lambda s: logit.kd(s, t, temperature).sum())(s)
    np.testing.assert_allclose(grad, T * (q - p), atol=1e-5)
    assert not np.any(jax.grad(lambda t: logit.kd(s, t, temperature).sum())(t))


def test_kd_is_zero_at_equality():
    s, _ = _arrays(10.0)
    assert np.abs(logit.kd(s, s)).max() < 1e-6
    assert np.abs(jax.grad(lambda z: logit.kd(z, s).sum())(s)).max() < 1e-6


@pytest.mark.parametrize("scale", [1.0, 50.0, 1000.0])
def test_peaked_logits_are_finite(scale):
    s, t = _arrays(scale)
    value, grad = logit.kd(s, t), jax.grad(lambda s: logit.kd(s, t).sum())(s)
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(grad))


def test_bfloat16_gives_float32():
    s, t = (x.astype(jnp.bfloat16) for x in _arrays())
    exact = logit.kd(s.astype(jnp.float32), t.astype(jnp.float32))
    np.testing.assert_array_equal(logit.kd(s, t), exact)
    assert logit.kd(s, t).dtype == logit.cross_entropy(s, jax.nn.softmax(t)).dtype == jnp.float32
