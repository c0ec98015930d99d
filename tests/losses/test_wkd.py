import jax
import jax.numpy as jnp
import numpy as np
import numpy_logit as reference
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from gkd_jax.errors import UserError
from gkd_jax.losses import term, transport, wkd
from gkd_jax.outputs import Outputs, Setup

# The second pair of classes is near: its probability moves at little cost.
KERNEL = reference.KERNEL.copy()
KERNEL[:, 1] = KERNEL[:, 0] + 0.1 * KERNEL[:, 1]
WKD = reference.Compiled("wkd_l", KERNEL, others=lambda step: 100.0 * step, temperature=4.0)  # 300 at step 3


def _cost(kernel=KERNEL, sharpen=1.0):
    w = kernel / np.sqrt(np.sum(kernel**2, axis=0) + 1e-8)
    cost = np.maximum(1 - w.T @ w, 0)
    np.fill_diagonal(cost, 0)
    return 1 - np.exp(-sharpen * cost)


def _transport(s, t, labels, cost, temperature, epsilon=0.05, iterations=10):
    """The published algorithm, with each example's target class cut out."""
    found = []
    for zs, zt, y in zip(s, t, labels, strict=True):
        left = np.delete(np.arange(len(zs)), y)
        a, b = softmax(zs[left] / temperature), softmax(zt[left] / temperature)
        own = cost[np.ix_(left, left)]
        kernel, u = np.exp(-own / epsilon), np.full(len(left), 1 / len(left))
        for _ in range(iterations):
            v = b / (kernel.T @ u + 1e-8)
            u = a / (kernel @ v + 1e-8)
        found.append(np.sum(u[:, None] * kernel * v[None] * own))
    return np.array(found)


def _target(s, t, labels):
    place = np.arange(len(labels)), labels
    return -softmax(t, axis=1)[place] * log_softmax(s, axis=1)[place]


@pytest.mark.parametrize("scale", [1.0, 5.0, 20.0])
def test_value_and_gradient(scale):
    s, t = reference.logits(scale)
    labels, cost = reference.LABELS, _cost()
    exact = lambda s: _target(s, t, labels) + 300 * _transport(s, t, labels, cost, 4.0)
    value, grad, *_ = WKD(s, t)
    np.testing.assert_allclose(WKD.constants, cost, atol=1e-6)
    np.testing.assert_allclose(value, exact(s), rtol=1e-4, atol=1e-4)
    expected = central_gradient(lambda s: exact(s).sum(), s)
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=2e-5 * np.abs(expected).max())


def test_the_published_code_in_torch():
    torch = pytest.importorskip("torch")
    s, t = reference.logits(3.0)
    z, zt, label = torch.tensor(s, requires_grad=True), torch.tensor(t), torch.tensor(reference.LABELS)[:, None]
    left = torch.ones_like(z).scatter_(1, label, 0).bool()
    n, c = z.shape
    part = -(torch.softmax(zt, 1).gather(1, label) * torch.log_softmax(z, 1).gather(1, label))[:, 0]
    cost = torch.tensor(_cost()).repeat(n, 1, 1)[left[:, None] & left[:, :, None]].reshape(n, c - 1, c - 1) + 1e-8
    a, b = (torch.softmax(x[left].reshape(n, -1) / 4, 1)[:, :, None] for x in (z, zt))
    kernel, u = torch.exp(-cost / 0.05), torch.full_like(a, 1 / (c - 1))
    for _ in range(10):
        v = b / (kernel.transpose(1, 2) @ u + 1e-8)
        u = a / (kernel @ v + 1e-8)
    expected = part + 300 * (u * kernel * v.transpose(1, 2) * cost).sum((1, 2))
    expected.sum().backward()
    value, grad, *_ = WKD(s, t)
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad, z.grad, rtol=1e-3, atol=1e-3)


def test_any_batch():
    reference.check_common(WKD, (reference.B,), unit=300.0)


def test_it_is_not_zero_at_equality():
    s, _ = reference.logits(3.0)
    assert WKD(s, s)[0].min() > 0.01
    moved = _transport(s, s, reference.LABELS, _cost(), 4.0)
    args = (jnp.asarray(s, jnp.float32),) * 2
    found = wkd.transport_between_others(*args, jnp.asarray(reference.LABELS), WKD.constants, temperature=4.0)
    np.testing.assert_allclose(found, moved, rtol=1e-4)
    assert moved.min() > 0


