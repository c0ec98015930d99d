"""Grad-CAM matching, alone and through the forward pass of a training step, against maps computed pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from smooth_net import CLASSES, Pair, Slow, directions, slope

from gkd_jax.errors import UserError
from gkd_jax.losses import lwm, term
from gkd_jax.outputs import Gradient

grad_cam, attention_distance = jax.jit(lwm.grad_cam), jax.jit(lwm.attention_distance)


def _arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def slow_cam(feature, gradient):
    b, h, w, k = feature.shape
    found = np.zeros((b, h, w))
    for c in range(k):
        for i in range(b):
            found[i] += gradient[i, :, :, c].mean() * feature[i, :, :, c]
    return np.where(found > 0, found, 0)


def slow_distance(student, teacher):
    """For maps whose sides are equal, or the double of the other's."""

    def halved(x):
        return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4

    s, t = np.float64(student), np.float64(teacher)
    s, t = (halved(s) if s.shape[1] > t.shape[1] else s), (halved(t) if t.shape[1] > s.shape[1] else t)
    total = []
    for a, b in zip(s, t, strict=True):
        a, b = (q / np.sqrt((q**2).sum()) if np.any(q) else q for q in (a, b))
        total.append(np.abs(a - b).sum())
    return np.array(total)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_cam_value_and_gradients(scale):
    feature, gradient, weight = _arrays((3, 2, 4, 5), (3, 2, 4, 5), (3, 2, 4))
    feature, gradient = feature * scale, gradient / scale
    np.testing.assert_allclose(grad_cam(feature, gradient), slow_cam(feature, gradient), atol=1e-6)
    pulled = jax.grad(lambda f, g: jnp.sum(weight * grad_cam(f, g)), (0, 1))(feature, gradient)
    f64, g64, w64 = (np.float64(x) for x in (feature, gradient, weight))
    in_feature = central_gradient(lambda f: np.sum(w64 * slow_cam(f, g64)), f64, 1e-6 * scale)
    in_gradient = central_gradient(lambda g: np.sum(w64 * slow_cam(f64, g)), g64, 1e-6 / scale)
    for found, expected in zip(pulled, (in_feature, in_gradient), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shapes", [((3, 4, 4), (3, 4, 4)), ((3, 4, 4), (3, 2, 2)), ((3, 2, 2), (3, 4, 4))])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e3])
def test_distance_value_and_gradient(shapes, scale):
    s, t = (jnp.abs(x) for x in _arrays(*shapes))
    np.testing.assert_allclose(attention_distance(s * scale, t), slow_distance(s, t), rtol=1e-5)
    found, in_teacher = jax.grad(lambda s, t: attention_distance(s, t).sum(), (0, 1))(s * scale, t)
    expected = central_gradient(lambda s: slow_distance(s, t).sum(), s, 1e-6)
    np.testing.assert_allclose(np.float64(found) * scale, expected, rtol=1e-4, atol=1e-5)
    assert not np.any(in_teacher)


def test_maps_that_say_nothing():
    s, t = (jnp.abs(x) for x in _arrays((3, 2, 2), (3, 2, 2)))
    s, t = s.at[0].set(0).at[1].set(0), t.at[1].set(0).at[2].set(0)
    np.testing.assert_allclose(attention_distance(s, t), slow_distance(s, t), rtol=1e-6)
    assert attention_distance(s, t)[1] == 0
    grad = jax.grad(lambda s: attention_distance(s, t).sum())(s)
    assert np.all(np.isfinite(grad))
    assert not np.any(grad[:2])


def test_equality_and_bfloat16():
    s, t = (jnp.abs(x) for x in _arrays((3, 2, 2), (3, 2, 2)))
    value, grad = jax.value_and_grad(lambda s: attention_distance(s, t).sum())(t)
    assert value < 1e-6
    assert np.all(np.isfinite(grad))
    s, t = (x.astype(jnp.bfloat16) for x in (s, t))
    assert attention_distance(s, t).dtype == jnp.float32
    np.testing.assert_allclose(attention_distance(s, t), slow_distance(s, t), rtol=1e-5)
    feature, gradient = (x.astype(jnp.bfloat16) for x in _arrays((3, 2, 2, 5), (3, 2, 2, 5)))
    assert grad_cam(feature, gradient).dtype == jnp.float32
    np.testing.assert_allclose(grad_cam(feature, gradient), slow_cam(*np.float64([feature, gradient])), atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.permutations(range(3)))
def test_identities(seed, scale, order):
    s, t = (jnp.abs(x) for x in _arrays((3, 2, 2), (3, 2, 2), seed=seed))
    value, order = attention_distance(s, t), jnp.asarray(order)
    np.testing.assert_allclose(attention_distance(s[order], t[order]), value[order], rtol=1e-6)
    np.testing.assert_allclose(attention_distance(s * jnp.float32(scale), t), value, rtol=1e-4, atol=1e-6)
    assert value.min() >= 0
    assert value.max() <= 2 * 4**0.5


# ------------------------------------------------------------------------------------- through the networks


def _create(**given_):
    created = term.create("lwm", **given_)
    (need,) = (need for need in created.needs if isinstance(need, Gradient))
    return created, need


@pytest.mark.parametrize(("at", "strides"), [("argmax", (1, 2)), ("label", (2, 1))])
def test_value_and_parameter_gradient_through_both_networks(at, strides):
    pair = Pair(jax.random.key(0), *strides)
    created, need = _create(at=at)
    teacher = Slow(pair.teacher_params, pair.images, strides[1])
    chosen = np.asarray(pair.batch.labels) if at == "label" else np.argmax(teacher.logits, axis=1)
    cotangent = np.eye(CLASSES)[chosen]
    target = slow_cam(teacher.feature, teacher.in_feature(cotangent))

    def slow(params):
        student = Slow(params, pair.images, strides[0])
        return slow_distance(slow_cam(student.feature, student.in_feature(cotangent)), target)

    def total(params):
        values = pair.values(created, need, params)
        return values.sum(), values

    grads, values = jax.jit(jax.grad(total, has_aux=True))(pair.params)
    np.testing.assert_allclose(values, slow(pair.params), rtol=1e-4)
    for direction in directions(pair.params):
        found = sum(np.vdot(grads[k], direction[k]) for k in grads)
        np.testing.assert_allclose(found, slope(lambda p: slow(p).sum(), pair.params, direction), rtol=1e-3)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))  # the tail's too: α is differentiated


def test_a_student_that_is_the_teacher_and_confident_networks():
    pair = Pair(jax.random.key(1))
    created, need = _create()
    equal = jax.jit(jax.value_and_grad(lambda p: pair.values(created, need, p, pair.params, pair.student).sum()))
    value, _ = equal(pair.params)
    assert value < 1e-5
    sure = lambda p: {**p, "out": 1000 * p["out"]}
    total = lambda p: pair.values(created, need, sure(p), sure(pair.teacher_params))
    f = jax.jit(jax.value_and_grad(lambda p: total(p).sum()))
    value, grads = f(pair.params)
    np.testing.assert_allclose(value, pair.values(created, need, pair.params).sum(), rtol=1e-4)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_needs_and_mistakes():
    created, need = _create(at="label", stage=-2)
    assert created.needs == {need, "teacher.features"}
    assert (need.name, need.at, need.cacheable) == ("label@feature:-2", "feature:-2", True)
    assert term.options("lwm") == {"at": "argmax", "stage": -1}
    with pytest.raises(UserError, match="unknown class 'top'; known: label, argmax"):
        term.create("lwm", at="top")
