import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_case import TEACHER_WIDTHS, check, heads_of, nchw, outputs, regress, shrink, values
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_jax.losses import feature, heads, term

mean_square = jax.jit(feature.mean_square)
attention_transfer, neuron_selectivity = jax.jit(feature.attention_transfer), jax.jit(feature.neuron_selectivity)
PAIRED = (feature.mean_square, attention_transfer, neuron_selectivity)

# sides of the student's maps against the teacher's 8, 8, 4, 2: equal, half, twice, and neither
SIDES = {"equal": (8, 8, 4, 2), "half": (8, 4, 2, 1), "twice": (16, 16, 8, 4), "other": (12, 3, 3, 3)}


def _pair(sides):
    return outputs(0, SIDES[sides]), outputs(1, widths=TEACHER_WIDTHS)


@pytest.mark.parametrize("sides", SIDES)
def test_fitnet(sides):
    pytest.importorskip("torch")
    student, teacher = _pair(sides)

    def reference(heads, student, teacher):
        x, y = nchw(student["features"][2]), nchw(teacher["features"][2])
        x, y = shrink(regress(x, heads["regressor"], y.shape[2]), y)
        return ((x - y) ** 2).mean((1, 2, 3))

    grads = check(term.create("fitnet"), reference, student, teacher)
    assert np.any(grads[0]["regressor"]["kernel"])


@pytest.mark.parametrize(("sides", "power"), [("equal", 2), ("half", 2), ("twice", 2), ("other", 3)])
def test_attention_transfer(sides, power):
    torch = pytest.importorskip("torch")
    student, teacher = _pair(sides)

    def reference(heads, student, teacher):
        value = 0
        for x, y in zip(student["features"][1:], teacher["features"][1:], strict=True):
            x, y = shrink(nchw(x), nchw(y))
            x, y = (torch.nn.functional.normalize(z.abs().pow(power).mean(1).flatten(1)) for z in (x, y))
            value = value + ((x - y) ** 2).mean(1)
        return value

    check(term.create("at", power=power), reference, student, teacher)


@pytest.mark.parametrize("sides", SIDES)
def test_neuron_selectivity(sides):
    torch = pytest.importorskip("torch")
    student, teacher = _pair(sides)

    def kernel(a, b):
        return ((a[:, :, None] * b[:, None]).sum(-1) ** 2).mean((1, 2))

    def reference(heads, student, teacher):
        value = 0
        for x, y in zip(student["features"][1:], teacher["features"][1:], strict=True):
            x, y = shrink(nchw(x), nchw(y))
            x, y = (torch.nn.functional.normalize(z.flatten(2), dim=2) for z in (x, y))
            value = value + kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
        return value

    check(term.create("nst"), reference, student, teacher)


@pytest.mark.parametrize("name", ["at", "nst"])
def test_stages_are_chosen(name):
    student, teacher = outputs(0, (2,) * 4, (4,) * 4), outputs(1, (2,) * 4, (4,) * 4)
    one = {stage: values(term.create(name, stages=(stage,)), {}, student, teacher) for stage in (1, 2, 3)}
    np.testing.assert_allclose(values(term.create(name), {}, student, teacher), sum(one.values()), rtol=1e-5)
    both = values(term.create(name, stages=[-1, 1]), {}, student, teacher)
    np.testing.assert_allclose(both, one[1] + one[3], rtol=1e-5)


@pytest.mark.parametrize("compare", PAIRED)
@pytest.mark.parametrize("side", [4, 2])  # products of channels, and of positions
def test_zero_with_its_derivative_at_equality(compare, side):
    x = outputs(0, (side,), (6,)).features[0]
    value, grad = jax.value_and_grad(lambda x, y: compare(x, y).sum())(x, x)
    assert np.abs(value) < 1e-6
    assert np.abs(grad).max() < 1e-6