def test_the_weights_of_the_parts():
    s, t = reference.logits(3.0)
    target = reference.Compiled("wkd_l", KERNEL, others=0.0, target=2.0)(s, t)[0]
    np.testing.assert_allclose(target, 2 * _target(s, t, reference.LABELS), rtol=1e-5)
    others = reference.Compiled(
        "wkd_l", KERNEL, target=0.0, others=5.0, epsilon=0.2, iterations=3, sharpen=0.5, temperature=lambda step: step
    )(s, t)[0]
    exact = _transport(s, t, reference.LABELS, _cost(sharpen=0.5), 3.0, epsilon=0.2, iterations=3)
    np.testing.assert_allclose(others, 5 * exact, rtol=1e-4)


def test_moving_between_similar_classes_is_cheap():
    t = np.zeros((1, reference.CLASSES))
    t[0, 0] = 8.0
    near, far = np.roll(t, 1, axis=1), np.roll(t, 2, axis=1)
    cost = jnp.asarray(_cost(), jnp.float32)
    labels, options = jnp.asarray([4]), {"temperature": 1.0, "iterations": 200}

    def moved(s):
        args = (jnp.asarray(z, jnp.float32) for z in (s, t))
        return wkd.transport_between_others(*args, labels, cost, **options)[0]

    np.testing.assert_allclose(moved(near), _cost()[0, 1], rtol=0.05)
    np.testing.assert_allclose(moved(far), _cost()[0, 2], rtol=0.05)
    assert moved(near) < 0.1 * moved(far)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-20, 20))
def test_invariances(seed, shift):
    s, t = reference.logits(2.0, seed)
    order = np.random.default_rng(seed).permutation(reference.B)
    value = WKD(s, t)[0]
    np.testing.assert_allclose(WKD(s[order], t[order], reference.LABELS[order])[0], value[order], rtol=1e-5)
    np.testing.assert_allclose(WKD(s + shift, t - shift)[0], value, rtol=1e-3)


def test_the_logit_of_the_target_moves_no_mass_between_the_others():
    s, t = (jnp.asarray(z, jnp.float32) for z in reference.logits(3.0))
    labels = jnp.asarray(reference.LABELS)
    moved = s.at[jnp.arange(reference.B), labels].add(7.0)
    of = jax.jit(lambda s: wkd.transport_between_others(s, t, labels, WKD.constants))
    np.testing.assert_array_equal(of(s), of(moved))


@pytest.mark.parametrize("classes", [1, 2])
def test_few_classes(classes):
    s, t = (jnp.asarray(z, jnp.float32) for z in reference.logits(3.0, shape=(4, classes)))
    cost = jnp.full((classes, classes), 0.5) * (1 - jnp.eye(classes))
    of = lambda s: wkd.transport_between_others(s, t, jnp.zeros(4, jnp.int32), cost, iterations=2).sum()
    value, grad = jax.jit(jax.value_and_grad(of))(s)
    assert value == 0
    assert not np.any(grad)


def test_a_large_cost_in_units_of_epsilon_is_finite():
    s, t = (jnp.asarray(1000 * z, jnp.float32) for z in reference.logits())
    labels, cost = jnp.asarray(reference.LABELS), jnp.asarray(_cost(), jnp.float32)
    of = lambda s: wkd.transport_between_others(s, t, labels, cost, temperature=1.0, epsilon=1e-3).sum()
    assert all(np.all(np.isfinite(x)) for x in jax.jit(jax.value_and_grad(of))(s))


def test_it_needs_the_classifier():
    shapes = Outputs(jax.ShapeDtypeStruct((4, 5), jnp.float32))
    created = term.create("wkd_l")
    assert created.init(jax.random.key(0, impl="rbg"), shapes, shapes, reference.setup()) == ({}, ())
    with pytest.raises(UserError, match="teacher's classifier"):
        created.constants(Setup(5, 100, 10))


def test_the_cost_is_that_of_the_options():
    kernel = jnp.asarray(KERNEL, jnp.float32)
    created = term.create("wkd_l", similarity="cka", sharpen=2.0)
    expected = transport.class_cost(kernel, similarity="cka", sharpen=2.0)
    np.testing.assert_array_equal(created.constants(reference.setup(KERNEL)), expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"similarity": "l2"}, "unknown similarity 'l2'; known: cosine, cka"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"others": -1.0}, "others is -1.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_wrong_options(given, said):
    with pytest.raises(UserError, match=said):
        term.create("wkd_l", **given)
