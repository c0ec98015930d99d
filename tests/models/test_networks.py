import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_nets
import pytest
from small_nets import SMALL

from gkd_jax import models
from gkd_jax.errors import UserError
from gkd_jax.models.layers import Compute
from gkd_jax.models.mobilenet import MobileNetV2
from gkd_jax.models.resnet import ResNet
from gkd_jax.models.shufflenet import GroupedUnit, ShuffleNetV1, shuffle
from gkd_jax.models.vgg import VGG

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 2)), jnp.float32)


@functools.cache
def run(name):
    """Runs a narrow network and its folded form on the same random variables."""
    module, reference = SMALL[name]
    model = models.linen(module)
    variables = numpy_nets.random_variables(model, IMAGES.shape[1:])

    @jax.jit
    def both(variables, images):
        outputs, _ = model.apply(variables, images, train=False)
        again, folded = model.fold(variables)
        return outputs, folded, again.apply(folded, images, train=False)[0]

    outputs, folded, folded_outputs = both(variables, IMAGES)
    return SimpleNamespace(
        model=model,
        variables=variables,
        outputs=outputs,
        folded=folded,
        folded_outputs=folded_outputs,
        reference=reference,
    )


@pytest.mark.parametrize("name", SMALL)
def test_eval_mode_equals_numpy(name):
    net = run(name)
    logits = net.reference(net.variables, np.asarray(IMAGES))
    assert np.ptp(logits, axis=0).max() > 0.05  # the images make a difference
    np.testing.assert_allclose(net.outputs.logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_folding_changes_nothing(name):
    net = run(name)
    assert jax.tree.leaves(net.folded["batch_stats"]) == []
    for ours, theirs in zip(jax.tree.leaves(net.folded_outputs), jax.tree.leaves(net.outputs), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet8_eighth", "wrn_16_2", "mobilenetv2_half"])
def test_a_folded_network_holds_its_convolutions_in_the_type_that_they_compute_in(name, key):
    """So that no step casts them again; the result is what it was, to the last bit."""
    model = models.create(name, num_classes=3, dtype=jnp.bfloat16)
    folded_at = []

    @jax.jit
    def fold(key):
        again, folded = model.fold(model.init(key, IMAGES[:1]))
        folded_at.append(again)
        return folded

    folded, apply = fold(key), jax.jit(lambda given: folded_at[0].apply(given, IMAGES, train=False)[0].logits)
    for path, leaf in jax.tree_util.tree_flatten_with_path(folded["params"])[0]:
        wide = any("norm" in part.key or part.key == "classifier" for part in path)
        assert leaf.dtype == (jnp.float32 if wide else jnp.bfloat16), path
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), folded)
    np.testing.assert_array_equal(apply(folded), apply(wide))


def test_only_norms_behind_no_convolution_are_left_when_folded():
    def norms(name):
        paths = jax.tree_util.tree_flatten_with_path(run(name).folded["params"])[0]
        return {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths if path[-1].key == "scale"}

    assert all(norms(name) == set() for name in SMALL if name != "wide")
    assert norms("wide") == {f"stage{s}_block{b}.norm1.scale" for s in (1, 2, 3) for b in (1, 2)} | {"norm.scale"}


def test_a_folded_network_does_not_train():
    model, variables = run("basic").model.fold(run("basic").variables)
    assert model.fold is None
    with pytest.raises(ValueError, match="folded network"):
        model.apply(variables, IMAGES, train=True)


@pytest.mark.parametrize("name", SMALL)
def test_outputs_fit_together(name):
    net = run(name)
    outputs = net.outputs
    np.testing.assert_allclose(outputs.embedding, outputs.final.mean((1, 2)), rtol=1e-5, atol=1e-6)
    kernel, bias = net.model.classifier(net.variables)
    np.testing.assert_allclose(outputs.logits, outputs.embedding @ kernel + bias[None], rtol=1e-4, atol=1e-5)
    assert [p.shape for p in outputs.preact] == [f.shape for f in outputs.features]


