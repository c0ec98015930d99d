import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.models.convolution import CONV_FORMS
from gkd_jax.models.pooling import max_pool_2x2


def by_hand(x, slopes):
    """The largest of each window, and the derivative of Σ slopes · largest, which the first of equal ones gets."""
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    largest, gradient = np.zeros((x.shape[0], rows, columns, x.shape[3]), x.dtype), np.zeros(x.shape)
    for b, i, j, k in itertools.product(*map(range, largest.shape)):
        window = [(2 * i + p, 2 * j + q) for p in (0, 1) for q in (0, 1)]
        first = max(window, key=lambda at: x[b, at[0], at[1], k])  # the first of equal ones
        largest[b, i, j, k] = x[b, first[0], first[1], k]
        gradient[b, first[0], first[1], k] = slopes[b, i, j, k]
    return largest, gradient


@pytest.mark.parametrize("form", CONV_FORMS)
@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 3, 2), (1, 2, 2, 1)])
def test_max_pooling(form, shape):
    rng = np.random.default_rng(0)
    for x in (rng.normal(size=shape), rng.integers(0, 2, shape), np.zeros(shape)):  # with ties, and nothing else
        x = jnp.asarray(x, jnp.float32)
        y, pull = jax.vjp(lambda x: max_pool_2x2(x, form=form), x)
        slopes = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
        largest, gradient = by_hand(np.asarray(x), np.asarray(slopes))
        np.testing.assert_array_equal(y, largest)
        np.testing.assert_array_equal(pull(slopes)[0], gradient.astype(np.float32))


@pytest.mark.parametrize("place", range(4))
def test_nan_stays_nan(place):
    x = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert np.isnan(max_pool_2x2(x)).all()


def test_max_pooling_is_differentiated_twice(x64):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 4, 2)))

    def second(form):
        def of_gradient(x):
            return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(max_pool_2x2(x, form=form))))(x) ** 3)

        return jax.jit(jax.grad(of_gradient))(x)

    ours = second("matmul")
    assert np.abs(ours).max() > 0.01
    np.testing.assert_allclose(ours, second("plain"), atol=1e-12)


def test_max_pooling_keeps_bfloat16():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 2, 2, 3)), jnp.bfloat16)
    for form in CONV_FORMS:
        y = max_pool_2x2(x, form=form)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y, x.max((1, 2), keepdims=True))
