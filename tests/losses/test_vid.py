import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_case import KEY, SETUP, TEACHER_WIDTHS, B, check, conv, nchw, outputs, shrink
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_jax.losses import term, vid

likelihood = jax.jit(vid.negative_log_likelihood)


@pytest.mark.parametrize("sides", [(8, 8, 4, 2), (8, 4, 2, 1), (16, 16, 8, 4)])
def test_vid(sides):
    torch = pytest.importorskip("torch")
    student, teacher = outputs(0, sides), outputs(1, widths=TEACHER_WIDTHS)

    def reference(heads, student, teacher):
        value = 0
        for i in range(3):
            x, y = shrink(nchw(student["features"][1 + i]), nchw(teacher["features"][1 + i]))
            layers = heads[f"pair{i}"]["regressor"]
            x = torch.relu(conv(x, layers["block0"]))
            x = conv(torch.relu(conv(x, layers["block1"])), layers["block2"])
            variance = torch.log(1 + torch.exp(heads[f"pair{i}"]["raw_variance"])) + 1e-5
            variance = variance.view(1, -1, 1, 1)
            value = value + (0.5 * ((x - y) ** 2 / variance + torch.log(variance))).mean((1, 2, 3))
        return value

    grads = check(term.create("vid"), reference, student, teacher)
    assert all(np.any(grads[0][f"pair{i}"]["raw_variance"]) for i in range(3))


@pytest.mark.parametrize("start", [5.0, 0.01, 200.0])
def test_variances_start_where_they_are_told(start):
    student, teacher = outputs(0), outputs(1, widths=TEACHER_WIDTHS)
    heads, _ = term.create("vid", init_variance=start, stages=(3,)).init(KEY, student, teacher, SETUP)
    raw = heads["pair0"]["raw_variance"]
    assert raw.shape == (6,)
    np.testing.assert_allclose(jax.nn.softplus(raw) + 1e-5, np.full(6, start), rtol=1e-5)


def test_likelihood_is_scipys_and_finite_at_extremes():
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    mean, teacher, raw = rng.normal(size=(4, 2, 2, 3)), rng.normal(size=(4, 2, 2, 3)), rng.normal(size=3)
    expected = -norm.logpdf(teacher, mean, np.sqrt(np.logaddexp(0, raw) + 1e-5)).mean((1, 2, 3)) - np.log(2 * np.pi) / 2
    as_jax = lambda *arrays: (jnp.asarray(x, jnp.float32) for x in arrays)
    np.testing.assert_allclose(vid.negative_log_likelihood(*as_jax(mean, raw, teacher)), expected, rtol=1e-5)
    value, grads = jax.value_and_grad(lambda m, r, t: vid.negative_log_likelihood(m, r, t).sum(), (0, 1))(
        *as_jax(1000 * mean, [-1000, 0, 1000], teacher)
    )
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in grads)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-10, 10), scale=st.floats(0.2, 5))
def test_identities_of_the_likelihood(seed, shift, scale):
    rng = np.random.default_rng(seed)
    mean, teacher = rng.normal(size=(2, B, 2, 3, 4))
    sigma = rng.uniform(0.3, 2, 4)
    raw = lambda sigma: np.log(np.expm1(sigma**2 - 1e-5))
    of = lambda *arrays: likelihood(*(jnp.asarray(x, jnp.float32) for x in arrays))
    value = of(mean, raw(sigma), teacher)
    order, channels = rng.permutation(B), rng.permutation(4)
    np.testing.assert_allclose(of(mean[order], raw(sigma), teacher[order]), value[order], rtol=1e-5, atol=1e-6)
    turned = of(mean[:, ::-1, ::-1, channels], raw(sigma[channels]), teacher[:, ::-1, ::-1, channels])
    np.testing.assert_allclose(turned, value, rtol=1e-5, atol=1e-6)
    # A density moves with its mean, and in other units it changes by their logarithm.
    np.testing.assert_allclose(of(mean + shift, raw(sigma), teacher + shift), value, rtol=1e-5, atol=1e-5)
    in_units = of(scale * mean, raw(scale * sigma), scale * teacher)
    np.testing.assert_allclose(in_units, value + np.log(scale), rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_likeliest_at_equality(seed):
    rng = np.random.default_rng(seed)
    x, other = (jnp.asarray(v, jnp.float32) for v in rng.normal(size=(2, B, 2, 3, 4)))
    raw = rng.normal(size=4)
    value, grad = jax.value_and_grad(lambda m: likelihood(m, jnp.asarray(raw, jnp.float32), x).sum())(x)
    expected = np.log(np.logaddexp(0, raw) + 1e-5).mean() / 2  # the mean of log sigma
    np.testing.assert_allclose(value / B, expected, rtol=1e-5, atol=1e-6)
    assert not np.any(grad)
    assert np.all(likelihood(other, jnp.asarray(raw, jnp.float32), x) > expected)
