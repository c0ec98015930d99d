import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_case import TEACHER_WIDTHS, B, batch_norm, check, conv, heads_of, nchw, outputs
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_jax.losses import review, term

hierarchical_context = jax.jit(review.hierarchical_context)


def _context(x, y):
    from torch.nn.functional import adaptive_avg_pool2d

    value, weight, total = ((x - y) ** 2).mean((1, 2, 3)), 1.0, 1.0
    for side in (4, 2, 1):
        if side < x.shape[2]:
            weight = weight / 2
            pooled = adaptive_avg_pool2d(x, (side, side)) - adaptive_avg_pool2d(y, (side, side))
            value = value + weight * (pooled**2).mean((1, 2, 3))
            total += weight
    return value / total


def _reference(heads, student, teacher):
    import torch
    from torch.nn.functional import interpolate

    x = [nchw(z) for z in student["features"][1:]] + [student["embedding"][:, :, None, None]]
    y = [nchw(z) for z in teacher["preact"][1:]] + [teacher["embedding"][:, :, None, None]]
    x = x[-len(y) :]
    y = y[-len(x) :]
    value, carried = 0, None
    for i in range(len(x) - 1, -1, -1):
        head = heads[f"level{i}"]
        z = batch_norm(conv(x[i], head["enter"]), head["enter"])
        if carried is not None:
            carried = interpolate(carried, z.shape[2:], mode="nearest")
            weights = torch.sigmoid(conv(torch.cat([z, carried], dim=1), head["attention"]))
            z = z * weights[:, :1] + carried * weights[:, 1:]
        carried = interpolate(z, y[i].shape[2:], mode="nearest")
        value = value + _context(batch_norm(conv(carried, head["leave"], padding=1), head["leave"]), y[i])
    return value


@pytest.mark.parametrize(
    ("sides", "widths"),
    [
        ((8, 4, 2, 1), (3, 4, 6, 5)),  # half, as ShuffleNets beside ResNets
        ((8, 8, 8, 4, 2), (3, 3, 4, 6, 5)),  # a stage more
    ],
)
def test_review(sides, widths):
    pytest.importorskip("torch")
    student, teacher = outputs(0, sides, widths), outputs(1, widths=TEACHER_WIDTHS)
    grads = check(term.create("reviewkd"), _reference, student, teacher, rtol=1e-4, atol=1e-5)
    assert all(np.any(grads[0][f"level{i}"]["attention"]["bias"]) for i in range(3))
    assert "attention" not in grads[0]["level3"]


@pytest.mark.parametrize("max_width", [512, 5])
def test_width_between(max_width):
    student, teacher = outputs(0), outputs(1, widths=TEACHER_WIDTHS)
    heads = heads_of(term.create("reviewkd", max_width=max_width), student, teacher)
    between = min(max_width, 7)  # the student's embedding
    assert heads["level0"]["enter"]["kernel"].shape == (4, between)
    assert heads["level0"]["attention"]["kernel"].shape == (2 * between, 2)
    assert heads["level0"]["leave"]["kernel"].shape == (3, 3, between, 5)
    assert heads["level3"]["leave"]["kernel"].shape == (3, 3, between, 8)


def test_context_by_resolution():
    x = jnp.zeros((4, 8, 8, 3))
    detail = jnp.asarray(np.indices((8, 8)).sum(0) % 2 * 2 - 1, jnp.float32)[None, :, :, None]
    found = hierarchical_context(x, jnp.broadcast_to(detail, x.shape))
    np.testing.assert_allclose(found, np.full(4, 1 / 1.875), rtol=1e-6)  # seen at the finest resolution alone
    np.testing.assert_allclose(hierarchical_context(x, x + 3), np.full(4, 9.0), rtol=1e-6)
    np.testing.assert_allclose(hierarchical_context(x[:, :1, :1], x[:, :1, :1] + 3), np.full(4, 9.0), rtol=1e-6)
    value, grad = jax.value_and_grad(lambda s: hierarchical_context(s, s + 0).sum())(x + 2)
    assert value == 0
    assert not np.any(grad)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-10, 10), scale=st.floats(0.01, 100))
def test_identities_of_the_context(seed, shift, scale):
    rng = np.random.default_rng(seed)
    x, y = (jnp.asarray(v, jnp.float32) for v in rng.normal(size=(2, B, 8, 8, 3)))
    value = hierarchical_context(x, y)
    assert np.all(value > 0)
    np.testing.assert_allclose(hierarchical_context(y, x), value, rtol=1e-6)
    order, channels = rng.permutation(B), rng.permutation(3)
    np.testing.assert_allclose(hierarchical_context(x[order], y[order]), value[order], rtol=1e-5)
    turned = (v[:, ::-1, :, channels].swapaxes(1, 2) for v in (x, y))  # windows of equal size are turned into others
    np.testing.assert_allclose(hierarchical_context(*turned), value, rtol=1e-5)
    np.testing.assert_allclose(hierarchical_context(x + shift, y + shift), value, rtol=1e-4)
    np.testing.assert_allclose(hierarchical_context(scale * x, scale * y), scale**2 * value, rtol=1e-5)
    assert not np.any(hierarchical_context(x, x))
    assert not np.any(jax.grad(lambda v: hierarchical_context(v, x).sum())(x))
