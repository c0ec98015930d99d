"""The optimiser against PyTorch's rule written out in NumPy, and the learning rate against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd_jax import config, identity
from gkd_jax.errors import UserError
from gkd_jax.training import optimizer


def block(**fields):
    return {**identity.to_json(config.optimizer().to_dict()), **fields}


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_moves_as_pytorch_does(nesterov):
    tx = optimizer.sgd(block(nesterov=nesterov, weight_decay=0.01, momentum=0.9), lambda count: 0.1)
    rng = np.random.default_rng(0)
    ours = jnp.asarray(rng.normal(size=5), jnp.float32)
    p, buffer, state = np.float64(ours), np.zeros(5), tx.init(ours)
    for _ in range(4):
        g = rng.normal(size=5)
        updates, state = jax.jit(tx.update)(jnp.asarray(g, jnp.float32), state, ours)
        ours = optax.apply_updates(ours, updates)
        g = g + 0.01 * p
        buffer = 0.9 * buffer + g
        p = p - 0.1 * (g + 0.9 * buffer if nesterov else buffer)
        np.testing.assert_allclose(ours, p, rtol=1e-5)


def test_drops_of_the_standard_recipe():
    rate = optimizer.learning_rate(block(), 2400, config.steps_of(10, 240))
    expected = [(0, 0.05), (1499, 0.05), (1500, 0.005), (1799, 0.005), (1800, 5e-4), (2099, 5e-4), (2100, 5e-5)]
    np.testing.assert_allclose([rate(n) for n, _ in expected], [v for _, v in expected], rtol=1e-5)


def test_cosine_and_warm_up():
    rate = optimizer.learning_rate(block(schedule="cosine", warmup="10%"), 100, config.steps_of(10, 10))
    counts = np.arange(101)
    after = 0.5 * 0.05 * (1 + np.cos(np.pi * (counts - 10) / 90))
    expected = np.where(counts < 10, 0.05 * counts / 10, after)
    np.testing.assert_allclose([rate(n) for n in counts], expected, atol=1e-8)


def test_warm_up_must_end_before_the_run_does():
    with pytest.raises(UserError, match="optimizer.warmup: 5ep is not shorter than the run of 50 steps"):
        optimizer.learning_rate(block(warmup="5ep"), 50, config.steps_of(10, 5))


def test_drops_that_meet_in_a_short_run_are_both_made():
    rate = optimizer.learning_rate(block(drops=["50%", "55%"], factor=0.5), 10, config.steps_of(10, 1))
    np.testing.assert_allclose([rate(4), rate(5), rate(6)], [0.05, 0.025, 0.0125], rtol=1e-6)
    rate = optimizer.learning_rate(block(drops=["50%", "50%"], factor=0.5), 10, config.steps_of(10, 1))
    np.testing.assert_allclose([rate(4), rate(5)], [0.05, 0.0125], rtol=1e-6)


def test_a_drop_after_the_end_is_refused():
    with pytest.raises(UserError, match="optimizer.drops: 6ep is 60 steps, but the run has 50"):
        optimizer.learning_rate(block(drops=["6ep"]), 50, config.steps_of(10, 5))
