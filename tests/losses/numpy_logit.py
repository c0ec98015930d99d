"""Means to test terms of logits: logits, batches, and a term's loss as a function."""

import jax
import jax.numpy as jnp
import numpy as np

from gkd_jax.losses import term
from gkd_jax.outputs import Batch, Outputs, Setup

B, CLASSES = 6, 5
LABELS = np.array([0, 3, 3, 1, 4, 2])
SINGLE = np.full(B, 3)
KERNEL = np.random.default_rng(9).normal(size=(7, CLASSES)) + 0.5


def logits(scale=1.0, seed=0, shape=(B, CLASSES)):
    """Of student and teacher, representable in float32."""
    rng = np.random.default_rng(seed)
    return [np.float64(np.float32(scale * rng.normal(size=shape))) for _ in range(2)]


def batch(labels=LABELS, step=3, constants=()):
    labels = jnp.asarray(labels)
    n = len(labels)
    images = {"weak": jnp.zeros((n, 1, 1, 1))}
    targets = jax.nn.one_hot(labels, CLASSES)
    place = jnp.zeros(n, jnp.int32)
    return Batch(images, labels, targets, place, place, jnp.asarray(step), constants=constants)


def setup(kernel=KERNEL):
    kernel = jnp.asarray(kernel, jnp.float32)
    return Setup(kernel.shape[1], 100, 10, None, kernel, jnp.zeros(kernel.shape[1]))


class Compiled:
    """A term as a jitted function of (student's logits, teacher's logits, labels, step)."""

    def __init__(self, name, kernel=KERNEL, **options):
        self.term = term.create(name, **options)
        shapes = Outputs(jax.ShapeDtypeStruct((B, CLASSES), jnp.float32))
        self.heads, self.state = self.term.init(jax.random.key(0, impl="rbg"), shapes, shapes, setup())
        self.constants = self.term.constants(setup(kernel))

        def total(student, teacher, heads, labels, step):
            inputs = batch(labels, step, self.constants)
            key = jax.random.key(0, impl="rbg")
            values, state = self.term.loss(heads, self.state, Outputs(student), Outputs(teacher), inputs, key)
            return jnp.sum(values), (values, state)

        self.plain = jax.grad(total, (0, 1, 2), has_aux=True)
        self.jitted = jax.jit(self.plain)

    def __call__(self, student, teacher, labels=LABELS, step=3, heads=None, dtype=jnp.float32):
        """The values, their sum's gradients in both logits and in the heads, and the state after."""
        student, teacher = (jnp.asarray(z, dtype) for z in (student, teacher))
        heads = self.heads if heads is None else heads
        grads, (values, state) = self.jitted(student, teacher, heads, jnp.asarray(labels), jnp.asarray(step))
        return values, *grads, state


def check_common(compiled, shape, unit=16.0):
    """What every term of logits has to be: finite, float32, constant in the teacher, and the same under vmap.

    Args:
      compiled: the term.
      shape: of its values.
      unit: of the values, such as T^2: the logarithms behind them round to 1e-7 and their differences cancel.
    """
    s, t = logits()
    values, in_student, in_teacher, *_ = compiled(s, t)
    assert (values.shape, values.dtype) == (shape, jnp.float32)
    assert np.any(in_student)
    assert not np.any(in_teacher)
    same = np.ones((B, CLASSES))
    cases = [(s, s), (0 * s, 0 * s), (0 * s, t), (s, 0 * t), (3.7 * same, 3.7 * same)]
    cases += [(k * s, m * t) for k in (1, 1000) for m in (1, 1000)]
    for labels in (LABELS, SINGLE):
        for student, teacher in cases:
            for found in jax.tree.leaves(compiled(student, teacher, labels)):
                assert np.all(np.isfinite(found))
    found, grad, *_ = compiled(s, t, dtype=jnp.bfloat16)
    rounded = [np.float32(jnp.asarray(z, jnp.bfloat16)) for z in (s, t)]
    assert found.dtype == jnp.float32
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(found, compiled(*rounded)[0], rtol=1e-5, atol=2e-7 * unit)

    seeds = [logits(seed=i) for i in range(3)]
    several = [jnp.asarray(np.stack(z), jnp.float32) for z in zip(*seeds, strict=True)]
    heads = jax.tree.map(lambda x: jnp.stack([x] * 3), compiled.heads)
    alike = jax.jit(jax.vmap(compiled.plain, (0, None, 0, None, None)))
    (grads, *_), (values, _) = alike(several[0], several[1][0], heads, jnp.asarray(LABELS), jnp.asarray(3))
    for i in range(3):
        alone = compiled(several[0][i], several[1][0])
        np.testing.assert_allclose(values[i], alone[0], rtol=1e-5, atol=2e-7 * unit)
        np.testing.assert_allclose(grads[i], alone[1], rtol=1e-4, atol=2e-6 * unit)
