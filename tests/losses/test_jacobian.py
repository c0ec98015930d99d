"""Terms on gradients of logits, through the forward pass of a training step, against derivatives written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from smooth_net import CLASSES, Pair, Slow, directions, slope

from gkd_jax.errors import UserError
from gkd_jax.losses import jacobian, term
from gkd_jax.losses.gradient import class_logit
from gkd_jax.outputs import Gradient

normalised_difference = jax.jit(jacobian.normalised_difference)
squared_difference = jax.jit(jacobian.squared_difference)
OURS = {"normalised": normalised_difference, "squared": squared_difference}


def _arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def theirs(kind, a, b):
    total = []
    for x, y in zip(np.float64(a), np.float64(b), strict=True):
        if kind == "normalised":
            x, y = x / np.sqrt((x**2).sum()), y / np.sqrt((y**2).sum())
        total.append(((x - y) ** 2).sum())
    return np.array(total)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e3])
def test_value_and_gradient(kind, scale):
    a, b = (scale * x for x in _arrays((3, 2, 2, 2), (3, 2, 2, 2)))
    np.testing.assert_allclose(OURS[kind](a, b), theirs(kind, a, b), rtol=1e-5)
    found, in_teacher = jax.grad(lambda a, b: OURS[kind](a, b).sum(), (0, 1))(a, b)
    expected = central_gradient(lambda a: theirs(kind, a, b).sum(), a, 1e-5 * scale)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert not np.any(in_teacher)


@pytest.mark.parametrize("kind", OURS)
def test_equality_zeros_and_bfloat16(kind):
    a, b = _arrays((3, 2, 2, 2), (3, 2, 2, 2))
    f = jax.value_and_grad(lambda a, b: OURS[kind](a, b).sum())
    value, grad = f(a, a)
    assert value < 1e-12
    assert np.abs(grad).max() < 1e-6
    value, grad = f(a.at[0].set(0), b.at[1].set(0))
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))
    assert kind == "squared" or not np.any(grad[:2])  # no direction, nothing to turn
    a, b = (x.astype(jnp.bfloat16) for x in (a, b))
    assert OURS[kind](a, b).dtype == jnp.float32
    np.testing.assert_allclose(OURS[kind](a, b), theirs(kind, a, b), rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.permutations(range(4)))
def test_identities(seed, scale, order):
    a, b = _arrays((4, 5), (4, 5), seed=seed)
    order = jnp.asarray(order)
    for kind, ours in OURS.items():
        np.testing.assert_allclose(ours(a[order], b[order]), ours(a, b)[order], rtol=1e-6)
        np.testing.assert_allclose(ours(a, b), ours(b, a), rtol=1e-5)
        expected = ours(a, b) if kind == "normalised" else scale**2 * ours(a, b)
        np.testing.assert_allclose(ours(a * jnp.float32(scale), b * jnp.float32(scale)), expected, rtol=1e-5)


# ------------------------------------------------------------------------------------- through the networks


@pytest.fixture(scope="module")
def pair():
    return Pair(jax.random.key(0))


def _create(name, **given_):
    created = term.create(name, **given_)
    (need,) = created.needs
    return created, need


def _cotangent(case, pair, need):
    """What each example's logits are weighed with, from the definition."""
    teacher = Slow(pair.teacher_params, pair.images)
    chosen = {"label": np.asarray(pair.batch.labels), "argmax": np.argmax(teacher.logits, axis=1)}
    return np.eye(CLASSES)[chosen[case]] if case in chosen else pair.drawn(need, (5, CLASSES))


CASES = {"label": ("jacobian", {}), "argmax": ("jacobian", {"at": "argmax"}), "sobolev": ("sobolev", {})}