def assert_relu(after, before):
    # Not bit for bit: XLA may compute `before` once for each of its readers, in unlike fusions.
    np.testing.assert_allclose(after, np.maximum(before, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["basic", "bottleneck", "pooled", "vgg", "grouped", "split"])
def test_features_of_most_networks_are_activated(name):
    outputs = run(name).outputs
    for feature, preact in zip(outputs.features, outputs.preact, strict=True):
        assert_relu(feature, preact)
        assert np.min(preact) < 0
    if name != "split":  # which has a head
        np.testing.assert_array_equal(outputs.final, outputs.features[-1])


def test_features_of_wide_networks_are_raw_sums():
    outputs, params, stats = run("wide").outputs, run("wide").variables["params"], run("wide").variables["batch_stats"]
    assert_relu(outputs.final, outputs.preact[-1])
    stem = numpy_nets.conv(np.asarray(IMAGES), np.asarray(params["stem"]["kernel"]))
    np.testing.assert_allclose(outputs.features[0], stem, rtol=1e-4, atol=1e-5)
    # The BatchNorm that reads a feature first is the next stage's, and the network's last for the last.
    readers = [(params[f"stage{i}_block1"], stats[f"stage{i}_block1"], "norm1") for i in (1, 2, 3)]
    for i, (p, s, norm) in enumerate([*readers, (params, stats, "norm")]):
        net = numpy_nets.Variables({"params": p, "batch_stats": s})
        np.testing.assert_allclose(
            outputs.preact[i], net.norm(norm, np.asarray(outputs.features[i])), rtol=1e-4, atol=1e-4
        )


def test_features_of_mobilenet_are_linear_but_for_the_stem():
    outputs = run("mobile").outputs
    assert_relu(outputs.features[0], outputs.preact[0])
    for feature, preact in zip(outputs.features[1:], outputs.preact[1:], strict=True):
        np.testing.assert_allclose(feature, preact, rtol=1e-5)
        assert np.min(feature) < 0


def probe_gradient(net, index):
    probe = jnp.zeros_like(net.outputs.features[index])

    def total(probe):
        probes = {f"feature:{index}": probe}
        return net.model.apply(net.variables, IMAGES, train=False, probes=probes)[0].logits.sum()

    return jax.jit(jax.grad(total))(probe)


def test_probe_of_the_last_feature():
    net = run("basic")
    h, w = net.outputs.final.shape[1:3]
    per_channel = net.variables["params"]["classifier"]["kernel"].sum(1) / (h * w)
    expected = np.broadcast_to(per_channel, net.outputs.final.shape)
    np.testing.assert_allclose(probe_gradient(net, 2), expected, rtol=1e-5)


def test_probe_through_the_final_norm():
    net = run("wide")
    p, s = (jax.tree.map(np.asarray, net.variables[name]) for name in ("params", "batch_stats"))
    h, w = net.outputs.final.shape[1:3]
    slope = p["norm"]["scale"] / np.sqrt(s["norm"]["var"] + 1e-5) * p["classifier"]["kernel"].sum(1) / (h * w)
    np.testing.assert_allclose(probe_gradient(net, 3), (np.asarray(net.outputs.preact[-1]) > 0) * slope, rtol=1e-4)


def test_probe_of_the_first_feature():
    # MobileNet's head and blocks are continuous, so a small probe moves the logits by its gradient's sum. Along the
    # gradient they move farthest: by so much more than single precision rounds.
    net = run("mobile")
    gradient = probe_gradient(net, 1)
    step = jnp.asarray(1e-2 * gradient / np.linalg.norm(gradient), jnp.float32)
    moved = jax.jit(functools.partial(net.model.apply, train=False))
    up, down = (moved(net.variables, IMAGES, probes={"feature:1": sign * step})[0].logits.sum() for sign in (1, -1))
    np.testing.assert_allclose((up - down) / 2, np.sum(gradient * step), rtol=0.05)


def test_a_probe_of_no_stage():
    net = run("basic")
    with pytest.raises(ValueError, match="no stage takes the probes"):
        jax.eval_shape(lambda p: net.model.apply(net.variables, IMAGES, train=False, probes={"feature:3": p}), IMAGES)


def test_vgg_pools_large_images_once_more_and_refuses_tiny_ones():
    model = models.linen(SMALL["vgg"][0])
    sides = [shape[0] for shape in models.count.feature_shapes(model, (64, 64, 3))]
    assert sides == [64, 32, 16, 8, 4]
    with pytest.raises(UserError, match=r"a VGG network needs images of 8x8 or more, not 8x7"):
        models.count.summary(model, (8, 7, 3))


def test_shuffling_deals_out_the_groups():
    x = jnp.arange(6.0).reshape(1, 1, 1, 6)
    np.testing.assert_array_equal(shuffle(x, 2).ravel(), [0, 3, 1, 4, 2, 5])
    np.testing.assert_array_equal(shuffle(x, 3).ravel(), [0, 2, 4, 1, 3, 5])


def test_shuffling_networks_start_as_pytorch_does(key):
    """Uniform within ±1/√(inputs of one output), for which a grouped convolution has but its group's."""
    unit = GroupedUnit(960, stride=1, groups_in=3, groups=3, compute=Compute())
    params = jax.jit(functools.partial(unit.init, train=False))(key, jnp.zeros((1, 1, 1, 960)))["params"]
    for child, inputs in (("compress", 320), ("depthwise", 9), ("expand", 80)):
        kernel = params[child]["conv"]["kernel"]
        assert np.prod(kernel.shape[:3]) == inputs
        np.testing.assert_allclose(np.abs(kernel).max(), inputs**-0.5, rtol=0.01)
        np.testing.assert_allclose(kernel.std(), inputs**-0.5 / 3**0.5, rtol=0.05)


class Shallow(nn.Module):
    """As small as a network with both kinds of convolution can be, since twice differentiated ones compile slowly."""

    @nn.compact
    def __call__(self, images, *, train, probes):
        compute = Compute(jnp.float64)
        x = nn.relu(models.ConvNorm(2, compute=compute, name="stem")(images, train=train))
        x = nn.relu(models.ConvNorm(3, size=1, stride=2, compute=compute, name="stage")(x, train=train))
        return models.classify(x, models.Taps(probes), 3)


def test_matching_input_gradients_differentiates_twice(x64):
    """Against finite differences in float64, through train-mode BatchNorm."""
    rng = np.random.default_rng(2)
    images = jnp.asarray(rng.normal(size=(2, 4, 4, 2)))
    model = models.linen(Shallow())
    variables = numpy_nets.random_variables(model, images.shape[1:])
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), variables["params"])
    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)

    def matching(params):
        def loss(images):
            outputs, _ = model.apply(variables | {"params": params}, images, train=True)
            return -jax.nn.log_softmax(outputs.logits)[:, 0].sum()

        return jnp.sum(jnp.square(jax.grad(loss)(images)))

    def along(step):
        return jax.tree.map(lambda p, d: p + step * d, params, direction)

    value_and_grad = jax.jit(jax.value_and_grad(matching))
    gradient = value_and_grad(params)[1]
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)))
    step = 1e-6
    expected = (value_and_grad(along(step))[0] - value_and_grad(along(-step))[0]) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-4)
    assert abs(slope) > 1e-3


