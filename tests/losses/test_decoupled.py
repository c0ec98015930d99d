import jax
import jax.numpy as jnp
import numpy as np
import numpy_logit as reference
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from gkd_jax.errors import UserError
from gkd_jax.losses import decoupled, logit, term

LABELS = jnp.asarray(reference.LABELS)
DKD = reference.Compiled("dkd", alpha=1.5, beta=6.0, temperature=lambda step: 1.0 + step)  # 4 at step 3
PLAIN = reference.Compiled("dkd", beta=2.0, standardize=True, temperature=2.0)
target_kd, nontarget_kd = jax.jit(decoupled.target_kd), jax.jit(decoupled.nontarget_kd)

# Of T^2 KL in float32, at T = 4: the logarithms round to 1e-7, and their differences cancel.
ROUNDING = 16 * 2e-7


def _parts(s, t, labels, temperature):
    """Equations 2 to 6 of the paper, example by example, on the classes that are left."""
    target, others = [], []
    for zs, zt, y in zip(s / temperature, t / temperature, labels, strict=True):
        kl = []
        for i in ([y], [k for k in range(len(zs)) if k != y]):
            kl.append([z[i] - logsumexp(z) for z in (zs, zt)])
        (qy, py), (q, p) = kl
        binary = [(np.exp(lp) * (lp - lq)) for lp, lq in ((py[0], qy[0]), (logsumexp(p), logsumexp(q)))]
        target.append(temperature**2 * sum(binary))
        q, p = q - logsumexp(q), p - logsumexp(p)
        others.append(temperature**2 * np.sum(np.exp(p) * (p - q)))
    return np.array(target), np.array(others)


def _float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0])
def test_value_and_gradient(scale):
    s, t = reference.logits(scale)

    def exact(s):
        target, others = _parts(s, t, reference.LABELS, 4.0)
        return 1.5 * target + 6 * others

    value, grad, *_ = DKD(s, t)
    np.testing.assert_allclose(value, exact(s), rtol=2e-5, atol=7.5 * ROUNDING)
    np.testing.assert_allclose(grad, central_gradient(lambda s: exact(s).sum(), s), rtol=1e-4, atol=2e-5)


def test_standardised_value_and_gradient():
    s, t = reference.logits(10.0)

    def exact(s):
        z = [(x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-7) for x in (s, t)]
        target, others = _parts(*z, reference.LABELS, 2.0)
        return target + 2 * others

    value, grad, *_ = PLAIN(s, t)
    np.testing.assert_allclose(value, exact(s), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(grad, central_gradient(lambda s: exact(s).sum(), s), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("compiled", [DKD, PLAIN], ids=["schedule", "standardised"])
def test_any_batch(compiled):
    reference.check_common(compiled, (reference.B,))
    s, _ = reference.logits(5.0)
    for labels in (reference.LABELS, reference.SINGLE):
        value, grad, *_ = compiled(s, s, labels)
        assert np.abs(value).max() < 7.5 * ROUNDING
        assert np.abs(grad).max() < 1e-5


def test_the_published_code_in_torch():
    torch = pytest.importorskip("torch")
    s, t = reference.logits(3.0)
    z, label = torch.tensor(s, requires_grad=True), torch.tensor(reference.LABELS)
    hot = torch.nn.functional.one_hot(label, reference.CLASSES).double()
    q, p = torch.softmax(z / 4, 1), torch.softmax(torch.tensor(t) / 4, 1)
    of_target = [torch.stack([(x * hot).sum(1), (x * (1 - hot)).sum(1)], 1) for x in (q, p)]
    first = torch.nn.functional.kl_div(of_target[0].log(), of_target[1], reduction="none").sum(1)
    left = [torch.log_softmax(x / 4 - 1000 * hot, 1) for x in (z, torch.tensor(t))]
    second = torch.nn.functional.kl_div(left[0], left[1].exp(), reduction="none").sum(1)
    expected = 16 * (1.5 * first + 6 * second)
    expected.sum().backward()
    value, grad, *_ = DKD(s, t)
    np.testing.assert_allclose(value, expected.detach(), rtol=2e-5, atol=7.5 * ROUNDING)
    np.testing.assert_allclose(grad, z.grad, rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10))
def test_the_parts_add_up_to_kd(seed, scale):
    s, t = _float32(*reference.logits(scale, seed))
    with_teacher = jax.nn.softmax(t / 4)[np.arange(reference.B), LABELS]
    total = target_kd(s, t, LABELS) + (1 - with_teacher) * nontarget_kd(s, t, LABELS)
    np.testing.assert_allclose(total, logit.kd(s, t), rtol=1e-4, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-20, 20))
def test_invariances(seed, shift):
    s, t = reference.logits(2.0, seed)
    order = np.random.default_rng(seed).permutation(reference.B)
    value = DKD(s, t)[0]
    np.testing.assert_allclose(DKD(s[order], t[order], reference.LABELS[order])[0], value[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(DKD(s + shift, t - shift)[0], value, rtol=1e-4, atol=1e-4)
    moved = s.copy()
    moved[np.arange(reference.B), reference.LABELS] += shift
    np.testing.assert_allclose(
        nontarget_kd(*_float32(moved, t), LABELS), nontarget_kd(*_float32(s, t), LABELS), rtol=1e-5, atol=1e-6
    )


def test_the_parts_alone():
    s, t = reference.logits()
    args = *_float32(s, t), LABELS
    both = {"temperature": 4.0}
    only = reference.Compiled("dkd", alpha=1.0, beta=0.0, **both)(s, t)[0]
    rest = reference.Compiled("dkd", alpha=0.0, beta=1.0, **both)(s, t)[0]
    np.testing.assert_allclose(only, target_kd(*args), rtol=1e-5, atol=ROUNDING)
    np.testing.assert_allclose(rest, nontarget_kd(*args), rtol=1e-5, atol=ROUNDING)


@pytest.mark.parametrize("classes", [1, 2])
def test_few_classes(classes):
    s, t = _float32(*reference.logits(3.0, shape=(4, classes)))
    labels = jnp.zeros(4, jnp.int32)

    @jax.jit
    def all_of(s):
        parts = decoupled.nontarget_kd(s, t, labels), decoupled.target_kd(s, t, labels)
        return sum(part.sum() for part in parts), (*parts, logit.kd(s, t))

    grad, (others, target, whole) = jax.grad(all_of, has_aux=True)(s)
    assert np.all(np.isfinite(grad))
    np.testing.assert_allclose(others, np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(target, whole, rtol=1e-4, atol=ROUNDING)


def test_a_confident_teacher_without_cancellation():
    # 1 - p is e^-60 here, and 0 as a difference.
    z = np.array([[60.0, 0, -1, -2, -3]])
    s, t = _float32(z, z + np.array([[10.0, 0, 0, 0, 0]]))
    expected, _ = _parts(np.float64(s), np.float64(t), [0], 1.0)
    found = decoupled.target_kd(t, s, jnp.array([0]), 1.0)
    np.testing.assert_allclose(found, _parts(np.float64(t), np.float64(s), [0], 1.0)[0], rtol=1e-4, atol=0)
    assert expected < 1e-20


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"alpha": -1.0}, "alpha is -1.0; allowed: 0 or more"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_wrong_options(given, said):
    with pytest.raises(UserError, match=said):
        term.create("dkd", **given)
