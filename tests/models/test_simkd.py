"""A student with its teacher's classifier, and the term that trains it, against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_jax import models
from gkd_jax.errors import UserError
from gkd_jax.losses import fields
from gkd_jax.losses.reuse import map_error, simkd_term
from gkd_jax.models.simkd import Reused, reuse_classifier
from gkd_jax.outputs import Batch, Model, Outputs, Setup

CLASSES = 5
FINAL = (1, 1, 12)


@pytest.fixture(scope="module")
def reused():
    rng = np.random.default_rng(3)
    return Reused(FINAL, rng.normal(size=(12, CLASSES)).astype(np.float32), rng.normal(size=CLASSES).astype(np.float32))


@pytest.fixture(scope="module")
def student():
    """Of 2x2 positions and 8 channels at its end, for images of 8x8."""
    return models.create("resnet8_eighth", num_classes=CLASSES)


@pytest.fixture(scope="module")
def network(student, reused):
    return reuse_classifier(student, reused, pool=fields.pool, compute=models.Compute())


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(network, images):
    """With statistics and BatchNorms that are not those of the start."""
    made = jax.jit(network.init)(jax.random.key(1, impl="rbg"), images)
    rng = np.random.default_rng(1)

    def moved(path, x):
        name = path[-1].key
        noise = rng.uniform(0.5, 1.5, x.shape) if name in ("scale", "var") else rng.normal(size=x.shape) * 0.3
        return jnp.asarray(noise, x.dtype) if name in ("scale", "bias", "mean", "var") else x

    trained = jax.tree_util.tree_map_with_path(moved, {k: made[k] for k in ("params", "batch_stats")})
    return {**made, **trained}


def test_its_variables(network, student, reused, images, variables):
    assert set(variables) == {"params", "batch_stats", "frozen"}
    assert [set(variables[name]) for name in ("params", "batch_stats")] == [{"student", "projector"}] * 2
    np.testing.assert_array_equal(variables["frozen"]["kernel"], reused.kernel)
    np.testing.assert_array_equal(variables["frozen"]["bias"], reused.bias)
    kernel, bias = network.classifier(variables)
    assert (kernel.shape, bias.shape) == ((12, CLASSES), (CLASSES,))
    # The student within starts as it would alone
    key = jax.random.key(4, impl="rbg")
    both = jax.jit(lambda key: (network.init(key, images), student.init(key, images)))
    whole, alone = both(key)
    jax.tree.map(np.testing.assert_array_equal, whole["params"]["student"], alone["params"])
    # Kernels as PyTorch's: uniform within the root of the reciprocal fan-in, 9 taps of 6 channels
    mix = np.asarray(whole["params"]["projector"]["mix"]["conv"]["kernel"])
    assert mix.shape == (3, 3, 6, 6)
    assert 0.9 * 54**-0.5 < np.abs(mix).max() <= 54**-0.5


def of_torch(torch, params, stats, maps, train):
    """Returns the projected maps, by PyTorch's layers as the paper's code lists them."""

    def convolution(kernel, padding):
        kernel = torch.tensor(np.asarray(kernel)).permute(3, 2, 0, 1)
        layer = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding=padding, bias=False)
        layer.weight = torch.nn.Parameter(kernel)
        return layer

    def norm(name):
        layer = torch.nn.BatchNorm2d(len(stats[name]["norm"]["mean"]))
        values = {"weight": params[name]["norm"]["scale"], "bias": params[name]["norm"]["bias"]}
        values |= {"running_mean": stats[name]["norm"]["mean"], "running_var": stats[name]["norm"]["var"]}
        layer.load_state_dict({**layer.state_dict(), **{k: torch.tensor(np.asarray(v)) for k, v in values.items()}})
        return layer

    layers = []
    for name, padding in (("reduce", 0), ("mix", 1), ("expand", 0)):
        layers += [convolution(params[name]["conv"]["kernel"], padding), norm(name), torch.nn.ReLU()]
    transfer = torch.nn.Sequential(*layers).train(train)
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(np.asarray(maps)).permute(0, 3, 1, 2), FINAL[:2])
    return transfer(pooled), layers


@pytest.mark.parametrize("train", [False, True])
def test_against_pytorch(network, student, reused, images, variables, train):
    torch = pytest.importorskip("torch")
    apply = jax.jit(functools.partial(network.apply, train=train))
    outputs, statistics = apply(variables, images)
    within = {name: variables[name]["student"] for name in ("params", "batch_stats")}
    inner, inner_statistics = jax.jit(functools.partial(student.apply, train=train))(within, images)
    params, stats = (variables[name]["projector"] for name in ("params", "batch_stats"))
    final, layers = of_torch(torch, params, stats, inner.final, train)
    final = final.detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(outputs.final, final, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs.embedding, final.mean((1, 2)), rtol=1e-4, atol=1e-5)
    expected = final.mean((1, 2)) @ reused.kernel + reused.bias
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(outputs.features, inner.features, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), statistics["student"], inner_statistics)
    for name, layer in zip(("reduce", "mix", "expand"), layers[1::3], strict=True):
        found = statistics["projector"][name]["norm"]
        np.testing.assert_allclose(found["mean"], layer.running_mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["var"], layer.running_var, rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(statistics) == jax.tree.structure(variables["batch_stats"])


def test_folded_it_says_the_same(network, images, variables):
    model, folded = network.fold(variables)
    assert jax.tree.leaves(folded["batch_stats"]) == []
    assert len(jax.tree.leaves(folded["params"])) < len(jax.tree.leaves(variables["params"]))
    before, after = (
        jax.jit(functools.partial(m.apply, train=False))(v, images)[0]
        for m, v in ((network, variables), (model, folded))
    )
    np.testing.assert_allclose(after.logits, before.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after.final, before.final, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.classifier(folded)[0], network.classifier(variables)[0])


def test_a_probe_reaches_the_logits_through_the_projector(network, images, variables):
    def logits(probe):
        return network.apply(variables, images, train=False, probes={"feature:2": probe})[0].logits.sum()

    feature = jax.eval_shape(lambda: network.apply(variables, images, train=False)[0]).features[2]
    gradient = jax.jit(jax.grad(logits))(jnp.zeros(feature.shape))
    assert float(jnp.abs(gradient).max()) > 0


def test_frozen_variables_of_the_student_within_stay(reused):
    def apply(variables, images, *, train, key=None, probes=None):
        x = images * variables["frozen"]["scale"]
        return Outputs(x.mean((1, 2)), final=x), variables["batch_stats"]

    inner = Model(lambda key, x: {"params": {}, "batch_stats": {}, "frozen": {"scale": jnp.float32(2)}}, apply, None)
    network = reuse_classifier(inner, reused, pool=fields.pool, compute=models.Compute())
    variables = network.init(jax.random.key(0, impl="rbg"), jnp.ones((2, 2, 2, 3)))
    assert float(variables["frozen"]["student"]["frozen"]["scale"]) == 2
    assert network.apply(variables, jnp.ones((2, 2, 2, 3)), train=False)[0].final.shape == (2, 1, 1, 12)
    assert (network.fold, network.norms) == (None, None)


def test_a_student_without_a_final_map(reused):
    bare = Model(lambda key, x: {"params": {}}, lambda v, x, **more: (Outputs(x[:, 0, 0]), {}), None)
    network = reuse_classifier(bare, reused, pool=fields.pool, compute=models.Compute())
    with pytest.raises(UserError, match="must report its final map"):
        network.init(jax.random.key(0, impl="rbg"), jnp.ones((2, 2, 2, 3)))


# ----------------------------------------------------------------------------------------------- the term


def value_of_torch(torch, student, teacher):
    """The mean squared error of PyTorch, with the larger map pooled, and its gradient in the student's map."""
    s, t = (torch.tensor(np.asarray(x, np.float32)).permute(0, 3, 1, 2) for x in (student, teacher))
    s.requires_grad_(True)
    side = min(s.shape[2], t.shape[2])
    ours, target = (torch.nn.functional.adaptive_avg_pool2d(x, (side, side)) for x in (s, t))
    loss = torch.nn.MSELoss()(ours, target)
    loss.backward()
    return loss.item(), s.grad.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("ours", "theirs"), [(4, 4), (2, 4), (4, 2), (5, 3)])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_term_against_pytorch(ours, theirs, scale):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(3, side, side, 7)).astype(np.float32) * scale for side in (ours, theirs))
    value, gradient = jax.value_and_grad(lambda x: map_error(x, jnp.asarray(teacher)).mean())(jnp.asarray(student))
    expected, expected_gradient = value_of_torch(torch, student, teacher)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6 * scale)