def test_training_moves_every_statistic_and_evaluation_none():
    net = run("wide")
    stats = net.variables["batch_stats"]
    _, updated = jax.jit(functools.partial(net.model.apply, train=True))(net.variables, IMAGES)
    for new, old in zip(jax.tree.leaves(updated), jax.tree.leaves(stats), strict=True):
        assert (np.asarray(new) != old).all()
    stem = numpy_nets.conv(np.asarray(IMAGES), np.asarray(net.variables["params"]["stem"]["kernel"]))
    old, new = (s["stage1_block1"]["norm1"] for s in (stats, updated))
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * stem.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * stem.var((0, 1, 2), ddof=1), rtol=1e-4)
    _, same = net.model.apply(net.variables, IMAGES, train=False)
    assert same is stats


@pytest.mark.parametrize("name", models.names())
def test_every_network_in_every_mode(name):
    """Shapes only: trained, evaluated, folded, in bfloat16, with probes, and for images unlike CIFAR's."""
    model = models.create(name, num_classes=7, dtype=jnp.bfloat16)
    images = jnp.zeros((2, 32, 32, 3))

    def through(key, images):
        variables = model.init(key, images)
        trained, stats = model.apply(variables, images, train=True)
        probes = {f"feature:{i}": jnp.zeros(f.shape) for i, f in enumerate(trained.features)}
        evaluated, _ = model.apply(variables, images, train=False, key=key, probes=probes)
        folded, folded_variables = model.fold(variables)
        assert folded.norms is None
        norms = model.norms(variables)
        return variables, stats, norms, (trained, evaluated, folded.apply(folded_variables, images, train=False)[0])

    variables, stats, norms, modes = jax.eval_shape(through, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, stats))} == {jnp.dtype("float32")}
    assert jax.tree.map(lambda s: s.shape, stats) == jax.tree.map(lambda s: s.shape, variables["batch_stats"])
    for outputs in modes:
        assert outputs.logits.shape == (2, 7)
        assert outputs.logits.dtype == outputs.embedding.dtype == jnp.float32
        assert {leaf.dtype for leaf in (outputs.final, *outputs.features, *outputs.preact)} == {jnp.dtype("bfloat16")}
        assert [f.shape for f in outputs.features] == [f.shape for f in modes[0].features]
        for norm, preact in zip(norms, outputs.preact, strict=True):
            assert norm is None or norm[0].shape == norm[1].shape == preact.shape[-1:]
    assert [norm is None for norm in norms] == [False] + [name == "shufflenetv2"] * (len(norms) - 1)


