import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_case import KEY, SETUP, TEACHER_WIDTHS, B, batch_norm, check, conv, nchw, outputs, shrink
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import log_ndtr
from scipy.stats import norm

from gkd_jax.errors import UserError
from gkd_jax.losses import overhaul, term

margin, partial_distance = jax.jit(overhaul.margin), jax.jit(overhaul.partial_distance)


def _norms(widths=TEACHER_WIDTHS):
    rng = np.random.default_rng(3)
    array = lambda width: jnp.asarray(rng.normal(size=width), jnp.float32)
    return (None, *((array(width), array(width)) for width in widths[1:]))  # the stem's is not asked for


def test_margin_is_the_mean_of_the_negative_part():
    scale, bias = np.array([1.0, -0.5, 2.0, 0.3]), np.array([0.2, -1.0, 3.0, 0.0])

    def mean(s, b):
        density = lambda x: norm.pdf(x, b, abs(s))
        return quad(lambda x: x * density(x), -20, 0)[0] / quad(density, -20, 0)[0]

    expected = [mean(s, b) for s, b in zip(scale, bias, strict=True)]
    found = margin(jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_margin_far_out():
    ratio = np.array([-50, -10, -2, 0, 1, 1.99, 2, 2.01, 3, 5, 8], np.float32)
    exact = np.float64(ratio) - np.exp(norm.logpdf(np.float64(ratio)) - log_ndtr(-np.float64(ratio)))
    np.testing.assert_allclose(margin(jnp.full(11, 0.5), jnp.asarray(0.5 * ratio)), 0.5 * exact, rtol=2e-6)
    ratio = np.array([30, 1e3, 1e8])
    np.testing.assert_allclose(margin(jnp.ones(3), jnp.asarray(ratio, jnp.float32)), -1 / ratio, rtol=3e-3)
    found = margin(jnp.zeros(3), jnp.asarray([-2.0, 0.0, 2.0]))  # a constant channel
    np.testing.assert_allclose(found, [-2, 0, 0], atol=1e-10)


def _partial(x, y, margins):
    """The published sum of three cases; maps are [b k h w]."""
    m = margins.view(1, -1, 1, 1)
    cases = (x - m) ** 2 * ((x > m) & (y <= m))
    cases = cases + (x - y) ** 2 * ((x > y) & (y > m) & (y <= 0))
    return (cases + (x - y) ** 2 * (y > 0)).sum((1, 2, 3))


@pytest.mark.parametrize("sides", [(8, 8, 4, 2), (8, 4, 2, 1), (8, 8, 8, 4, 2), (4, 2)])
def test_overhaul(sides):
    torch = pytest.importorskip("torch")
    student, teacher = outputs(0, sides, (2, 3, 4, 6, 5)[-len(sides) :]), outputs(1, widths=TEACHER_WIDTHS)
    norms = _norms()
    margins = [None] + [
        torch.tensor(b - np.abs(s) * norm.pdf(b / np.abs(s)) / norm.cdf(-b / np.abs(s)))
        for s, b in (np.float64(pair) for pair in norms[1:])
    ]

    def reference(heads, student, teacher):
        count, value = min(len(sides), 4) - 1, 0
        for i in range(count):
            x, y = shrink(nchw(student["preact"][i - count]), nchw(teacher["preact"][i - count]))
            x = batch_norm(conv(x, heads[f"pair{i}"]), heads[f"pair{i}"])
            value = value + _partial(x, y, margins[i - count]) / 2 ** (count - i - 1)
        return value

    check(term.create("ofd"), reference, student, teacher, setup=SETUP._replace(teacher_norms=norms))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_what_the_relu_hides_is_left_alone(seed):
    rng = np.random.default_rng(seed)
    y = jnp.asarray(rng.normal(size=(B, 2, 2, 3)), jnp.float32)
    margins = -jnp.asarray(rng.uniform(0.1, 1, size=3), jnp.float32)
    free = (y <= 0) * jnp.asarray(rng.exponential(size=y.shape), jnp.float32)
    student = jnp.where(y > 0, y, jnp.maximum(y, margins[None, None, None])) - free
    value, grad = jax.value_and_grad(lambda x: partial_distance(x, y, margins).sum())(student)
    assert value == 0
    assert not np.any(grad)
    assert np.all(partial_distance(student + 0.1, y, margins) > 0)


def test_bfloat16_and_extremes():
    x, y = outputs(0).preact[1], outputs(1).preact[1]
    for student in (x.astype(jnp.bfloat16), 1000 * x, 0 * x):
        found, grad = jax.value_and_grad(lambda x: partial_distance(x, y, jnp.full(4, -0.5)).sum())(student)
        assert found.dtype == jnp.float32
        assert np.isfinite(found)
        assert np.all(np.isfinite(grad.astype(jnp.float32)))


def test_teachers_without_norms_are_told():
    both, created = outputs(0, widths=TEACHER_WIDTHS), term.create("ofd")
    with pytest.raises(UserError, match="teacher's network does not say"):
        created.constants(SETUP)
    with pytest.raises(UserError, match="teacher's network does not say"):
        created.init(KEY, both, both, SETUP)
    norms = _norms()
    some = SETUP._replace(teacher_norms=(*norms[:2], None, norms[3]))
    with pytest.raises(UserError, match="none for stage 2 of 0 to 3"):
        created.init(KEY, both, both, some)
