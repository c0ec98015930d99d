"""The same weights in a PyTorch module written for this test, and in ours: the same logits and statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch_networks  # noqa: E402

from gkd_jax import models  # noqa: E402
from gkd_jax.errors import UserError  # noqa: E402
from gkd_jax.interop.torch import convert  # noqa: E402
from gkd_jax.models import registry  # noqa: E402

CLASSES = 10
IMAGENET = ["resnet18_imagenet_stem", "mobilenetv2_imagenet_stem", "mobilenetv1", "mobilenetv1_relu6"]
DEEP = ["resnet34_imagenet_stem", "resnet50_imagenet_stem"]
SMALL = ["resnet8", "wrn_16_2", "vgg8", "mobilenetv2_half", "shufflenetv1", "shufflenetv2", "resnet18"]
LARGE = ["resnet8x4", "resnet20", "wrn_40_1", "vgg13", "mobilenetv2", "resnet34", "resnet50"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads that wait for each other in a busy loop take longer than these small networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compare(name, model, dtype, tolerance):
    """Compares logits in eval mode, in training, and in eval mode after it, and the statistics."""
    network = torch_networks.create(name, CLASSES).to(torch.float64 if dtype == np.float64 else torch.float32)
    images = np.random.default_rng(1).normal(size=(4, 3, 32, 32)).astype(dtype)
    ours, theirs = jnp.asarray(images.transpose(0, 2, 3, 1)), torch.from_numpy(images)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), convert(name, torch_networks.arrays(network)))

    @functools.partial(jax.jit, static_argnames="train", compiler_options={"xla_backend_optimization_level": 0})
    def apply(variables, images, *, train):
        outputs, stats = model.apply(variables, images, train=train)
        return outputs.logits, {"params": variables["params"], "batch_stats": stats}

    before, _ = apply(variables, ours, train=False)
    during, stepped = apply(variables, ours, train=True)
    found = [before, during, apply(stepped, ours, train=False)[0]]
    with torch.no_grad():
        expected = [network.eval()(theirs), network.train()(theirs), network.eval()(theirs)]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert 0.1 < b.abs().max() < 100  # neither dead nor drowned in rounding
        np.testing.assert_allclose(a, b.numpy(), atol=tolerance, rtol=0)
    moved = convert(name, torch_networks.arrays(network))["batch_stats"]
    near = functools.partial(np.testing.assert_allclose, atol=tolerance / 10, rtol=tolerance / 10)
    jax.tree.map(near, stepped["batch_stats"], moved)
    unmoved = [np.allclose(a, b) for a, b in zip(*map(jax.tree.leaves, (variables["batch_stats"], moved)), strict=True)]
    assert not any(unmoved)


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_logits_and_running_statistics_are_those_of_pytorch(name):
    # The plain form compiles fastest; that all forms are one function is tested beside them
    compare(name, models.create(name, num_classes=CLASSES, conv="plain"), np.float32, 1e-4)


@pytest.mark.parametrize("name", [*IMAGENET, *(pytest.param(name, marks=pytest.mark.slow) for name in DEEP)])
def test_those_of_networks_whose_last_maps_are_single_positions(name, x64):
    """In double precision: BatchNorm of four values that are alike makes of PyTorch's own rounding up to 0.002."""
    module = registry._BUILDS[name](CLASSES, jnp.dtype(np.float64), "plain")
    compare(name, models.linen(module), np.float64, 1e-6)


def test_every_network_of_ours_has_its_names():
    assert set(torch_networks.NETWORKS) == {name for name in models.names() if name != "speck"}


@pytest.mark.parametrize("name", torch_networks.NETWORKS)
def test_every_array_finds_its_place(name):
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in torch_networks.NETWORKS[name](100).state_dict().items()}
    given = {key: np.full(shape, place + 1, np.float32) for place, (key, shape) in enumerate(shapes.items())}
    variables = convert(name, given)
    model = models.create(name, num_classes=100)
    wanted = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, wanted)
    used = sorted(float(np.asarray(leaf).flat[0]) for leaf in jax.tree.leaves(variables))
    assert used == [place + 1 for place, key in enumerate(given) if not key.endswith("num_batches_tracked")]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_both_names_of_shortcut_and_classifier_mean_the_same(name):
    with torch.device("meta"):
        either = [torch_networks.NETWORKS[name](10, modern=modern).state_dict() for modern in (False, True)]
    assert {"fc.weight", "layer2.0.downsample.0.weight"} < set(either[0])
    assert {"linear.weight", "layer2.0.shortcut.0.weight"} < set(either[1])
    filled = [
        {key: np.full(value.shape, place + 1, np.float32) for place, (key, value) in enumerate(arrays.items())}
        for arrays in either
    ]
    a, b = (convert(name, arrays) for arrays in filled)
    assert jax.tree.all(jax.tree.map(lambda x, y: np.asarray(x).flat[0] == np.asarray(y).flat[0], a, b))


@pytest.mark.parametrize(
    ("given", "tried"), [("mobilenetv1_relu6", "mobilenetv1"), ("mobilenetv1", "mobilenetv1_relu6")]
)
def test_the_same_arrays_for_another_activation_are_told_apart(given, tried):
    """timm's weights in the network with ReLU would give other logits, and no error, but for their names."""
    arrays = torch_networks.arrays(torch_networks.create(given, CLASSES))
    with pytest.raises(UserError, match=f"; the arrays are those of {given}$"):
        convert(tried, arrays)
