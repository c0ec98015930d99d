"""The benchmark's peer computes what gkd_jax computes: networks, losses and images, number by number."""

import functools
import io
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the benchmark's peer needs PyTorch, the extra `bench`")

from experiments.torch_peer import images as peer_images  # noqa: E402
from experiments.torch_peer import loop, worker  # noqa: E402
from experiments.torch_peer import losses as peer_losses  # noqa: E402
from experiments.torch_peer.networks import NETWORKS, create  # noqa: E402
from gkd_jax import models  # noqa: E402
from gkd_jax.data import views  # noqa: E402
from gkd_jax.losses import gradient, logit, transport  # noqa: E402
from gkd_jax.outputs import Batch  # noqa: E402
from gkd_jax.training.forward import forward  # noqa: E402

CLASSES = 7
BATCH = 6

# The order in which a PyTorch module of the same network declares its parts
_ORDER = ("stem", "stage", "group", "norm1", "expand", "depthwise", "project", "conv1", "conv2", "conv3", "conv")
_ORDER += ("shortcut", "norm", "head", "classifier", "kernel", "scale", "bias", "mean", "var")


@pytest.fixture(autouse=True)
def one_thread():
    """On one thread: the second one waits in a busy loop, which starves tests that run beside this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def described(name, size=16):
    """The network and the shapes of its variables."""
    model = models.create(name, num_classes=CLASSES)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return model, jax.eval_shape(model.init, jax.random.key(0, impl="rbg"), images)


def drawn(shapes):
    """Variables that keep a deep network's activations near one, and whose statistics are not those of a new one."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        kind, size = path[-1].key, shape.shape
        if kind == "kernel":
            return rng.normal(0, math.prod(size[:-1]) ** -0.5, size).astype(np.float32)
        if kind in ("scale", "var"):
            return rng.uniform(0.5, 1.5, size).astype(np.float32)
        return rng.normal(0, 0.1, size).astype(np.float32)

    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(leaf, shapes))


def ordered(variables):
    """The arrays of `variables` in the order of the PyTorch module's."""
    flat = {}
    for tree in (variables["params"], variables["batch_stats"]):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            flat[tuple(key.key for key in path)] = leaf

    def place(path):
        parts = [part if part in _ORDER else re.sub(r"\d+_block\d+", "", part) for part in path]
        numbers = [[int(number) for number in re.findall(r"\d+", part)] for part in path]
        return [(_ORDER.index(part), number) for part, number in zip(parts, numbers, strict=True)]

    return [flat[path] for path in sorted(flat, key=place)]


def copied(name, variables):
    """The PyTorch network `name` with gkd_jax's variables, every one of them."""
    network = create(name, CLASSES)
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    for (name, value), array in zip(state.items(), ordered(variables), strict=True):
        array = np.asarray(array).transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim])
        assert array.shape == tuple(value.shape), name
        state[name] = torch.tensor(array)
    network.load_state_dict(state, strict=False)
    return network


