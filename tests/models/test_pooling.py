import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.models.convolution import CONV_FORMS
from gkd_jax.models.pooling import max_pool

# size, stride, padding: VGG's, and that of ImageNet's stem
WINDOWS = [(2, 2, 0), (3, 2, 1)]


def by_hand(x, slopes, size, stride, padding):
    """The largest of each window, and the derivative of Σ slopes · largest, which the first of equal ones gets."""
    height, width = x.shape[1:3]
    rows, columns = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
    largest, gradient = np.zeros((x.shape[0], rows, columns, x.shape[3]), x.dtype), np.zeros(x.shape)
    for b, i, j, k in itertools.product(*map(range, largest.shape)):
        corner = stride * i - padding, stride * j - padding
        window = [(corner[0] + p, corner[1] + q) for p in range(size) for q in range(size)]
        inside = [(p, q) for p, q in window if 0 <= p < height and 0 <= q < width]
        first = max(inside, key=lambda at: x[b, at[0], at[1], k])  # the first of equal ones
        largest[b, i, j, k] = x[b, first[0], first[1], k]
        gradient[b, first[0], first[1], k] += slopes[b, i, j, k]
    return largest, gradient


@pytest.mark.parametrize("form", CONV_FORMS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 3, 2), (1, 2, 2, 1)])
def test_max_pooling(form, window, shape):
    rng = np.random.default_rng(0)
    size, stride, padding = window
    # With ties, with nothing else, and all below the zeros that other padding would be
    for x in (rng.normal(size=shape), rng.integers(0, 2, shape), np.zeros(shape), rng.uniform(-2, -1, shape)):
        x = jnp.asarray(x, jnp.float32)
        y, pull = jax.vjp(lambda x: max_pool(x, size, stride=stride, padding=padding, form=form), x)
        slopes = jnp.asarray(rng.integers(-9, 9, size=y.shape), jnp.float32)  # sums of them are exact
        largest, gradient = by_hand(np.asarray(x), np.asarray(slopes), *window)
        np.testing.assert_array_equal(y, largest)
        np.testing.assert_array_equal(pull(slopes)[0], gradient.astype(np.float32))


@pytest.mark.parametrize("place", range(4))
def test_nan_stays_nan(place):
    x = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert np.isnan(max_pool(x)).all()


@pytest.mark.parametrize("window", WINDOWS)
def test_max_pooling_is_differentiated_twice(x64, window):
    size, stride, padding = window
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 4, 2)))

    def second(form):
        def of_gradient(x):
            pooled = functools.partial(max_pool, size=size, stride=stride, padding=padding, form=form)
            return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(pooled(x))))(x) ** 3)

        return jax.jit(jax.grad(of_gradient))(x)

    ours = second("matmul")
    assert np.abs(ours).max() > 0.01
    np.testing.assert_allclose(ours, second("plain"), atol=1e-12)


def test_max_pooling_keeps_bfloat16():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 2, 2, 3)), jnp.bfloat16)
    for form in CONV_FORMS:
        for y in (max_pool(x, form=form), max_pool(x, 3, padding=1, form=form)):
            assert y.dtype == jnp.bfloat16
            np.testing.assert_array_equal(y, x.max((1, 2), keepdims=True))
