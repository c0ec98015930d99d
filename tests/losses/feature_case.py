"""Small outputs for the terms over feature maps, and their comparison with a transcription in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np

from gkd_jax.outputs import Batch, Outputs, Setup

B = 4
SIDES, WIDTHS = (8, 8, 4, 2), (3, 4, 6, 5)
TEACHER_WIDTHS = (4, 5, 7, 6)
KEY = jax.random.key(0, impl="rbg")
SETUP = Setup(3, 100, 10)


def outputs(seed=0, sides=SIDES, widths=WIDTHS, relu=True):
    """Returns maps of these sides and widths, and an embedding of the last width plus two."""
    rng = np.random.default_rng(seed)
    array = lambda *shape: jnp.asarray(rng.normal(size=(B, *shape)), jnp.float32)
    preact = tuple(array(side, side, width) for side, width in zip(sides, widths, strict=True))
    features = tuple(jax.nn.relu(x) for x in preact) if relu else preact
    return Outputs(array(3), array(widths[-1] + 2), features[-1], features, preact)


def batch(constants=()):
    labels = jnp.zeros(B, jnp.int32)
    return Batch({}, labels, jnp.zeros((B, 3)), jnp.arange(B), labels, jnp.int32(0), {}, constants)


def heads_of(term, student, teacher, setup=SETUP):
    """Returns the term's heads, none of them at a special value such as a bias of zero."""
    heads, state = jax.eval_shape(lambda: term.init(KEY, student, teacher, setup))
    assert state == ()
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) + 0.5 * (p.ndim == 1), jnp.float32), heads)


def read(outputs):
    """Returns the fields of outputs that terms over features read."""
    return {"features": outputs.features, "preact": outputs.preact, "embedding": outputs.embedding}


def values(term, heads, student, teacher, constants=()):
    return term.loss(heads, (), student, teacher, batch(constants), KEY)[0]


def check(term, reference, student, teacher, *, setup=SETUP, rtol=2e-5, atol=2e-6):
    """Compares the term's values, and their derivatives in the student and the heads, with `reference`.

    `reference(heads, student, teacher)` gets trees of float64 tensors, [b h w k] for maps, and returns [b].
    """
    import torch

    heads = heads_of(term, student, teacher, setup)
    constants = jax.jit(lambda: term.constants(setup))()
    weights = np.random.default_rng(9).normal(size=B)

    def total(heads, mine):
        found = values(term, heads, student._replace(**mine), teacher, constants)
        return jnp.sum(found * jnp.asarray(weights, jnp.float32)), found

    (_, found), grads = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(heads, read(student))
    as_leaf = lambda x: torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    leaves = jax.tree.map(as_leaf, (heads, read(student), read(teacher)))
    expected = reference(*leaves)
    (expected * torch.tensor(weights)).sum().backward()
    assert (found.shape, found.dtype) == ((B,), jnp.float32)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=rtol, atol=atol)

    def same(grad, leaf):
        wanted = np.zeros(grad.shape) if leaf.grad is None else leaf.grad.numpy()
        np.testing.assert_allclose(grad, wanted, rtol=rtol, atol=atol * max(1, np.abs(wanted).max()))

    jax.tree.map(same, grads, leaves[:2])
    return grads


def nchw(x):
    return x.permute(0, 3, 1, 2)


def conv(x, params, **kwargs):
    """A convolution in PyTorch with our kernel; maps are [b k h w]."""
    import torch.nn.functional as F

    kernel = params["kernel"] if params["kernel"].ndim == 4 else params["kernel"][None, None]
    return F.conv2d(x, kernel.permute(3, 2, 0, 1), params.get("bias"), **kwargs)


def batch_norm(x, params):
    import torch.nn.functional as F

    return F.batch_norm(x, None, None, params["norm"]["scale"], params["norm"]["bias"], training=True, eps=1e-5)


def regress(x, params, teacher_side):
    """ConvReg: which convolution depends on the sizes."""
    import torch.nn.functional as F

    if x.shape[2] == 2 * teacher_side:
        x = conv(x, params, stride=2, padding=1)
    elif 2 * x.shape[2] == teacher_side:
        # PyTorch turns the kernel round.
        x = F.conv_transpose2d(x, params["kernel"].flip(0, 1).permute(2, 3, 0, 1), stride=2, padding=1)
    else:
        x = conv(x, params)
    return F.relu(batch_norm(x, params))


def shrink(x, y):
    """Both maps [b k h w] at the size of the smaller."""
    import torch.nn.functional as F

    size = tuple(min(a, b) for a, b in zip(x.shape[2:], y.shape[2:], strict=True))
    return F.adaptive_avg_pool2d(x, size), F.adaptive_avg_pool2d(y, size)
