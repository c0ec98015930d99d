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
