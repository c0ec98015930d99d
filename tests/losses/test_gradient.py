import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from gkd_jax.losses import gradient, term
from gkd_jax.outputs import Batch, Outputs, Setup

residual, gradient_cosine = jax.jit(gradient.residual), jax.jit(gradient.gradient_cosine)
classifier_gradient = jax.jit(gradient.classifier_gradient)


def _arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def _one_hot(classes, b=8, seed=0):
    return jax.nn.one_hot(np.random.default_rng(seed).integers(0, classes, b), classes)


def _cosine(a, b):
    a, b = (np.float64(x).reshape(len(x), -1) for x in (a, b))
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def _off_target(z, label):
    """p - y in float64, from the probabilities of the other classes alone."""
    e = np.exp(z - z.max())
    off = np.where(np.arange(len(z)) == label, 0, e / e.sum())
    off[label] = -off.sum()
    return off


@pytest.mark.parametrize("margin", [5, 25, 50, 80])
def test_residual_of_a_confident_network(margin):
    z = np.array([margin, 0.3, -1.0, 0.1, 0.7], np.float32)
    found = np.float64(residual(jnp.asarray(z)[None], jax.nn.one_hot(jnp.array([0]), 5)))[0]
    np.testing.assert_allclose(found, _off_target(np.float64(z), 0), rtol=1e-5)


def test_residual_past_the_range_of_float32_is_zero():
    z, y = jnp.array([[100.0, 0, -1, 0.5]]), jnp.array([[1.0, 0, 0, 0]])
    np.testing.assert_allclose(residual(z, y), np.zeros((1, 4)), atol=1e-38)
    value, grad = jax.value_and_grad(lambda z: gradient_cosine(residual(z, y), y)[0])(z)
    assert value == 0
    assert not np.any(grad)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_residual_of_soft_targets(scale):
    (z,) = _arrays((8, 6))
    y = np.random.default_rng(1).dirichlet(np.ones(6), 8)
    expected = softmax(scale * np.float64(z), axis=1) - y
    np.testing.assert_allclose(residual(scale * z, jnp.asarray(y, jnp.float32)), expected, atol=2e-7)
    smooth = optax.losses.smooth_labels(_one_hot(6), 0.1)
    expected = softmax(scale * np.float64(z), axis=1) - np.float64(smooth)
    np.testing.assert_allclose(residual(scale * z, smooth), expected, atol=2e-7)


def test_residual_is_the_derivative_and_has_one():
    (z,), y = _arrays((8, 6)), _one_hot(6)
    ce = lambda z: optax.losses.softmax_cross_entropy(z, y).sum()
    np.testing.assert_allclose(residual(z, y), jax.grad(ce)(z), atol=1e-6)
    jacobian = jax.jacobian(lambda z: residual(z[None], y[:1])[0])(z[0])
    np.testing.assert_allclose(
        jacobian, jax.hessian(lambda z: optax.losses.softmax_cross_entropy(z, y[0]))(z[0]), atol=1e-6
    )


@pytest.mark.parametrize("scale", [1.0, 50.0, 1000.0])
def test_residual_of_peaked_logits_is_finite(scale):
    (z,), y = _arrays((8, 6)), _one_hot(6)
    found = residual(scale * z, y)
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(found.sum(1), np.zeros(8), atol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda z: residual(scale * z, y).var())(z)))


@pytest.mark.parametrize("shape", [(8, 7), (8, 4, 4, 3)])
def test_cosine_value_and_gradient(shape):
    a, b = _arrays(shape, shape)
    np.testing.assert_allclose(gradient_cosine(a, b), 1 - _cosine(a, b), atol=1e-6)
    found = np.float64(jax.grad(lambda a: gradient_cosine(a, b).sum())(a)).reshape(8, -1)
    u, v = (np.float64(x).reshape(8, -1) for x in (a, b))
    length, v = np.linalg.norm(u, axis=1, keepdims=True), v / np.linalg.norm(v, axis=1, keepdims=True)
    u = u / length
    np.testing.assert_allclose(found, -(v - u * np.sum(u * v, axis=1, keepdims=True)) / length, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12])