def pixels(*shape, seed=1):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def nchw(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(theirs.detach().numpy(), np.asarray(ours), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_as_many(name):
    _, shapes = described(name)
    ours = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert sum(p.numel() for p in create(name, CLASSES).parameters()) == ours


def applied(model, variables, images, *, train):
    return jax.jit(lambda v, x: model.apply(v, x, train=train))(variables, jnp.asarray(images))


# Of each kind of block, stem and width; the others are deeper or wider, which the parameters' count tells
@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet8x4", "resnet50", "wrn_16_2", "mobilenetv2_half"])
def test_evaluation_is_equal(name):
    model, shapes = described(name)
    variables, images = drawn(shapes), pixels(2, 16, 16, 3)
    ours, _ = applied(model, variables, images, train=False)
    with torch.no_grad():
        logits, embedding = copied(name, variables).eval()(nchw(images))
    close(ours.logits, logits, 1e-4)
    close(ours.embedding, embedding, 1e-4)


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2_half"])
def test_training_pass_is_equal(name):
    model, shapes = described(name)
    variables, images = drawn(shapes), pixels(BATCH, 32, 32, 3)
    ours, statistics = applied(model, variables, images, train=True)
    network = copied(name, variables).train()
    logits, _ = network(nchw(images))
    close(ours.logits, logits, 1e-4)
    moved = ordered({"params": {}, "batch_stats": statistics})
    theirs = [value for key, value in network.state_dict().items() if "running" in key]
    for array, value in zip(moved, theirs, strict=True):
        close(array, value, 1e-4)


def agree(ours, theirs, *arrays, tolerance=1e-5):
    """Compares two scalar functions of the same arrays in value and in the gradients with respect to all of them."""
    value, gradients = jax.jit(jax.value_and_grad(ours, argnums=tuple(range(len(arrays)))))(*map(jnp.asarray, arrays))
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    loss = theirs(*tensors)
    close(value, loss, tolerance)
    for expected, got in zip(gradients, torch.autograd.grad(loss, tensors), strict=True):
        assert np.abs(expected).max() > 1e-4
        close(expected, got, tolerance)


LABELS = np.array([0, 3, 3, 6, 1, 0])


def test_kd_is_equal():
    teacher = pixels(BATCH, CLASSES, seed=2) * 3
    agree(
        lambda z: logit.kd(z, jnp.asarray(teacher), 4.0).mean(),
        lambda z: peer_losses.kd(z, torch.tensor(teacher), 4.0),
        pixels(BATCH, CLASSES) * 3,
    )


def test_sinkhorn_divergence_is_equal():
    teacher = pixels(BATCH, 5, seed=2)
    agree(
        lambda x: transport.sinkhorn_divergence(x, jnp.asarray(teacher), jnp.asarray(LABELS), solver="unrolled").value,
        lambda x: peer_losses.sinkhorn_divergence(x, torch.tensor(teacher), torch.tensor(LABELS)),
        pixels(BATCH, 5),
    )


def test_classifier_gradient_is_equal():
    logits, embedding = pixels(BATCH, CLASSES, seed=2), pixels(BATCH, 5, seed=3)
    targets = jax.nn.one_hot(LABELS, CLASSES)
    agree(
        lambda z, h: gradient.classifier_gradient(z, jnp.asarray(logits), targets, h, jnp.asarray(embedding)).mean(),
        lambda z, h: peer_losses.classifier_gradient(
            z, torch.tensor(logits), torch.tensor(LABELS), h, torch.tensor(embedding)
        ),
        pixels(BATCH, CLASSES),
        pixels(BATCH, 5, seed=4),
    )


def test_input_gradient_matching_is_equal(key):
    """In value, and in its derivative in the student's classifier, which goes through both passes of the network."""
    model, shapes = described("resnet8")
    variables, images = drawn(shapes), pixels(BATCH, 16, 16, 3)
    target = pixels(BATCH, 16, 16, 3, seed=2)
    (wanted,) = gradient.gradient_term(wrt="input").needs
    batch = Batch({}, LABELS, jax.nn.one_hot(LABELS, CLASSES), LABELS, LABELS, jnp.zeros((), int))

    def ours(params):
        outputs, _ = forward(
            model, {**variables, "params": params}, jnp.asarray(images), [wanted], train=True, batch=batch, key=key
        )
        found = outputs.grads[wanted.name]
        return gradient.gradient_cosine(found, jnp.asarray(target)).mean(), found

    (value, found), derivative = jax.jit(jax.value_and_grad(ours, has_aux=True))(variables["params"])
    network, x = copied("resnet8", variables).train(), nchw(images).requires_grad_()
    total, theirs = peer_losses.input_gradient(network(x)[0], torch.tensor(LABELS), x, create_graph=True)
    loss = peer_losses.gradient_cosine(theirs, nchw(target))
    loss.backward()
    close(np.transpose(found, (0, 3, 1, 2)), theirs, 1e-4)
    close(value, loss, 1e-5)
    close(derivative["classifier"]["kernel"].T, network.fc.weight.grad, 1e-4)
    close(derivative["stem"]["conv"]["kernel"].transpose(3, 2, 0, 1), network.conv1.weight.grad, 1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_views_are_equal(channels_last):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 8, 3), np.uint8)
    index, view = rng.integers(0, 5, 300), rng.integers(0, peer_images.VIEWS, 300)
    view[:2] = 0, peer_images.VIEWS - 1
    ours = views.crop_flip(
        jnp.asarray(views.pad_images(images, 4)), jnp.asarray(index), jnp.asarray(view), pad=4, flip=True
    )
    padded = peer_images.pad_images(torch.tensor(images))
    crops = peer_images.crop_flip(padded, torch.tensor(index), torch.tensor(view), channels_last)
    np.testing.assert_array_equal(crops.permute(0, 2, 3, 1).numpy(), ours)
    assert crops.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    normal = peer_images.normalise(crops, *peer_images.normalisation(torch.device("cpu")))
    expected = views.normalise(ours, peer_images.MEAN, peer_images.STD)
    close(np.transpose(expected, (0, 3, 1, 2)), normal)


def peer(objective="kd", pair=("resnet20", "resnet8"), **more):
    torch.manual_seed(0)
    arguments = {"setting": loop.Setting(), "student_only": False, **more}
    images = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8)
    labels = torch.arange(20) % CLASSES
    return loop.Peer(pair, objective, 8, CLASSES, images=images, labels=labels, device=torch.device("cpu"), **arguments)


