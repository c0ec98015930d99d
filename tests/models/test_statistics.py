"""BatchNorm's batch statistics in their two forms, against each other and NumPy in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.models.statistics import one_pass, two_passes

FORMS = [one_pass, two_passes]


def maps(mean=0.0, deviation=1.0):
    return np.random.default_rng(0).normal(mean, deviation, (4, 5, 3, 6))


@pytest.mark.parametrize("form", FORMS)
def test_moments(x64, form):
    x = maps(2.0, 3.0)
    found = form(jnp.asarray(x))
    np.testing.assert_allclose(found.mean, x.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.variance, x.var((0, 1, 2)), rtol=1e-12)
    left = 0.0 if found.left is None else found.left[None, None, None]
    np.testing.assert_allclose(found.moved - left, x - x.mean((0, 1, 2)), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("mean", "deviation"), [(1e4, 1.0), (-300.0, 1e-2)])
def test_a_large_mean_does_not_cancel(form, mean, deviation):
    """In float32, where E[x²] - E[x]² would be off by more than the variance itself."""
    x = maps(mean, deviation).astype(np.float32)
    exact = x.astype(np.float64).var((0, 1, 2))
    naive = (x * x).mean((0, 1, 2)) - x.mean((0, 1, 2)) ** 2
    assert np.abs(naive / exact - 1).max() > 1
    np.testing.assert_allclose(form(jnp.asarray(x)).variance, exact, rtol=1e-4)


def test_a_first_value_far_out_costs_little():
    """Twenty deviations from the mean, as no normal value is."""
    x = maps().astype(np.float32)
    x[0, 0, 0] = 20.0
    np.testing.assert_allclose(one_pass(jnp.asarray(x)).variance, x.astype(np.float64).var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_constant_channel(form):
    x = jnp.full((4, 5, 3, 1), 0.1)
    np.testing.assert_allclose(form(x).variance, [0.0], atol=1e-13)
    gradient = jax.grad(lambda x: jnp.sum(form(x).moved) * jnp.sum(jax.lax.rsqrt(form(x).variance + 1e-5)))(x)
    assert np.isfinite(gradient).all()


def test_forms_have_the_same_derivatives(x64):
    x, weights = maps(), np.random.default_rng(1).normal(size=(4, 5, 3, 6))

    def normalised(form, x):
        found = form(x)
        left = 0.0 if found.left is None else found.left[None, None, None]
        return (found.moved - left) / jnp.sqrt(found.variance + 1e-5)[None, None, None]

    def both(form):
        first = jax.grad(lambda x: jnp.sum(jnp.sin(normalised(form, x)) * weights))
        second = jax.grad(lambda x: jnp.sum(first(x) ** 3))
        return first(jnp.asarray(x)), second(jnp.asarray(x))

    for ours, theirs in zip(both(one_pass), both(two_passes), strict=True):
        assert np.abs(theirs).max() > 0.01
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_one_pass_depends_on_no_value_of_its_own(x64):
    """What is subtracted first counts as a constant, and rightly: nothing depends on it."""
    x = jnp.asarray(maps())
    gradient = jax.grad(lambda x: jnp.sum(one_pass(x).variance))(x)
    np.testing.assert_allclose(gradient, 2 * (x - x.mean((0, 1, 2), keepdims=True)) / x[..., 0].size, atol=1e-12)