@pytest.mark.parametrize("compare", PAIRED)
@pytest.mark.parametrize("side", [4, 2])
def test_zeros_extremes_and_bfloat16(compare, side):
    x, y = outputs(0, (side,), (6,)).features[0], outputs(1, (side,), (6,)).features[0]
    empty = x.at[0].set(0).at[1, :, :, 2].set(0)
    for student in (empty, 1000 * x, 1e-6 * x, x.astype(jnp.bfloat16)):
        value, grad = jax.value_and_grad(lambda x: compare(x, y).sum())(student)
        assert value.dtype == jnp.float32
        assert np.isfinite(value)
        assert np.all(np.isfinite(grad.astype(jnp.float32)))
    exact = compare(x.astype(jnp.bfloat16).astype(jnp.float32), y)
    np.testing.assert_allclose(compare(x.astype(jnp.bfloat16), y), exact, rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 1000), side=st.sampled_from([4, 2]))
def test_scale_of_features_and_order_of_channels_do_not_matter(seed, scale, side):
    rng = np.random.default_rng(seed)
    x, y = (jnp.asarray(rng.normal(size=(4, side, side, 6)), jnp.float32) for _ in range(2))
    shuffled = scale * x[..., rng.permutation(6)]
    for compare in (attention_transfer, neuron_selectivity):
        np.testing.assert_allclose(compare(shuffled, y), compare(x, y), rtol=1e-4, atol=1e-6)
    each = jnp.asarray(rng.uniform(0.1, 10, size=6), jnp.float32)[None, None, None]
    np.testing.assert_allclose(neuron_selectivity(each * x, y), neuron_selectivity(x, y), rtol=1e-4, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), shift=st.floats(-10, 10), scale=st.floats(0.01, 100))
def test_identities_of_the_mean_square(seed, shift, scale):
    rng = np.random.default_rng(seed)
    x, y = (jnp.asarray(v, jnp.float32) for v in rng.normal(size=(2, 4, 2, 2, 6)))
    value = mean_square(x, y)
    np.testing.assert_allclose(mean_square(y, x), value, rtol=1e-6)
    order, channels = rng.permutation(4), rng.permutation(6)
    turned = (z[order][:, ::-1][..., channels] for z in (x, y))
    np.testing.assert_allclose(mean_square(*turned), value[order], rtol=1e-5)
    np.testing.assert_allclose(mean_square(x + shift, y + shift), value, rtol=1e-4)
    np.testing.assert_allclose(mean_square(scale * x, scale * y), scale**2 * value, rtol=1e-5)
    assert not np.any(mean_square(x, x))
    assert not np.any(jax.grad(lambda v: mean_square(v, x).sum())(x))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), sides=st.sampled_from(["equal", "half"]))
def test_fitnet_is_zero_for_a_teacher_that_the_regressor_hits(seed, sides):
    student, teacher = outputs(seed, SIDES[sides]), outputs(seed + 1000, widths=TEACHER_WIDTHS)
    created, of = _fitnet(sides)
    learned = heads_of(created, student, teacher)
    hint = heads.regressor(SIDES[sides][2], 4).apply(learned["regressor"], student.features[2])
    hit = teacher._replace(features=(*teacher.features[:2], hint, *teacher.features[3:]))
    assert np.all(of(learned, student, teacher) > 0.01)
    assert np.abs(of(learned, student, hit)).max() < 1e-10


@functools.cache
def _fitnet(sides):
    created = term.create("fitnet")
    return created, jax.jit(lambda learned, student, teacher: values(created, learned, student, teacher))


def test_both_forms_of_selectivity_agree():
    # One more position of zeros makes five of four: the other form, of the same value.
    x, y = outputs(0, (2,), (4,)).features[0], outputs(1, (2,), (4,)).features[0]
    x, y = (z.reshape(4, 1, 4, 4) for z in (x, y))
    wide = [jnp.pad(z, ((0, 0), (0, 0), (0, 1), (0, 0))) for z in (x, y)]
    np.testing.assert_allclose(neuron_selectivity(*wide), neuron_selectivity(x, y), rtol=1e-5)