def test_cosine_does_not_depend_on_the_scale(scale):
    a, b = _arrays((8, 7), (8, 7))
    f = jax.value_and_grad(lambda a: gradient_cosine(a, b * scale).sum())
    (value, grad), (expected, expected_grad) = f(a * scale), f(a)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grad * scale, expected_grad, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.sum(np.asarray(grad * scale) * np.asarray(a)), 0, atol=1e-5)


def test_cosine_at_equality_and_opposite():
    (a,) = _arrays((8, 7))
    f = jax.value_and_grad(lambda x: gradient_cosine(x, a).sum())
    value, grad = f(a)
    assert value < 1e-6
    assert np.abs(grad).max() < 1e-6
    assert f(3 * a)[0] < 1e-6
    np.testing.assert_allclose(gradient_cosine(-a, a), np.full(8, 2.0), rtol=1e-6)


def test_cosine_of_zeros():
    a, b = _arrays((4, 7), (4, 7))
    a, b = a.at[0].set(0).at[1].set(1e-35), b.at[2].set(0)
    value, pull = jax.vjp(gradient_cosine, a, b)
    assert not np.any(value[:3])
    assert value[3] > 0.1
    for grad in pull(jnp.ones(4)):
        assert np.all(np.isfinite(grad))
        assert not np.any(grad[:3])
        assert np.any(grad[3])


def test_cosine_shows_nan():
    a, b = _arrays((2, 3), (2, 3))
    assert np.isnan(gradient_cosine(a.at[0, 0].set(jnp.nan), b)[0])


def test_bfloat16_gives_float32():
    a, b = (x.astype(jnp.bfloat16) for x in _arrays((8, 7), (8, 7)))
    assert gradient_cosine(a, b).dtype == residual(a, _one_hot(7)).dtype == jnp.float32
    np.testing.assert_allclose(gradient_cosine(a, b), 1 - _cosine(a, b), atol=1e-6)


def test_classifier_gradient_is_the_cosine_of_outer_products():
    h_s, h_t, w_s, w_t = _arrays((8, 5), (8, 5), (5, 4), (5, 4))
    y = optax.losses.smooth_labels(_one_hot(4), 0.1)

    def in_weights(w, h):
        return jax.vmap(lambda h, y: jax.grad(lambda w: optax.losses.softmax_cross_entropy(h @ w, y))(w))(h, y)

    expected = 1 - _cosine(in_weights(w_s, h_s), in_weights(w_t, h_t))
    found = classifier_gradient(h_s @ w_s, h_t @ w_t, y, h_s, h_t)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_classifier_gradient_value_and_gradient():
    z_s, z_t, h_s, h_t = _arrays((4, 3), (4, 3), (4, 5), (4, 5))
    y = np.random.default_rng(2).dirichlet(np.ones(3), 4)

    def exact(z, h):
        outer = [
            (softmax(np.float64(logits), axis=1) - y)[:, :, None] * np.float64(embedding)[:, None]
            for logits, embedding in ((z, h), (z_t, h_t))
        ]
        return 1 - _cosine(*outer)

    of = lambda z, h, z_t=z_t, h_t=h_t: classifier_gradient(z, z_t, jnp.asarray(y, jnp.float32), h, h_t)
    np.testing.assert_allclose(of(z_s, h_s), exact(z_s, h_s), atol=1e-6)
    in_logits, in_embedding, *constant = jax.grad(lambda *x: of(*x).sum(), (0, 1, 2, 3))(z_s, h_s, z_t, h_t)
    expected = central_gradient(lambda z: exact(z, h_s).sum(), z_s)
    np.testing.assert_allclose(in_logits, expected, rtol=1e-4, atol=1e-6 * (1 + np.abs(expected).max()))
    expected = central_gradient(lambda h: exact(z_s, h).sum(), h_s)
    np.testing.assert_allclose(in_embedding, expected, rtol=1e-4, atol=1e-6 * (1 + np.abs(expected).max()))
    assert not any(np.any(grad) for grad in constant)


