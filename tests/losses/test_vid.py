import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_case import KEY, SETUP, TEACHER_WIDTHS, check, conv, nchw, outputs, shrink

from gkd_jax.losses import term, vid


@pytest.mark.parametrize("sides", [(8, 8, 4, 2), (8, 4, 2, 1), (16, 16, 8, 4)])
def test_vid(sides):
    torch = pytest.importorskip("torch")
    student, teacher = outputs(0, sides), outputs(1, widths=TEACHER_WIDTHS)

    def reference(heads, student, teacher):
        value = 0
        for i in range(3):
            x, y = shrink(nchw(student["features"][1 + i]), nchw(teacher["features"][1 + i]))
            layers = heads[f"pair{i}"]["regressor"]
            x = torch.relu(conv(x, layers["block0"]))
            x = conv(torch.relu(conv(x, layers["block1"])), layers["block2"])
            variance = torch.log(1 + torch.exp(heads[f"pair{i}"]["raw_variance"])) + 1e-5
            variance = variance.view(1, -1, 1, 1)
            value = value + (0.5 * ((x - y) ** 2 / variance + torch.log(variance))).mean((1, 2, 3))
        return value

    grads = check(term.create("vid"), reference, student, teacher)
    assert all(np.any(grads[0][f"pair{i}"]["raw_variance"]) for i in range(3))


@pytest.mark.parametrize("start", [5.0, 0.01, 200.0])
def test_variances_start_where_they_are_told(start):
    student, teacher = outputs(0), outputs(1, widths=TEACHER_WIDTHS)
    heads, _ = term.create("vid", init_variance=start, stages=(3,)).init(KEY, student, teacher, SETUP)
    raw = heads["pair0"]["raw_variance"]
    assert raw.shape == (6,)
    np.testing.assert_allclose(jax.nn.softplus(raw) + 1e-5, np.full(6, start), rtol=1e-5)


def test_likelihood_is_scipys_and_finite_at_extremes():
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    mean, teacher, raw = rng.normal(size=(4, 2, 2, 3)), rng.normal(size=(4, 2, 2, 3)), rng.normal(size=3)
    expected = -norm.logpdf(teacher, mean, np.sqrt(np.logaddexp(0, raw) + 1e-5)).mean((1, 2, 3)) - np.log(2 * np.pi) / 2
    as_jax = lambda *arrays: (jnp.asarray(x, jnp.float32) for x in arrays)
    np.testing.assert_allclose(vid.negative_log_likelihood(*as_jax(mean, raw, teacher)), expected, rtol=1e-5)
    value, grads = jax.value_and_grad(lambda m, r, t: vid.negative_log_likelihood(m, r, t).sum(), (0, 1))(
        *as_jax(1000 * mean, [-1000, 0, 1000], teacher)
    )
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in grads)
