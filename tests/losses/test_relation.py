import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_relations as reference
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_jax.errors import UserError
from gkd_jax.losses import relation, term
from gkd_jax.outputs import Batch, Outputs, Setup

B = 6
# Student's and teacher's shapes of one example
KINDS = {
    "similarity_preserving": ((2, 2, 3), (1, 2, 4)),
    "relational_distance": ((4,), (5,)),
    "relational_angle": ((4,), (5,)),
    "probabilistic_transfer": ((4,), (5,)),
    "consecutive_correlation": ((4,), (4,)),
    "kernel_correlation": ((4,), (5,)),
}
OF_BATCHES = sorted(set(KINDS) - {"consecutive_correlation"})


@functools.cache
def _ours(kind):
    function = jax.value_and_grad(getattr(relation, kind), (0, 1))
    return jax.jit(function)


def _pair(kind, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(B, *shape)) + 0.3, jnp.float32) for shape in KINDS[kind]]


def _check(kind, s, t, rtol=1e-4):
    value, (grad, in_teacher) = _ours(kind)(s, t)
    s64, t64 = np.float64(s), np.float64(t)
    theirs = getattr(reference, kind)
    np.testing.assert_allclose(value, theirs(s64, t64), rtol=rtol / 10, atol=1e-8)
    size = np.abs(s64).max()
    expected = central_gradient(lambda s: theirs(s, t64), s64, 1e-5 * size)
    np.testing.assert_allclose(grad, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
    assert value.dtype == jnp.float32
    return grad, in_teacher


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient(kind, seed):
    _, in_teacher = _check(kind, *_pair(kind, seed))
    assert (kind == "consecutive_correlation") == bool(np.any(in_teacher))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_large_and_small_activations(kind, scale):
    s, t = _pair(kind)
    _check(kind, s * scale, t * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind):
    s, t = (x.astype(jnp.bfloat16) for x in _pair(kind))
    value, (grad, _) = _ours(kind)(s, t)
    assert value.dtype == jnp.float32
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, getattr(reference, kind)(np.float64(s), np.float64(t)), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_at_equality_with_its_gradient(kind):
    s, _ = _pair(kind)
    value, (grad, _) = _ours(kind)(s, s)
    assert abs(value) < 2e-8  # rounding of probabilities of 1 / 6
    assert np.abs(grad).max() < 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_coincident_examples(kind):
    s, t = _pair(kind)
    s = s.at[0].set(0).at[2].set(s[1])
    value, (grad, _) = _ours(kind)(s, t)
    np.testing.assert_allclose(value, getattr(reference, kind)(np.float64(s), np.float64(t)), rtol=1e-4)
    assert np.all(np.isfinite(grad))
    assert np.abs(grad).max() < 10
    value, (grad, _) = _ours(kind)(t if kind == "consecutive_correlation" else s, jnp.zeros_like(t))
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [0.0, 1.0])
def test_a_collapsed_student_gives_finite_numbers(kind, row):
    """All examples in one place, as those of a batch of one class may be."""
    s, t = _pair(kind)
    value, (grad, _) = _ours(kind)(jnp.full_like(s, row), t)
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))
    assert np.abs(grad).max() < 100


def test_close_examples_are_told_apart():
    """Where the batch is far from the origin, and squared lengths would swallow the distances."""
    s, t = _pair("relational_distance")
    near, expected = _ours("relational_distance")(s * 1e-3 + 10, t), _ours("relational_distance")(s, t)
    np.testing.assert_allclose(near[0], expected[0], rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one(kind):
    s, t = (x[:1] for x in _pair(kind))
    value, (grad, _) = _ours(kind)(s, t)
    assert abs(value) < 1e-9
    assert np.abs(grad).max() < 1e-6


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(OF_BATCHES), st.permutations(range(B)), st.integers(0, 10**6))
def test_the_order_of_the_batch_does_not_matter(kind, order, seed):
    s, t = _pair(kind, seed)
    order = jnp.asarray(order)
    np.testing.assert_allclose(_ours(kind)(s[order], t[order])[0], _ours(kind)(s, t)[0], rtol=1e-4, atol=1e-8)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(OF_BATCHES), st.floats(1e-2, 1e2), st.integers(0, 10**6))
def test_the_scale_of_one_network_does_not_matter(kind, scale, seed):
    s, t = _pair(kind, seed)
    np.testing.assert_allclose(_ours(kind)(s * scale, t)[0], _ours(kind)(s, t)[0], rtol=1e-4, atol=1e-8)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(OF_BATCHES), st.integers(0, 10**6))