def test_classifier_gradient_at_equality_and_at_zero():
    z, h = _arrays((8, 4), (8, 5))
    y = _one_hot(4)
    f = lambda z, h, teacher=(z, h): classifier_gradient(z, teacher[0], y, h, teacher[1])
    value, pull = jax.vjp(f, z, h)
    assert np.abs(value).max() < 1e-6
    assert all(np.abs(grad).max() < 1e-6 for grad in pull(jnp.ones(8)))
    value, pull = jax.vjp(lambda z, h: f(z, h, _arrays((8, 4), (8, 5), seed=1)), z, h.at[0].set(0))
    assert value[0] == 0
    assert np.min(value[1:]) > 0
    for grad in pull(jnp.ones(8)):
        assert np.all(np.isfinite(grad))
        assert not np.any(grad[0])
        assert np.all(np.any(grad[1:], axis=1))


# ------------------------------------------------------------------------------------------ identities of the terms

B, CLASSES = 6, 4
WRT = ("input", "features", "classifier")


def _outputs(seed, width, scale=1.0, shift=0.0):
    """Gradients and embedding times `scale`, logits plus `shift`."""
    rng = np.random.default_rng(seed)
    array = lambda *shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
    grads = {"ce@input": array(B, 4, 4, 3), "ce@feature:-2": array(B, 2, 2, width)}
    embedding = array(B, width)
    return Outputs(jnp.asarray(2 * rng.normal(size=(B, CLASSES)) + shift, jnp.float32), embedding, grads=grads)


@functools.cache
def _term(wrt):
    """Returns the heads and the values of one term, compiled once for two networks of different width."""
    created = term.create("gradient", wrt=wrt)
    shapes = jax.eval_shape(lambda: (_outputs(0, 3), _outputs(1, 5)))
    heads, state = created.init(jax.random.key(0, impl="rbg"), *shapes, Setup(CLASSES, 20, 2))

    @jax.jit
    def values(student, teacher, labels):
        place = jnp.zeros(B, jnp.int32)
        batch = Batch({}, labels, jax.nn.one_hot(labels, CLASSES), place, place, jnp.int32(0))
        return created.loss(heads, state, student, teacher, batch, jax.random.key(0, impl="rbg"))[0]

    return heads, values


@pytest.mark.parametrize("wrt", WRT)
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 999),
    scales=st.tuples(st.floats(1e-8, 1e8), st.floats(1e-8, 1e8)),
    shift=st.floats(-20, 20),
    order=st.permutations(range(B)),
)
def test_invariances(wrt, seed, scales, shift, order):
    _, values = _term(wrt)
    student, teacher, order = _outputs(seed, 3), _outputs(seed + 1000, 5), np.array(order)
    labels = np.random.default_rng(seed).integers(0, CLASSES, B)
    found = values(student, teacher, labels)
    assert np.all((found > 0) & (found < 2 + 1e-6))
    turned = values(*jax.tree.map(lambda x: x[order], (student, teacher)), labels[order])
    np.testing.assert_allclose(turned, found[order], atol=1e-6)
    # The length of gradients and embeddings does not matter, nor what is added to all logits of an example: their sums
    # round to 1e-6, and a probability to as much of itself.
    other = _outputs(seed, 3, scales[0], shift), _outputs(seed + 1000, 5, scales[1], -shift)
    np.testing.assert_allclose(values(*other, labels), found, atol=1e-6 if wrt != "classifier" else 1e-5)


@pytest.mark.parametrize("wrt", WRT)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(1e-8, 1e8))
def test_zero_where_the_directions_agree(wrt, seed, scale):
    heads, values = _term(wrt)
    student, labels = _outputs(seed, 3), np.random.default_rng(seed).integers(0, CLASSES, B)
    kernel = scale * np.float64(heads["projection"]["kernel"] if heads else np.eye(3))
    projected = lambda x: jnp.asarray(np.float64(x) @ kernel, jnp.float32)
    grads = {"ce@input": student.grads["ce@input"] * scale, "ce@feature:-2": projected(student.grads["ce@feature:-2"])}
    embedding = projected(student.embedding) if wrt == "classifier" else student.embedding
    teacher = student._replace(embedding=embedding, grads=grads)
    found, grad = jax.value_and_grad(lambda s: values(s, teacher, labels).sum())(student)
    assert found < 1e-6
    relative = jax.tree.map(lambda g, x: np.abs(g).max() * np.abs(x).max(), grad, student)
    assert max(jax.tree.leaves(relative)) < 1e-5
