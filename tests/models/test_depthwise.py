"""Depthwise convolutions; their values and derivatives are compared with `lax.conv` in `test_convolution`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.models.depthwise import depthwise_taps


@pytest.fixture
def operands():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(2, 6, 5, 4)), jnp.float32), jnp.asarray(
        rng.normal(size=(3, 3, 1, 4)), jnp.float32
    )


@pytest.mark.parametrize("one_sum", [False, True])
def test_taps_sum_in_float32(operands, one_sum):
    x, kernel = (a.astype(jnp.bfloat16) for a in operands)
    convolve = functools.partial(depthwise_taps, stride=1, padding=1, one_sum=one_sum)
    ours = convolve(x, kernel)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        ours, convolve(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(jnp.bfloat16)
    )


@pytest.mark.parametrize("one_sum", [False, True])
def test_the_kernels_gradient_sums_in_float32(operands, one_sum):
    """4,096 ones: bfloat16 has no 257."""
    x, kernel = jnp.ones((1, 64, 64, 4), jnp.bfloat16), operands[1].astype(jnp.bfloat16)
    gradient = jax.grad(lambda k: jnp.sum(depthwise_taps(x, k, stride=1, padding=1, one_sum=one_sum)))(kernel)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient[1, 1, 0], jnp.full(4, 4096.0))


def sums(x, kernel, one_sum):
    """Returns how many sums over all positions the kernel's gradient is."""
    loss = lambda k: jnp.sum(jnp.sin(depthwise_taps(x, k, stride=1, padding=1, one_sum=one_sum)))
    text = jax.jit(jax.grad(loss)).lower(kernel).as_text()
    return sum(
        "stablehlo.reduce(" in line and line.rstrip().endswith(("tensor<4xf32>", "tensor<9x4xf32>"))
        for line in text.splitlines()
    )


def test_the_kernels_gradient_is_one_sum(operands):
    assert sums(*operands, one_sum=True) == 1
    assert sums(*operands, one_sum=False) >= 9


def test_forward_mode_is_refused_by_the_one_sum(operands):
    x, kernel = operands
    forward = lambda one_sum: jax.jvp(
        lambda k: depthwise_taps(x, k, stride=1, padding=1, one_sum=one_sum), (kernel,), (kernel,)
    )
    value, tangent = forward(False)
    np.testing.assert_allclose(tangent, value, rtol=1e-6)  # it is linear
    with pytest.raises(TypeError, match="forward-mode"):
        forward(True)
