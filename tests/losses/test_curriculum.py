import jax
import jax.numpy as jnp
import numpy as np
import numpy_logit as reference
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from gkd_jax.errors import UserError
from gkd_jax.losses import balance, curriculum, logit, term
from gkd_jax.outputs import Outputs

CTKD = reference.Compiled("ctkd", strength=lambda step: 0.1 * step)  # 0.3 at step 3
STANDARDISED = reference.Compiled("ctkd", low=2.0, span=3.0, strength=0.5, standardize=True)


def _kd(s, t, theta, low=1.0, span=20.0):
    temperature = low + span * expit(theta)
    p, q = softmax(t / temperature, axis=1), softmax(s / temperature, axis=1)
    return temperature**2 * np.sum(p * np.log(p / q), axis=1)


def test_reversal():
    def f(x, strength):
        return jnp.sum(curriculum.reverse(x, strength) ** 2)

    x = jnp.arange(3.0)
    value, (in_x, in_strength) = jax.value_and_grad(f, (0, 1))(x, jnp.float32(0.25))
    assert value == 5
    np.testing.assert_array_equal(in_x, -0.25 * 2 * x)
    assert in_strength == 0
    several = jax.vmap(jax.grad(f))(jnp.stack([x, 2 * x]), jnp.asarray([0.0, 1.0]))
    np.testing.assert_array_equal(several, np.stack([0 * x, -4 * x]))


@pytest.mark.parametrize("theta", [-2.0, 1.0, 5.0])
def test_value_and_gradients(theta):
    s, t = reference.logits(5.0)
    heads = {"temperature": jnp.float32(theta)}
    value, in_student, _, in_heads, state = CTKD(s, t, heads=heads)
    temperature = 1 + 20 * expit(theta)
    np.testing.assert_allclose(value, _kd(s, t, theta), rtol=1e-4, atol=temperature**2 * 2e-7)
    expected = central_gradient(lambda s: _kd(s, t, theta).sum(), s)
    np.testing.assert_allclose(in_student, expected, rtol=1e-4, atol=temperature * 1e-6)
    climb = central_gradient(lambda x: _kd(s, t, x[0]).sum(), np.array([theta]))[0]
    np.testing.assert_allclose(in_heads["temperature"], -0.3 * climb, rtol=1e-3)
    np.testing.assert_allclose(state["temperature"], temperature, rtol=1e-6)


def test_standardised():
    s, t = reference.logits(30.0)
    z = [(x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True) for x in (s, t)]
    np.testing.assert_allclose(STANDARDISED(s, t)[0], _kd(*z, 1.0, 2.0, 3.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [CTKD, STANDARDISED], ids=["schedule", "standardised"])
def test_any_batch(compiled):
    reference.check_common(compiled, (reference.B,), unit=16.0**2)  # T is 15.6 at the start
    s, _ = reference.logits(5.0)
    value, *grads, _ = compiled(s, s)
    assert np.abs(value).max() < 17**2 * 1e-6
    assert all(np.abs(g).max() < 1e-4 for g in jax.tree.leaves(grads))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-20, 20), theta=st.floats(-3, 6))
def test_invariances(seed, shift, theta):
    s, t = reference.logits(2.0, seed)
    rng = np.random.default_rng(seed)
    order, classes = rng.permutation(reference.B), rng.permutation(reference.CLASSES)
    heads = {"temperature": jnp.float32(theta)}
    of = lambda s, t: CTKD(s, t, heads=heads)
    value, _, _, climb, state = of(s, t)
    temperature = float(state["temperature"])
    rounding = temperature**2 * 5e-7  # two logarithms between 1 and 4, each a sum and a difference that round to 1.2e-7
    assert np.min(value) > -rounding
    for turned, expected in (((s[order], t[order]), value[order]), ((s[:, classes], t[:, classes]), value)):
        found, _, _, in_heads, _ = of(*turned)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=rounding)
        np.testing.assert_allclose(in_heads["temperature"], climb["temperature"], rtol=1e-3, atol=1e-5 * temperature)
    # Sums with the shift round to 1e-6, and T times that is moved.
    np.testing.assert_allclose(of(s + shift, t - shift)[0], value, rtol=1e-4, atol=rounding + 1e-5 * temperature)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-20, 20), theta=st.floats(-3, 6))
def test_zero_where_probabilities_are_equal_at_any_temperature(seed, shift, theta):
    s, _ = reference.logits(2.0, seed)
    value, in_student, _, in_heads, state = CTKD(s + shift, s, heads={"temperature": jnp.float32(theta)})
    temperature = float(state["temperature"])
    assert np.abs(value).max() < temperature**2 * 5e-7
    assert np.abs(in_student).max() < temperature * 2e-6
    assert np.abs(in_heads["temperature"]) < temperature * 1e-5


def test_the_temperature_climbs_as_fast_as_the_strength_says():
    s, t = reference.logits(5.0)
    moved = {}
    for step in (0, 3, 6):
        heads = dict(CTKD.heads)
        before = CTKD(s, t, step=step, heads=heads)[0].sum()
        for _ in range(3):
            grad = CTKD(s, t, step=step, heads=heads)[3]
            heads = jax.tree.map(lambda p, g: p - 1e-3 * g, heads, grad)
        value, *_, state = CTKD(s, t, step=step, heads=heads)
        assert step == 0 or value.sum() > before
        moved[step] = abs(state["temperature"] - CTKD.state["temperature"])
    assert moved[0] == 0
    np.testing.assert_allclose(moved[6], 2 * moved[3], rtol=0.2)


def test_it_starts_and_reports_as_published():
    assert jax.tree.map(jnp.shape, CTKD.heads) == {"temperature": ()}
    assert CTKD.heads["temperature"] == 1
    readings = CTKD.term.readings(CTKD.state)
    np.testing.assert_allclose(readings["temperature"], 1 + 20 * expit(1.0), rtol=1e-6)
    assert set(readings) == {"temperature"}


def test_balanced_as_any_other_term():
    s, t = (jnp.asarray(z, jnp.float32) for z in reference.logits())
    both, key = (Outputs(s), Outputs(t)), jax.random.key(0, impl="rbg")
    term_ = balance.balanced(term.create("ctkd"))
    heads, state = term_.init(key, *both, reference.setup())
    _, after = jax.jit(term_.loss)(heads, state, *both, reference.batch(), key)
    assert set(term_.readings(after)) == {"temperature", "balance"}


def test_the_temperature_stays_between_its_bounds():
    s, t = reference.logits()
    for theta in (-1e3, 1e3):
        value, *grads, state = CTKD(s, t, heads={"temperature": jnp.float32(theta)})
        assert 1 <= state["temperature"] <= 21
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((value, grads)))
    low = logit.kd(*(jnp.asarray(z, jnp.float32) for z in (s, t)), 1.0)
    np.testing.assert_allclose(CTKD(s, t, heads={"temperature": jnp.float32(-1e3)})[0], low, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"low": 0.0}, "low is 0.0"), ({"span": -1.0}, "span is -1.0"), ({"strength": -1.0}, "strength is -1.0")],
)
def test_wrong_options(given, said):
    with pytest.raises(UserError, match=said):
        term.create("ctkd", **given)