def test_a_rotation_of_the_student_does_not_matter(kind, seed):
    s, t = _pair(kind, seed)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(s.shape[-1],) * 2))[0]
    turned = jnp.asarray(np.float64(s) @ q, jnp.float32)
    np.testing.assert_allclose(_ours(kind)(turned, t)[0], _ours(kind)(s, t)[0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("kind", ["relational_distance", "relational_angle"])
def test_a_shift_of_the_student_does_not_matter(kind):
    s, t = _pair(kind)
    np.testing.assert_allclose(_ours(kind)(s + 5, t)[0], _ours(kind)(s, t)[0], rtol=1e-4)


# ------------------------------------------------------------------------------------------------ terms


def _outputs(seed, width):
    rng = np.random.default_rng(seed)
    array = lambda *shape: jnp.asarray(rng.normal(size=(B, *shape)), jnp.float32)
    return Outputs(array(3), array(width), None, (array(4, 4, 3), array(2, 2, width)))


@functools.partial(jax.jit, static_argnums=0)
def _value(loss, student, teacher, heads):
    batch = Batch({}, jnp.arange(B) % 3, jnp.eye(3)[jnp.arange(B) % 3], jnp.arange(B), jnp.arange(B), jnp.int32(0))
    return loss(heads, (), student, teacher, batch, jax.random.key(0))[0]


def _created(key, name, **given):
    created = term.create(name, **given)
    student, teacher = _outputs(0, 4), _outputs(1, 5)
    shapes = jax.eval_shape(lambda: (student, teacher))
    heads, state = created.init(key, *shapes, Setup(3, 20, 2))
    assert state == ()
    return created, student, teacher, heads


def test_terms_without_heads(key):
    kernel = functools.partial(relation.kernel_correlation, gamma=0.1, order=3)
    both = lambda s, t: 2 * relation.relational_distance(s, t) + 3 * relation.relational_angle(s, t)
    cases = [
        ("sp", {}, relation.similarity_preserving, lambda o: o.features[-1]),
        ("sp", {"stage": 0}, relation.similarity_preserving, lambda o: o.features[0]),
        ("pkt", {}, relation.probabilistic_transfer, lambda o: o.embedding),
        ("rkd", {"distance": 2, "angle": 3.0}, both, lambda o: o.embedding),
        ("rkd", {"angle": 0.0, "distance": 1.0}, relation.relational_distance, lambda o: o.embedding),
        ("cc", {"kind": "kernel", "gamma": 0.1, "order": 3}, kernel, lambda o: o.embedding),
    ]
    for name, given_, function, read in cases:
        created, student, teacher, heads = _created(key, name, **given_)
        assert heads == {}
        assert created.needs == {"teacher.features" if name == "sp" else "teacher.embedding"}
        found = _value(created.loss, student, teacher, heads)
        np.testing.assert_allclose(found, jax.jit(function)(read(student), read(teacher)), rtol=1e-6)


def test_published_weights_are_the_defaults():
    assert term.options("rkd") == {"distance": 25.0, "angle": 50.0}
    assert term.options("cc") == {"kind": "consecutive", "dim": 128, "gamma": 0.4, "order": 2}


def test_both_heads_of_correlation_are_trained(key):
    created, student, teacher, heads = _created(key, "cc", dim=7)
    assert {side: h["kernel"].shape for side, h in heads.items()} == {"student": (4, 7), "teacher": (5, 7)}
    mapped = [np.float64(o.embedding) @ heads[s]["kernel"] for s, o in (("student", student), ("teacher", teacher))]
    found = _value(created.loss, student, teacher, heads)
    np.testing.assert_allclose(found, reference.consecutive_correlation(*mapped), rtol=1e-5)
    grads = jax.grad(lambda h: _value(created.loss, student, teacher, h))(heads)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
    in_teacher = jax.grad(lambda e: _value(created.loss, student, teacher._replace(embedding=e), heads))(
        teacher.embedding
    )
    assert not np.any(in_teacher)


@pytest.mark.parametrize(
    ("name", "given_", "said"),
    [
        ("rkd", {"angle": -1.0}, "angle -1.0; allowed"),
        ("rkd", {"angle": 0.0, "distance": 0.0}, "one of them above 0"),
        ("cc", {"kind": "rbf"}, "unknown kind 'rbf'; known: consecutive, kernel"),
        ("cc", {"dim": 0}, "dim is 0"),
        ("cc", {"order": 0}, "order is 0"),
        ("cc", {"gamma": 0.0}, "gamma is 0.0"),
    ],
)
def test_mistakes_are_named(name, given_, said):
    with pytest.raises(UserError, match=said):
        term.create(name, **given_)
