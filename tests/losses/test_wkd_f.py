import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_case import TEACHER_WIDTHS, B, check, nchw, outputs, regress
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_jax.losses import term, wkd_f

gaussian_cells = jax.jit(wkd_f.gaussian_cells, static_argnames=("grid", "ratio"))


def _cells(x, grid):
    """Means and standard deviations [b k cells] of maps [b k h w]."""
    import torch

    edges = [(i * x.shape[2] // grid, -(-(i + 1) * x.shape[2] // grid)) for i in range(grid)]
    blocks = [x[:, :, a:b, c:d].flatten(2) for a, b in edges for c, d in edges]
    std = [torch.sqrt(z.var(2) + 1e-5) for z in blocks]
    return torch.stack([z.mean(2) for z in blocks], 2), torch.stack(std, 2)


@pytest.mark.parametrize(
    ("sides", "grid", "stage"),
    [((8, 8, 4, 2), 1, -1), ((8, 8, 4, 2), 2, 1), ((8, 8, 4, 2), 3, 1), ((8, 4, 2, 1), 1, -1), ((8, 16, 8, 4), 4, 1)],
)
def test_wkd_f(sides, grid, stage):
    pytest.importorskip("torch")
    student, teacher = outputs(0, sides), outputs(1, widths=TEACHER_WIDTHS)

    def reference(heads, student, teacher):
        x, y = nchw(student["features"][stage]), nchw(teacher["features"][stage])
        x = regress(x, heads["regressor"], y.shape[2])
        (mean_s, std_s), (mean_t, std_t) = _cells(x, grid), _cells(y, grid)
        distance = 3.0 * (mean_s - mean_t) ** 2 + (std_s - std_t) ** 2
        return distance.sum((1, 2)) / grid**2

    grads = check(term.create("wkd_f", stage=stage, grid=grid, ratio=3.0), reference, student, teacher)
    assert np.any(grads[0]["regressor"]["norm"]["scale"])


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_closed_form_and_equality(grid):
    y = outputs(1, (4,), (6,), relu=False).features[0]
    shift = jnp.arange(6.0)[None, None, None]
    np.testing.assert_allclose(gaussian_cells(y + shift, y, grid=grid, ratio=2.0), np.full(B, 2 * 55.0), rtol=1e-5)
    std = np.float64(y).reshape(B, 16, 6).std(1, ddof=1)
    if grid == 1:
        mean = np.float64(y).mean((1, 2))
        expected = np.sum(mean**2 + std**2, axis=1)
        np.testing.assert_allclose(gaussian_cells(2 * y, y), expected, rtol=1e-3)  # but for the epsilon
    value, grad = jax.value_and_grad(lambda x: gaussian_cells(x, y, grid=grid).sum())(y)
    assert value == 0
    assert not np.any(grad)


def test_single_positions_constants_extremes_and_bfloat16():
    y = outputs(1, (4,), (6,)).features[0]
    # Cells of one position: the mean is the value, and nothing spreads.
    np.testing.assert_allclose(gaussian_cells(y, 0 * y, grid=9), np.float64(y**2).sum((1, 2, 3)) / 16, rtol=1e-5)
    step = jax.jit(jax.value_and_grad(lambda x: wkd_f.gaussian_cells(x, y, grid=4).sum()))
    for student in (jnp.ones((B, 2, 2, 6)), 1000 * y, 0 * y, y.astype(jnp.bfloat16)):
        value, grad = step(student)
        assert value.dtype == jnp.float32
        assert np.isfinite(value)
        assert np.all(np.isfinite(grad.astype(jnp.float32)))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-10, 10), grid=st.sampled_from([1, 2]))
def test_identities_of_the_distance(seed, shift, grid):
    rng = np.random.default_rng(seed)
    x, y = (jnp.asarray(v, jnp.float32) for v in rng.normal(size=(2, B, 4, 4, 3)))
    of = lambda x, y: gaussian_cells(x, y, grid=grid, ratio=2.0)
    value = of(x, y)
    assert np.all(value > 0)
    np.testing.assert_allclose(of(y, x), value, rtol=1e-6)
    order, channels = rng.permutation(B), rng.permutation(3)
    np.testing.assert_allclose(of(x[order][..., channels], y[order][..., channels]), value[order], rtol=1e-5)
    np.testing.assert_allclose(of(x + shift, y + shift), value, rtol=1e-4)
    # Within a cell the places do not matter, nor which of the cells of both are compared first.
    cells = x.reshape(B, grid, 4 // grid, grid, 4 // grid, 3)
    np.testing.assert_allclose(of(cells[:, :, ::-1, :, ::-1].reshape(x.shape), y), value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of(x[:, ::-1].swapaxes(1, 2), y[:, ::-1].swapaxes(1, 2)), value, rtol=1e-5)
    assert not np.any(of(x, x))
    assert not np.any(jax.grad(lambda v: of(v, x).sum())(x))
