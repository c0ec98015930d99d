import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.losses import heads

X = np.random.default_rng(0).normal(size=(3, 6, 6, 4)).astype(np.float32)

# arguments of `block`, and the same in PyTorch for maps [b k h w]
BLOCKS = {
    "pointwise": ({}, {}),
    "bias-relu": ({"bias": True, "relu": True}, {}),
    "norm": ({"norm": True}, {}),
    "3x3": ({"size": 3, "norm": True, "relu": True}, {"padding": 1}),
    "3x3-half": ({"size": 3, "stride": 2, "bias": True}, {"padding": 1, "stride": 2}),
    "4x4-twice": ({"size": 4, "stride": 2, "transposed": True, "norm": True}, {"padding": 1, "stride": 2}),
}


def _params(head, key, width_in=4, width_out=5):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda p: p + jnp.asarray(rng.normal(size=p.shape), jnp.float32), head.init(key, width_in, width_out)
    )


@pytest.mark.parametrize("case", BLOCKS)
def test_block_is_pytorchs(case, key):
    torch = pytest.importorskip("torch")
    given, layer = BLOCKS[case]
    head = heads.block(**given)
    params = _params(head, key)
    assert set(params) == {"kernel"} | {name for name in ("bias", "norm") if given.get(name)}
    as_leaf = lambda x: torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    theirs, x = jax.tree.map(as_leaf, params), as_leaf(X)
    kernel = theirs["kernel"].reshape(*([1, 1] if theirs["kernel"].ndim == 2 else []), *theirs["kernel"].shape)
    if given.get("transposed"):
        weight, layer_of = kernel.flip(0, 1).permute(2, 3, 0, 1), torch.nn.functional.conv_transpose2d
    else:
        weight, layer_of = kernel.permute(3, 2, 0, 1), torch.nn.functional.conv2d
    y = layer_of(x.permute(0, 3, 1, 2), weight, theirs.get("bias"), **layer)
    if given.get("norm"):
        norm = theirs["norm"]
        y = torch.nn.functional.batch_norm(y, None, None, norm["scale"], norm["bias"], training=True, eps=1e-5)
    if given.get("relu"):
        y = torch.relu(y)
    y = y.permute(0, 2, 3, 1)
    pull = np.random.default_rng(2).normal(size=y.shape)
    (y * torch.tensor(pull)).sum().backward()
    found, back = jax.vjp(head.apply, params, jnp.asarray(X))
    np.testing.assert_allclose(found, y.detach().numpy(), rtol=1e-5, atol=1e-5)
    same = lambda grad, leaf: np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-4, atol=1e-4)
    jax.tree.map(same, back(jnp.asarray(pull, jnp.float32)), (theirs, x))


def test_norm_far_from_zero_and_of_constants(key):
    head = heads.block(norm=True)
    params = {**head.init(key, 4, 4), "kernel": jnp.eye(4)}
    expected = (X - X.mean((0, 1, 2))) / np.sqrt(X.var((0, 1, 2)) + 1e-5)
    apply = jax.jit(head.apply)
    np.testing.assert_allclose(apply(params, jnp.asarray(X + 1000)), expected, atol=2e-3)
    constant = jnp.full(X.shape, 3.0)
    assert not np.any(apply(params, constant))
    grads = jax.jit(jax.grad(lambda params, x: head.apply(params, x).sum(), (0, 1)))(params, constant)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_norm_of_vectors(key):
    head = heads.block(norm=True, relu=True)
    params, x = _params(head, key), X.reshape(-1, 4)
    np.testing.assert_allclose(
        head.apply(params, jnp.asarray(x)).reshape(3, 6, 6, 5), head.apply(params, jnp.asarray(X)), atol=1e-5
    )


def test_initial_kernels_have_pytorchs_spread(key):
    def limit_and_spread(head, inputs, outputs):
        kernel = np.asarray(head.init(key, inputs, outputs)["kernel"])
        return np.abs(kernel).max(), kernel.std()

    for head, bound in {
        heads.block(): 64**-0.5,
        heads.block(3): (64 * 9) ** -0.5,
        heads.block(4, stride=2, transposed=True, kernel_init=heads.TORCH_TRANSPOSED): (32 * 16) ** -0.5,
        heads.block(3, kernel_init=heads.KAIMING_UNIFORM): (3 / (64 * 9)) ** 0.5,
    }.items():
        largest, spread = limit_and_spread(head, 64, 32)
        assert largest <= bound
        np.testing.assert_allclose(spread, bound / 3**0.5, rtol=0.05)
    _, spread = limit_and_spread(heads.block(kernel_init=heads.KAIMING_FAN_OUT), 64, 32)
    np.testing.assert_allclose(spread, (2 / 32) ** 0.5, rtol=0.05)


def test_stack_composes_and_draws_each_block(key):
    head = heads.stack(heads.block(relu=True), heads.block(relu=True), heads.block())
    params = head.init(key, 4, 5)
    kernels = [np.asarray(params[f"block{i}"]["kernel"]) for i in range(3)]
    assert [k.shape for k in kernels] == [(4, 5), (5, 5), (5, 5)]
    assert not np.array_equal(kernels[1], kernels[2])
    expected = np.maximum(np.maximum(X @ kernels[0], 0) @ kernels[1], 0) @ kernels[2]
    np.testing.assert_allclose(head.apply(params, jnp.asarray(X)), expected, atol=1e-5)
    narrow = heads.stack(heads.block(), heads.block(3), heads.block(), between=lambda width: width // 2).init(key, 4, 6)
    shapes = [narrow[f"block{i}"]["kernel"].shape for i in range(3)]
    assert shapes == [(4, 3), (3, 3, 3, 3), (3, 6)]


@pytest.mark.parametrize(("student", "teacher", "side"), [(6, 6, 6), (6, 3, 3), (6, 12, 12), (6, 2, 6), (6, 9, 6)])
def test_regressor_by_size(student, teacher, side, key):
    head = heads.regressor(student, teacher)
    found = head.apply(head.init(key, 4, 5), jnp.asarray(X, jnp.bfloat16))
    assert (found.shape, found.dtype) == ((3, side, side, 5), jnp.float32)
    assert found.min() == 0
    signed = heads.regressor(student, teacher, relu=False)
    assert signed.apply(signed.init(key, 4, 5), jnp.asarray(X)).min() < 0