@pytest.mark.parametrize("objective", loop.OBJECTIVES)
@pytest.mark.parametrize("student_only", [False, True])
def test_every_objective_trains(objective, student_only):
    one = peer(objective, ("resnet8x4", "resnet8"), student_only=student_only)  # 256 wide and 64: with projections
    before = [p.detach().clone() for p in one.parameters]
    taught = [p.detach().clone() for p in one.teacher.state_dict().values()]
    assert one.run(3) > 0  # more than the two batches of an epoch
    assert all((a != b).any() for a, b in zip(before, one.parameters, strict=True))
    assert all((a == b).all() for a, b in zip(taught, one.teacher.state_dict().values(), strict=True))


@pytest.mark.parametrize("setting", [loop.Setting(channels_last=True), loop.Setting(autocast=True)])
def test_settings_change_the_loss_by_rounding_alone(setting):
    reference = float(peer("full").step())
    assert float(peer("full", setting=setting).step()) == pytest.approx(reference, rel=0.02)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the tracer asks every tensor for it
def test_what_is_compiled_is_one_graph_each(monkeypatch):
    """Traced but not handed to the compiler, which takes minutes on a busy machine."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    pair = "resnet8", "resnet8"
    reference = float(peer("kd+w+cg", pair).step())
    compiled = peer("kd+w+cg", pair, setting=loop.Setting(compiled=True))
    assert float(compiled.step()) == pytest.approx(reference, rel=1e-5)


def test_the_double_backward_pass_is_refused_when_compiled():
    with pytest.raises(loop.Unsupported, match="double backward"):
        peer("full", setting=loop.Setting(compiled=True))


@pytest.mark.parametrize("wrong", [{"objective": "cd"}, {"pair": ("resnet20", "resnet9")}])
def test_unknown_names_are_told(wrong):
    with pytest.raises(ValueError, match="known: "):
        peer(**wrong)


def served(*requests):
    replies = []
    worker.serve(iter(io.StringIO("".join(json.dumps(request) + "\n" for request in requests))), replies.append)
    return replies


SETUP = {
    "pair": ["resnet8", "resnet8"],
    "objective": "kd",
    "batch": 4,
    "num_classes": CLASSES,
    "setting": {"channels_last": True, "compiled": False, "autocast": False},
    "device": "cpu",
}


def test_worker_answers(tmp_path):
    np.savez(tmp_path / "images.npz", x_train=np.zeros((9, 8, 8, 3), np.uint8), y_train=np.arange(9) % CLASSES)
    setup = {**SETUP, "images": str(tmp_path / "images.npz"), "student_only": True}
    ready, ran, finished = served(setup, {"steps": 2}, {"finish": True})
    assert ready["ready"]
    assert ready["compile_seconds"] > 0
    assert ready["torch"] == torch.__version__
    assert ran["steps"] == 2
    assert ran["seconds"] > 0
    assert finished["peak_bytes"] > 1e6
    assert 50 < finished["ops_per_step"] < 1000


def test_worker_says_what_is_unsupported():
    (reply,) = served({**SETUP, "objective": "kd+gm", "setting": {**SETUP["setting"], "compiled": True}})
    assert "double backward" in reply["unsupported"]