def test_the_term_at_equality_and_in_bfloat16():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 7)), jnp.bfloat16)
    values, pull_back = jax.vjp(lambda x: map_error(x, x), x)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, 0)
    assert not np.asarray(pull_back(jnp.ones(3))[0], np.float32).any()
    assert values.shape == (3,)
    # The teacher is a constant
    assert not np.asarray(jax.grad(lambda y: map_error(2 * x, y).sum())(x), np.float32).any()


@jax.jit
def values_of(x, y):
    """The term of these final maps, of three examples."""
    place = jnp.zeros(3, jnp.int32)
    batch = Batch({}, place, jnp.zeros((3, 4)), place, place, jnp.int32(0))
    ours, theirs = (Outputs(jnp.zeros((3, 4)), final=z) for z in (x, y))
    return simkd_term().loss({}, (), ours, theirs, batch, jax.random.key(0))[0]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-10, 10), scale=st.floats(0.01, 100))
def test_identities_of_the_term(seed, shift, scale):
    rng = np.random.default_rng(seed)
    x, y = (
        jnp.asarray(rng.normal(size=(3, 4, 4, 7)), jnp.float32),
        jnp.asarray(rng.normal(size=(3, 2, 2, 7)), jnp.float32),
    )
    value = values_of(x, y)
    assert np.all(value > 0)
    order, channels = rng.permutation(3), rng.permutation(7)
    np.testing.assert_allclose(values_of(x[order][..., channels], y[order][..., channels]), value[order], rtol=1e-5)
    np.testing.assert_allclose(values_of(*(z[:, ::-1].swapaxes(1, 2) for z in (x, y))), value, rtol=1e-5)
    np.testing.assert_allclose(values_of(x + shift, y + shift), value, rtol=1e-4)
    np.testing.assert_allclose(values_of(scale * x, scale * y), scale**2 * value, rtol=1e-5)
    # A student whose pooled map is the teacher's
    detail = jnp.asarray(rng.normal(size=(3, 2, 2, 7)), jnp.float32)
    same = jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2).at[:, ::2, ::2].add(detail).at[:, 1::2, ::2].add(-detail)
    found, gradient = jax.value_and_grad(lambda x: values_of(x, y).sum())(same)
    assert found < 1e-12
    assert np.abs(gradient).max() < 1e-6


def test_the_term_needs_maps_of_one_width():
    def outputs(width):
        return Outputs(jnp.zeros((2, 4)), final=jnp.zeros((2, 1, 1, width)))

    term = simkd_term()
    assert term.needs == {"teacher.final"}
    key, setup = jax.random.key(0), Setup(4, 8, 2)
    assert term.init(key, outputs(3), outputs(3), setup) == ({}, ())
    with pytest.raises(UserError, match="has 3 channels and the teacher's 4.*student.reuse_classifier"):
        term.init(key, outputs(3), outputs(4), setup)
    with pytest.raises(UserError, match="needs .final. of a network"):
        term.init(key, outputs(3), outputs(3)._replace(final=None), setup)
    nothing = jnp.zeros(2, jnp.int32)
    batch = Batch({}, nothing, jnp.zeros((2, 4)), nothing, nothing, jnp.int32(0))
    values, state = term.loss({}, (), outputs(3), outputs(3), batch, key)
    assert (values.shape, state) == ((2,), ())
