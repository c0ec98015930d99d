import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.errors import UserError
from gkd_jax.losses import fields, heads
from gkd_jax.outputs import Outputs


def test_pool_in_equal_blocks_and_overlapping_windows():
    x = np.random.default_rng(0).normal(size=(2, 6, 7, 3)).astype(np.float32)
    np.testing.assert_allclose(fields.pool(jnp.asarray(x), 3, 7), x.reshape(2, 3, 2, 7, 3).mean(2), atol=1e-6)
    # PyTorch: bin i of 4 from 7 averages 0-1, 1-3, 3-5, 5-6.
    expected = np.stack([x[:, :, s].mean(2) for s in (slice(0, 2), slice(1, 4), slice(3, 6), slice(5, 7))], axis=2)
    np.testing.assert_allclose(fields.pool(jnp.asarray(x), 6, 4), expected, atol=1e-6)
    with pytest.raises(ValueError, match="6x7.*8x7"):
        fields.pool(jnp.asarray(x), 8, 7)


def test_pool_alike():
    x, y = fields.pool_alike(jnp.ones((1, 8, 3, 2)), jnp.ones((1, 4, 6, 5)))
    assert (x.shape, y.shape) == ((1, 4, 3, 2), (1, 4, 3, 5))
    x, y = fields.pool_alike(jnp.ones((1, 8, 8, 2), jnp.bfloat16), jnp.ones((1, 8, 8, 5)), 2)
    assert (x.shape, y.shape) == ((1, 2, 2, 2), (1, 2, 2, 5))
    assert x.dtype == jnp.float32


def test_missing_fields_are_named():
    outputs = Outputs(jnp.zeros((2, 3)), features=(jnp.zeros((2, 1, 1, 1)),) * 3)
    with pytest.raises(UserError, match="'embedding'"):
        fields.embedding(outputs)
    with pytest.raises(UserError, match="stage is 3.*3 features: -3 to 2"):
        fields.feature(outputs, 3)
    with pytest.raises(UserError, match="'ce@input'"):
        fields.gradient(outputs, "ce@input")
    with pytest.raises(UserError, match="'logits'"):
        fields.logits(None)


@pytest.mark.parametrize(("head", "names"), [(heads.LINEAR, {"kernel", "bias"}), (heads.POINTWISE, {"kernel"})])
def test_heads(head, names, key):
    params = head.init(key, 3, 4)
    assert set(params) == names
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(head.apply(params, jnp.asarray(x)), x @ np.asarray(params["kernel"]), atol=1e-5)
    assert head.apply(params, jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32
    assert heads.match(head, key, 3, 3) == {}
    x = jnp.asarray(x)
    assert heads.project(head, {}, x) is x
    found = heads.project(head, heads.match(head, key, 3, 4), x)
    np.testing.assert_allclose(found, head.apply(params, x), atol=1e-6)


def test_nearest():
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    found = fields.nearest(jnp.asarray(x), 3, 8)
    np.testing.assert_array_equal(found, np.repeat(x[:, ::2], 2, axis=2))
    assert fields.nearest(jnp.asarray(x, jnp.bfloat16), 6, 4).dtype == jnp.float32
    torch = pytest.importorskip("torch")
    for size in ((9, 9), (4, 3), (5, 7)):
        expected = torch.nn.functional.interpolate(torch.tensor(x).permute(0, 3, 1, 2), size, mode="nearest")
        np.testing.assert_array_equal(fields.nearest(jnp.asarray(x), *size), expected.permute(0, 2, 3, 1).numpy())


def test_moments():
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32) + 1000
    for unbiased in (False, True):
        mean, std = fields.moments(jnp.asarray(x), 1e-8, unbiased=unbiased)
        np.testing.assert_allclose(mean, np.float64(x).mean(1), rtol=1e-6)
        np.testing.assert_allclose(std, np.float64(x).std(1, ddof=int(unbiased)), rtol=1e-4)
    np.testing.assert_allclose(fields.moments(jnp.asarray(x[:, :1]), 1e-4, unbiased=True)[1], np.full((2, 3), 0.01))


def _maps(count, start=0):
    return tuple(jnp.full((1, 1, 1, 1), start + i) for i in range(count))


def test_pairs_of_stages():
    long, short = (Outputs(jnp.zeros((1, 2)), features=_maps(n), preact=_maps(n, 10)) for n in (5, 4))
    numbers = lambda *args, **kwargs: [(int(x.sum()), int(y.sum())) for x, y in fields.pairs(*args, **kwargs)]
    assert numbers(short, short) == [(1, 1), (2, 2), (3, 3)]
    assert numbers(short, long) == numbers(long, short) == [(1, 1), (2, 2), (3, 3)]
    assert numbers(short, long, from_deepest=True) == [(1, 2), (2, 3), (3, 4)]
    assert numbers(short, short, of=("features", "preact")) == [(1, 11), (2, 12), (3, 13)]
    assert numbers(short, long, (0, -1)) == [(0, 0), (3, 4)]
    with pytest.raises(UserError, match="stage is 4.*4 features"):
        fields.pairs(short, long, (4,))
    with pytest.raises(UserError, match="behind the stem: the student has 1 features, the teacher 4"):
        fields.pairs(Outputs(jnp.zeros((1, 2)), features=_maps(1)), short)
