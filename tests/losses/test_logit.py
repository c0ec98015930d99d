import jax
import jax.numpy as jnp
import numpy as np
import numpy_logit as reference
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from gkd_jax.errors import UserError
from gkd_jax.losses import logit, term

SCHEDULED = reference.Compiled("kd", temperature=lambda step: 1.0 + step)
STANDARDISED = reference.Compiled("kd", temperature=2.0, standardize=True)
standardised = jax.jit(logit.standardised)

# Of T^2 KL in float32, at T = 4: two logarithms between 1 and 4, each a sum and a difference that round to 1.2e-7.
ROUNDING = 16 * 5e-7


def _arrays(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(scale * rng.normal(size=(8, 5)), jnp.float32) for _ in range(2)]


def _standardised(z):
    return (z - z.mean(1, keepdims=True)) / (z.std(1, ddof=1, keepdims=True) + 1e-7)


def _kd(s, t, temperature):
    p, q = softmax(t / temperature, axis=1), softmax(s / temperature, axis=1)
    return temperature**2 * np.sum(p * np.log(p / q), axis=1)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_cross_entropy_value_and_gradient(scale):
    z, y = _arrays(scale)[0], np.random.default_rng(1).dirichlet(np.ones(5), 8)
    exact = lambda z: -np.sum(y * log_softmax(z, axis=1), axis=1)
    np.testing.assert_allclose(logit.cross_entropy(z, jnp.asarray(y, jnp.float32)), exact(np.float64(z)), rtol=1e-5)
    grad = jax.grad(lambda z: logit.cross_entropy(z, jnp.asarray(y, jnp.float32)).sum())(z)
    np.testing.assert_allclose(grad, central_gradient(lambda z: exact(z).sum(), z), atol=1e-6)


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


def test_kd_derivative_in_the_temperature():
    s, t = reference.logits(3.0)
    found = jax.grad(lambda T: logit.kd(jnp.asarray(s, jnp.float32), jnp.asarray(t, jnp.float32), T).sum())(3.0)
    np.testing.assert_allclose(found, central_gradient(lambda T: _kd(s, t, T[0]).sum(), np.array([3.0]))[0], rtol=1e-4)


@pytest.mark.parametrize("compiled", [SCHEDULED, STANDARDISED], ids=["schedule", "standardised"])
def test_kd_term(compiled):
    reference.check_common(compiled, (reference.B,))


@pytest.mark.parametrize("step", [0, 3])
def test_kd_with_a_schedule(step):
    s, t = reference.logits(2.0)
    np.testing.assert_allclose(SCHEDULED(s, t, step=step)[0], _kd(s, t, 1.0 + step), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_standardised_kd_value_and_gradient(scale):
    s, t = reference.logits(scale)
    value, grad, *_ = STANDARDISED(s, t)
    exact = lambda s: _kd(_standardised(s), _standardised(t), 2.0)
    np.testing.assert_allclose(value, exact(s), rtol=2e-5)
    expected = central_gradient(lambda s: exact(s).sum(), s)
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_standardised_against_torch():
    torch = pytest.importorskip("torch")
    s, _ = reference.logits(5.0)
    z = torch.tensor(s, requires_grad=True)
    (expected := (z - z.mean(-1, keepdim=True)) / (1e-7 + z.std(-1, keepdim=True))).square().sin().sum().backward()
    x = jnp.asarray(s, jnp.float32)
    np.testing.assert_allclose(standardised(x), expected.detach(), atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sin(standardised(x) ** 2).sum())(x), z.grad, atol=2e-6)


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-50, 50), scale=st.floats(0.05, 100), seed=st.integers(0, 99))
def test_standardised_knows_no_shift_and_no_scale(shift, scale, seed):
    s, _ = reference.logits(seed=seed)
    found = standardised(jnp.asarray(scale * s + shift, jnp.float32))
    tolerance = 1e-5 * (1 + abs(shift) / scale)  # the sum rounds to float32
    deviation = scale * np.std(s, axis=1, ddof=1)
    # But for what is added to the deviation, a visible share of a small one.
    share, share_before = deviation / (deviation + 1e-7), deviation / (deviation + 1e-7 * scale)
    expected = standardised(jnp.asarray(s, jnp.float32)) * (share / share_before)[:, None]
    np.testing.assert_allclose(found, expected, atol=tolerance)
    squares = 4 * share**2
    np.testing.assert_allclose(np.sum(np.square(found), axis=1), squares, rtol=tolerance)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-20, 20), scale=st.floats(0.1, 100))
def test_invariances_of_kd(seed, shift, scale):
    s, t = reference.logits(2.0, seed)
    rng = np.random.default_rng(seed)
    order, classes = rng.permutation(reference.B), rng.permutation(reference.CLASSES)
    for compiled in (SCHEDULED, STANDARDISED):
        value = compiled(s, t)[0]
        assert np.min(value) > -ROUNDING
        np.testing.assert_allclose(compiled(s[order], t[order])[0], value[order], atol=ROUNDING)
        np.testing.assert_allclose(compiled(s[:, classes], t[:, classes])[0], value, rtol=1e-5, atol=ROUNDING)
        # Sums with the shift round to 1e-6, T times that is moved; and T^2 times the rounding of what T divides.
        np.testing.assert_allclose(compiled(s + shift, t - shift)[0], value, rtol=1e-4, atol=5e-5)
    np.testing.assert_allclose(STANDARDISED(scale * s, t / scale)[0], STANDARDISED(s, t)[0], rtol=1e-4, atol=5e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-20, 20), scale=st.floats(0.1, 100))
def test_kd_is_zero_where_probabilities_are_equal(seed, shift, scale):
    s, _ = reference.logits(2.0, seed)
    for compiled, T, same in ((SCHEDULED, 4, s), (STANDARDISED, 2, scale * s)):
        value, grad, *_ = compiled(same + shift, s)
        deviation = same.std(1, ddof=1) if compiled is STANDARDISED else np.ones(reference.B)
        moved = 2e-7 * (1 + np.abs(same + shift).max(1)) / deviation  # the sum rounds, and 1e-7 is added to the latter
        assert np.all(np.abs(value) < ROUNDING + T * moved)
        assert np.all(np.abs(grad).max(1) * deviation < T * (1e-6 + moved))


@pytest.mark.parametrize("value", [0.0, 0.1, 3.7, -1e4, 1e-30])
def test_standardised_constant_logits_have_no_derivative(value):
    z = jnp.full((2, 10), value).at[1, 0].add(1 + abs(value))  # the mean of ten times 0.1 or 3.7 rounds
    found, pull = jax.vjp(standardised, z)
    (grad,) = pull(jnp.arange(20.0).reshape(2, 10))
    assert not np.any(found[0])
    assert not np.any(grad[0])
    assert np.any(found[1])
    assert np.any(grad[1])
    assert np.all(np.isfinite(grad))


def test_standardised_shows_nan_and_takes_one_class():
    assert np.all(np.isnan(standardised(jnp.asarray([[1.0, jnp.nan, 2.0]]))))
    np.testing.assert_array_equal(standardised(jnp.ones((3, 1))), np.zeros((3, 1)))


def test_wrong_options_of_kd():
    with pytest.raises(UserError, match="temperature is -1.0; allowed: a positive number or a schedule"):
        term.create("kd", temperature=-1.0)
    assert term.options("kd") == {"temperature": 4.0, "standardize": False}