def test_digits():
    model = models.create("resnet8", num_classes=10)
    summary = models.count.summary(model, (8, 8, 1))
    assert summary.features == ((8, 8, 16), (8, 8, 16), (4, 4, 32), (2, 2, 64))
    vgg = models.count.feature_shapes(models.create("vgg8", num_classes=10), (8, 8, 1))
    assert vgg == ((8, 8, 64), (4, 4, 128), (2, 2, 256), (1, 1, 512), (1, 1, 512))
    variables = numpy_nets.random_variables(model, (8, 8, 1))
    outputs, _ = jax.jit(functools.partial(model.apply, train=True))(variables, IMAGES[..., :1])
    assert outputs.logits.shape == (2, 10)
    assert np.isfinite(outputs.logits).all()


def test_initial_classifiers(key):
    """Uniform within ±1/√d as in PyTorch; normal of 0.01 with no bias for MobileNet and VGG."""
    widths = {"basic": 6, "wide": 64, "mobile": 1280, "vgg": 512, "grouped": 32}
    for name, d in widths.items():
        module = SMALL[name][0] if name != "vgg" else VGG(3, (1, 1, 1, 1, 512), (1,) * 5)
        model = models.linen(module.clone(num_classes=200))
        # Nothing else of the variables is computed.
        kernel, bias = jax.jit(lambda key, model=model: model.classifier(model.init(key, IMAGES)))(key)
        assert kernel.shape == (d, 200)
        if isinstance(module, MobileNetV2 | VGG):
            np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.02)
        else:
            np.testing.assert_allclose(np.abs(kernel).max(), d**-0.5, rtol=0.02)
            np.testing.assert_allclose(kernel.std(), d**-0.5 / 3**0.5, rtol=0.05)
        if isinstance(module, ResNet | ShuffleNetV1):
            np.testing.assert_allclose(np.abs(bias).max(), d**-0.5, rtol=0.05)
        else:
            assert not bias.any()
