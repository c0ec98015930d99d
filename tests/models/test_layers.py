import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.test_util import check_grads

from gkd_jax.models.layers import BatchNorm, Compute, Conv, Taps


def test_conv_starts_with_the_variance_of_he(key):
    kernel = Conv(64, groups=4).init(key, jnp.zeros((1, 1, 1, 64)))["params"]["kernel"]
    assert kernel.shape == (3, 3, 16, 64)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.03)
    assert np.abs(kernel).max() > 3 * kernel.std()  # normal rather than uniform


@pytest.fixture(scope="module", params=["matmul", "cpu"])
def form(request):
    """In the first the statistics are one pass, in the second two."""
    return request.param


@pytest.fixture(scope="module")
def normed(form):
    """Images, variables, and BatchNorm's train mode."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(2, 3, (3, 2, 2, 4)), jnp.float32)
    scale, bias, mean = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    var = jnp.asarray(rng.uniform(1, 2, 4), jnp.float32)
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
    return x, variables, in_training(Compute(conv=form))


def in_training(compute):
    return functools.partial(BatchNorm(compute).apply, train=True, mutable=["batch_stats"])


def affine(variables, x, mean, var):
    p = jax.tree.map(np.asarray, variables["params"])
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def test_batch_norm_in_training(normed):
    x, variables, apply = normed
    y, updated = jax.jit(apply)(variables, x)
    x = np.asarray(x, np.float64)
    np.testing.assert_allclose(y, affine(variables, x, x.mean((0, 1, 2)), x.var((0, 1, 2))), atol=1e-5)
    old, new = variables["batch_stats"], updated["batch_stats"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_batch_norm_in_evaluation(normed):
    x, variables, _ = normed
    stats = jax.tree.map(np.asarray, variables["batch_stats"])
    y = BatchNorm().apply(variables, x, train=False)
    np.testing.assert_allclose(y, affine(variables, np.asarray(x), **stats), atol=1e-5)


def test_batch_norm_of_a_large_mean(normed):
    x, variables, apply = normed
    _, updated = apply(variables, x + 3000)
    var = updated["batch_stats"]["var"]
    np.testing.assert_allclose(var, apply(variables, x)[1]["batch_stats"]["var"], rtol=1e-4)


def test_batch_norm_of_one_value_stays_finite(normed):
    _, variables, apply = normed
    y, updated = apply(variables, jnp.ones((1, 1, 1, 4)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, updated)))


def test_batch_norm_in_bfloat16(normed, form):
    x, variables, apply = normed
    y, updated = in_training(Compute(jnp.bfloat16, form))(variables, jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    wanted, wanted_stats = apply(variables, jnp.asarray(jnp.asarray(x, jnp.bfloat16), jnp.float32))
    np.testing.assert_array_equal(y, wanted.astype(jnp.bfloat16))  # nothing but the result was rounded
    jax.tree.map(np.testing.assert_array_equal, updated, wanted_stats)


def test_batch_norm_of_a_sharded_batch_is_of_the_whole(normed):
    x, variables, apply = normed
    x = jnp.concatenate([x[:2], 5 * x[:2]])  # halves of unlike statistics
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, jax.P("data")))
    for a, b in zip(*(jax.tree.leaves(jax.jit(apply)(variables, v)) for v in (sharded, x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_second_derivative_of_batch_norm(x64, normed, form):
    x, variables, _ = normed
    layer = BatchNorm(Compute(jnp.float64, form))

    def f(x, scale):
        params = variables["params"] | {"scale": scale}
        y, _ = layer.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y))

    check_grads(jax.jit(f), (x.astype(jnp.float64), variables["params"]["scale"].astype(jnp.float64)), 2, ["rev"])


def test_taps_record_and_probe():
    x, probe = jnp.ones((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), 2.0)
    taps = Taps({"feature:1": probe})
    assert taps(x, -x) is x
    after = taps(x.astype(jnp.bfloat16))
    assert after.dtype == jnp.bfloat16
    np.testing.assert_array_equal(after, x + probe)
    assert [f.shape for f in taps.features] == [x.shape] * 2
    np.testing.assert_array_equal(taps.preact[0], -x)
    assert taps.preact[1] is after
    taps.check()


def test_taps_refuse_a_probe_of_no_stage():
    taps = Taps({"feature:-1": jnp.zeros((1, 1, 1, 1))})
    taps(jnp.ones((1, 1, 1, 1)))
    with pytest.raises(ValueError, match=r"no stage takes the probes \['feature:-1'\]; there are 1 stages"):
        taps.check()


def test_modules_keep_float32_parameters(key):
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            compute = Compute(jnp.bfloat16)
            return BatchNorm(compute)(Conv(2, use_bias=True, compute=compute)(x), train=False)

    y, variables = jax.eval_shape(Both().init_with_output, key, jnp.zeros((1, 4, 4, 3)))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
