"""A balanced term has the size of the cross-entropy, whatever its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.losses import balanced
from gkd_jax.losses.term import Term
from gkd_jax.outputs import Batch, Outputs, Setup

STEPS, DECAY = 6, 0.9
SEEN = Outputs(jnp.zeros((2, 3)))
SETUP = Setup(num_classes=3, num_examples=8, steps_per_epoch=2)


def _batch(labels):
    rows = jnp.arange(len(labels))
    return Batch({}, labels, jax.nn.one_hot(labels, 3), rows, rows, jnp.int32(0))


def _of_size(size):
    """A term of a known value for each example, which counts its calls."""

    def loss(heads, state, student, teacher, batch, key):
        return size * jnp.sum(student.logits**2, -1), state + 1

    return Term("sized", loss, frozenset(), lambda *given: ({}, jnp.int32(0)), readings=lambda state: {"calls": state})


def _run(term):
    rng, values = np.random.default_rng(0), []
    heads, state = term.init(jax.random.key(0), SEEN, None, SETUP)
    seen = []
    for _ in range(STEPS):
        logits, labels = rng.normal(size=(4, 3)).astype(np.float32), rng.integers(0, 3, 4)
        found, state = term.loss(
            heads, state, Outputs(jnp.asarray(logits)), None, _batch(jnp.asarray(labels)), jax.random.key(0)
        )
        values.append(np.asarray(found))
        seen.append((logits, labels))
    return seen, values, term.readings(state)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_the_ratio_is_that_of_bias_corrected_means(size):
    seen, values, readings = _run(balanced(_of_size(size), decay=DECAY))
    for step in range(STEPS):
        ages = DECAY ** np.arange(step, -1, -1)
        means = {"own": [], "ce": []}
        for logits, labels in seen[: step + 1]:
            logits = logits.astype(np.float64)
            own = size * np.sum(logits**2, -1)
            means["own"].append(np.abs(own).mean())
            means["ce"].append(np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), labels]))
        ratio = np.average(means["ce"], weights=ages) / np.average(means["own"], weights=ages)
        np.testing.assert_allclose(values[step], ratio * own, rtol=1e-5)
    np.testing.assert_allclose(readings["balance"], ratio, rtol=1e-5)
    assert readings["calls"] == STEPS


def test_the_ratio_is_a_constant_to_differentiation():
    term, batch = balanced(_of_size(5.0)), _batch(jnp.array([0, 1]))
    heads, state = term.init(jax.random.key(0), SEEN, None, SETUP)
    logits = jnp.array([[1.0, 2.0, 0.5], [0.0, -1.0, 1.0]])

    def total(logits):
        values, after = term.loss(heads, state, Outputs(logits), None, batch, jax.random.key(0))
        return jnp.sum(values), term.readings(after)["balance"]

    found, ratio = jax.grad(total, has_aux=True)(logits)
    np.testing.assert_allclose(found, ratio * 5.0 * 2 * logits, rtol=1e-6)


def test_a_term_that_is_zero_stays_zero():
    term, batch = balanced(_of_size(0.0)), _batch(jnp.array([0, 1]))
    heads, state = term.init(jax.random.key(0), SEEN, None, SETUP)
    values, after = term.loss(heads, state, Outputs(jnp.ones((2, 3))), None, batch, jax.random.key(0))
    np.testing.assert_array_equal(values, 0)
    assert np.isfinite(term.readings(after)["balance"])