@pytest.mark.parametrize("case", CASES)
def test_value_and_parameter_gradient_through_both_networks(case, pair):
    name, given_ = CASES[case]
    created, need = _create(name, **given_)
    cotangent = _cotangent(case, pair, need)
    kind = "normalised" if name == "jacobian" else "squared"
    of_teacher = Slow(pair.teacher_params, pair.images).in_image(cotangent)

    def slow(params):
        return theirs(kind, Slow(params, pair.images).in_image(cotangent), of_teacher)

    def total(params):
        values = pair.values(created, need, params)
        return values.sum(), values

    grads, values = jax.jit(jax.grad(total, has_aux=True))(pair.params)
    np.testing.assert_allclose(values, slow(pair.params), rtol=1e-4)
    for direction in directions(pair.params):
        found = sum(np.vdot(grads[k], direction[k]) for k in grads)
        np.testing.assert_allclose(found, slope(lambda p: slow(p).sum(), pair.params, direction), rtol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_a_student_that_is_the_teacher(case, pair):
    name, given_ = CASES[case]
    created, need = _create(name, **given_)
    total = lambda p: pair.values(created, need, p, pair.params, pair.student).sum()
    value, grads = jax.jit(jax.value_and_grad(total))(pair.params)
    assert value < 1e-10
    assert all(np.abs(leaf).max() < 1e-5 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("case", CASES)
def test_confident_networks_give_finite_numbers(case, pair):
    """Logits x 1000: unlike the cross-entropy's, the gradient of a logit does not vanish."""
    name, given_ = CASES[case]
    created, need = _create(name, **given_)
    sure = lambda p: {**p, "out": 1000 * p["out"]}
    total = lambda p: pair.values(created, need, sure(p), sure(pair.teacher_params)).sum()
    value, grads = jax.jit(jax.value_and_grad(total))(pair.params)
    expected = jax.jit(lambda p: pair.values(created, need, p).sum())(pair.params)
    np.testing.assert_allclose(value, expected * (1e6 if name == "sobolev" else 1), rtol=1e-4)
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_a_random_mixture_is_the_same_for_both_networks_and_new_at_each_step(pair):
    _, need = _create("sobolev")
    v = np.asarray(pair.drawn(need, (5, CLASSES)))
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), np.ones(5), rtol=1e-6)
    assert len(np.unique(v[:, 0])) == 5
    other = need.cotangent(jnp.zeros((5, CLASSES)), None, pair.batch, jax.random.fold_in(pair.key, 1))
    assert not np.allclose(other, v)
    whatever = [(jnp.ones((5, CLASSES)), jnp.ones((5, CLASSES))), (jnp.zeros((5, CLASSES)), None)]
    a, b = (need.cotangent(*logits, pair.batch, pair.key) for logits in whatever)
    np.testing.assert_array_equal(a, b)


def test_mixtures_average_to_the_whole_jacobian(pair):
    """The mean of <v, r>² over the unit sphere is ‖r‖² / c."""
    need = jacobian.random_logit("input")
    v = np.float64(need.cotangent(jnp.zeros((20000, CLASSES)), None, pair.batch, pair.key))
    np.testing.assert_allclose(v.T @ v / len(v), np.eye(CLASSES) / CLASSES, atol=0.01)


def test_requests():
    assert _create("jacobian")[1] == Gradient("label@input", "input", lambda *_: None, cacheable=True)
    assert _create("jacobian", at="argmax")[1].name == "argmax@input"
    assert not _create("sobolev")[1].cacheable  # nothing can remember what is drawn
    assert class_logit("label", "feature:-2").at == "feature:-2"
    with pytest.raises(UserError, match="unknown class 'top'; known: label, argmax"):
        term.create("jacobian", at="top")


def test_the_class_is_the_teachers(pair):
    z, teacher = _arrays((5, CLASSES), (5, CLASSES))
    argmax, label = (class_logit(which, "input").cotangent for which in ("argmax", "label"))
    np.testing.assert_array_equal(argmax(z, teacher, pair.batch, pair.key), np.eye(CLASSES)[np.argmax(teacher, 1)])
    np.testing.assert_array_equal(argmax(z, None, pair.batch, pair.key), np.eye(CLASSES)[np.argmax(z, 1)])
    np.testing.assert_array_equal(label(z, teacher, pair.batch, pair.key), pair.batch.targets)
