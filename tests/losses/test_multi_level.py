import jax
import jax.numpy as jnp
import numpy as np
import numpy_logit as reference
import pytest
from differences import central_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from gkd_jax.errors import UserError
from gkd_jax.losses import multi_level, term

OPTIONS = {"others": (2.0, 3.0, 5.0, 6.0), "instance": 0.5, "batch": 3.0, "classes": 2.0}
MLKD = reference.Compiled("mlkd", temperature=lambda step: 1.0 + step, **OPTIONS)  # 4 at step 3
HALVED = reference.Compiled("mlkd", standardize=True, halve=True, **OPTIONS)


def _levels(s, t, temperatures, standardize=False):
    """The three levels, entry by entry."""
    instance = examples = classes = 0.0
    for T in temperatures:
        q, p = softmax(s / T, axis=1), softmax(t / T, axis=1)
        b, c = q.shape
        for i in range(b):
            for j in range(b):
                examples += (q[i] @ q[j] - p[i] @ p[j]) ** 2 / b
        for i in range(c):
            for j in range(c):
                classes += (q[:, i] @ q[:, j] - p[:, i] @ p[:, j]) ** 2 / c
        if standardize:
            z = [(x - x.mean(1, keepdims=True)) / (1e-7 + x.std(1, ddof=1, keepdims=True)) for x in (s, t)]
            q, p = softmax(z[0] / T, axis=1), softmax(z[1] / T, axis=1)
        instance += T**2 * np.mean(np.sum(p * np.log(p / q), axis=1))
    return instance, examples, classes


def _shares(t):
    p = softmax(t, axis=1)
    sums = p.max(1), p.sum(0)
    return [np.mean(x <= np.percentile(x, 50)) for x in sums]


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_value_and_gradient(scale):
    s, t = reference.logits(scale)

    def exact(s):
        instance, examples, classes = _levels(s, t, (4, 2, 3, 5, 6))
        return 0.5 * instance + 3 * examples + 2 * classes

    value, grad, *_ = MLKD(s, t)
    np.testing.assert_allclose(value, exact(s), rtol=2e-5)
    np.testing.assert_allclose(grad, central_gradient(exact, s), rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_standardised_and_halved(scale):
    s, t = reference.logits(scale)

    def exact(s):
        (of_examples, of_classes), (instance, examples, classes) = _shares(t), _levels(s, t, (4, 2, 3, 5, 6), True)
        return of_examples * (0.5 * instance + 3 * examples) + of_classes * 2 * classes

    assert _shares(t) == [0.5, 0.6]
    value, grad, *_ = HALVED(s, t)
    np.testing.assert_allclose(value, exact(s), rtol=2e-5)
    np.testing.assert_allclose(grad, central_gradient(exact, s), rtol=1e-3, atol=2e-6)


def test_the_published_code_of_the_weak_view_in_torch():
    torch = pytest.importorskip("torch")
    s, t = reference.logits(3.0)
    z, zt = torch.tensor(s, requires_grad=True), torch.tensor(t)
    confidence, mass = torch.softmax(zt, 1).max(1).values, torch.softmax(zt, 1).sum(0)
    mask, of_class = (x.le(float(np.percentile(x.numpy(), 50))) for x in (confidence, mass))
    total = torch.zeros((), dtype=torch.float64)
    for T in (4.0, 3.0, 5.0, 2.0, 6.0):
        q, p = torch.softmax(z / T, 1), torch.softmax(zt / T, 1)
        alone = torch.nn.functional.kl_div(torch.log_softmax(z / T, 1), p, reduction="none").sum(1).mean() * T**2
        pairs = ((p @ p.T - q @ q.T) ** 2).sum() / len(s)
        between = ((p.T @ p - q.T @ q) ** 2).sum() / s.shape[1]
        total = total + ((alone + pairs) * mask).mean() + (between * of_class).mean()
    total.backward()
    value, grad, *_ = reference.Compiled("mlkd", halve=True)(s, t)
    np.testing.assert_allclose(value, total.item(), rtol=2e-5)
    np.testing.assert_allclose(grad, z.grad, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("compiled", [MLKD, HALVED], ids=["schedule", "halved"])
def test_any_batch(compiled):
    reference.check_common(compiled, ())
    s, _ = reference.logits(5.0)
    value, grad, *_ = compiled(s, s)
    assert abs(value) < 1e-4
    assert np.abs(grad).max() < 1e-5


def test_levels_by_themselves():
    s, t = reference.logits(3.0)
    found = multi_level.gram_distances(*(jnp.asarray(softmax(z, axis=1), jnp.float32) for z in (s, t)))
    np.testing.assert_allclose(found, _levels(s, t, (1,))[1:], rtol=1e-5)
    base = _levels(s, t, (4,))
    for i, level in enumerate(("instance", "batch", "classes")):
        weights = {"instance": 0.0, "batch": 0.0, "classes": 0.0, level: 1.0}
        alone = jax.jit(lambda s, t, w=weights: multi_level.mlkd(s, t, jnp.asarray([4.0]), **w))
        np.testing.assert_allclose(alone(*(jnp.asarray(z, jnp.float32) for z in (s, t))), base[i], rtol=2e-5)


def test_no_other_temperatures():
    s, t = reference.logits(3.0)
    value = reference.Compiled("mlkd", others=(), batch=0.0, classes=0.0, temperature=2.5)(s, t)[0]
    np.testing.assert_allclose(value, _levels(s, t, (2.5,))[0], rtol=2e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-20, 20))
def test_invariances(seed, shift):
    s, t = reference.logits(2.0, seed)
    rng = np.random.default_rng(seed)
    order, classes = rng.permutation(reference.B), rng.permutation(reference.CLASSES)
    for compiled in (MLKD, HALVED):
        value = compiled(s, t)[0]
        np.testing.assert_allclose(compiled(s[order], t[order])[0], value, rtol=1e-5)
        np.testing.assert_allclose(compiled(s[:, classes], t[:, classes])[0], value, rtol=1e-5)
        np.testing.assert_allclose(compiled(s + shift, t - shift)[0], value, rtol=1e-3)
        assert value > 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"others": (2.0, 0.0)}, "others is 0.0; allowed: a positive number"),
        ({"temperature": -2.0}, "temperature is -2.0"),
        ({"batch": -1.0}, "batch is -1.0; allowed: 0 or more"),
    ],
)
def test_wrong_options(given, said):
    with pytest.raises(UserError, match=said):
        term.create("mlkd", **given)
