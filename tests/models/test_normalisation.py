"""BatchNorm's own derivative against the one that JAX finds for the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.models.normalisation import normalise_batch


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (2, 1, 1, 8), (1, 4, 4, 1)])
def test_values_and_derivatives_to_the_second_order(x64, shape):
    """Of a definition with NumPy's own mean and variance, in float64; far from zero, where squares would cancel."""
    rng = np.random.default_rng(0)
    channels = shape[-1]
    x = jnp.asarray(rng.normal(50.0, 2.0, shape))
    scale, bias = jnp.asarray(rng.normal(size=channels)), jnp.asarray(rng.normal(size=channels))
    first, second = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=shape))

    def defined(x, scale, bias):
        axes = (0, 1, 2)
        unit = (x - jnp.mean(x, axes, keepdims=True)) / jnp.sqrt(jnp.var(x, axes, keepdims=True) + 1e-5)
        return unit * scale[None, None, None] + bias[None, None, None]

    def gradients(function):
        def loss(*args):
            return jnp.sum(jnp.sin(function(*args)) * first)

        once = jax.grad(loss, (0, 1, 2))

        def again(*args):
            dx, dscale, dbias = once(*args)
            return jnp.sum(jnp.cos(dx) * second) + jnp.sum(dscale**2) + jnp.sum(dbias**3)

        return function(x, scale, bias), once(x, scale, bias), jax.grad(again, (0, 1, 2))(x, scale, bias)

    expected = gradients(defined)
    for form in ("cpu", "matmul"):
        found = gradients(lambda *args, form=form: normalise_batch(*args, form)[0])
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * float(jnp.abs(b).max() + 1))
        _, mean, var = normalise_batch(x, scale, bias, form)
        np.testing.assert_allclose(mean, np.asarray(x).mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(var, np.asarray(x).var((0, 1, 2)), rtol=1e-9, atol=1e-12)


def test_forward_mode_needs_another_form():
    x, one = jnp.ones((2, 2, 2, 3)), jnp.ones(3)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: normalise_batch(x, one, one, "cpu")[0], (x,), (x,))
    jax.jvp(lambda x: normalise_batch(x, one, one, "matmul")[0], (x,), (x,))
