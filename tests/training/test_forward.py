"""Gradients through one shared forward pass, against slow and independent ways to the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax import losses, models
from gkd_jax.losses.term import create
from gkd_jax.outputs import Batch, Gradient, Model, Outputs
from gkd_jax.training.forward import forward, forward_shapes

CLASSES = 4


def smooth(width):
    """Returns a network without kinks: one hidden layer of tanh on the flattened image."""

    def init(key, images):
        a, b = jax.random.split(key)
        size = int(np.prod(images.shape[1:]))
        hidden = jax.random.normal(a, (size, width)) / np.sqrt(size)
        return {"params": {"hidden": hidden, "out": jax.random.normal(b, (width, CLASSES))}, "batch_stats": {}}

    def apply(variables, images, *, train, key=None, probes=None):
        flat = images.reshape(images.shape[0], -1)
        h = jnp.tanh(flat @ variables["params"]["hidden"]) + (probes or {}).get("feature:0", 0.0)
        return Outputs(h @ variables["params"]["out"], h, None, (h,)), {}

    return Model(init, apply, lambda v: (v["params"]["out"], jnp.zeros(CLASSES)))


def make_batch(images, labels):
    targets = jax.nn.one_hot(labels, CLASSES)
    return Batch({"weak": images}, labels, targets, labels, labels, jnp.int32(0))


def input_matching(student, teacher, student_variables, teacher_variables, batch, train=False):
    term = create("gradient", wrt="input")
    wanted = [need for need in term.needs if isinstance(need, Gradient)]
    images = batch.images["weak"]
    key = jax.random.key(0)
    t, _ = forward(teacher, teacher_variables, images, wanted, train=False, batch=batch, key=key)
    s, _ = forward(student, student_variables, images, wanted, train=train, batch=batch, key=key)
    return term.loss({}, (), s, jax.tree.map(jax.lax.stop_gradient, t), batch, key)[0]


@pytest.fixture
def pair(key):
    images = jax.random.normal(jax.random.fold_in(key, 1), (6, 3, 3, 2))
    batch = make_batch(images, jnp.arange(6) % CLASSES)
    student, teacher = smooth(5), smooth(9)
    return student, teacher, student.init(key, images), teacher.init(jax.random.fold_in(key, 2), images), batch


def slow(student_variables, teacher_variables, images, labels):
    """The definition in NumPy, float64: gradients of the cross-entropy in the image, one image at a time."""

    def gradient(variables, x, y):
        hidden, out = (np.float64(variables["params"][k]) for k in ("hidden", "out"))
        h = np.tanh(x.reshape(-1) @ hidden)
        z = h @ out
        p = np.exp(z - z.max())
        p /= p.sum()
        p[y] -= 1.0
        return ((out @ p) * (1.0 - h**2)) @ hidden.T

    result = []
    for x, y in zip(np.float64(images), np.asarray(labels), strict=True):
        a, b = gradient(student_variables, x, y), gradient(teacher_variables, x, y)
        result.append(1.0 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return np.array(result)


def test_input_gradient_loss_equals_its_definition(pair):
    student, teacher, vs, vt, batch = pair
    ours = input_matching(student, teacher, vs, vt, batch)
    np.testing.assert_allclose(ours, slow(vs, vt, batch.images["weak"], batch.labels), atol=1e-5)


def test_its_parameter_gradient_equals_central_differences(pair):
    student, teacher, vs, vt, batch = pair
    ours = jax.grad(lambda p: input_matching(student, teacher, {"params": p}, vt, batch).sum())(vs["params"])
    direction = {k: np.random.default_rng(0).normal(size=v.shape) for k, v in vs["params"].items()}

    def along(t):
        moved = {k: np.float64(v) + t * direction[k] for k, v in vs["params"].items()}
        return slow({"params": moved}, vt, batch.images["weak"], batch.labels).sum()

    expected = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(sum(np.vdot(ours[k], direction[k]) for k in ours), expected, rtol=2e-4)


def test_input_gradient_loss_equals_two_separate_calls_in_train_mode(key):
    """Where BatchNorm couples the examples, the gradient is that of the summed cross-entropy."""
    images = jax.random.normal(key, (6, 8, 8, 3))
    batch = make_batch(images, jnp.arange(6) % CLASSES)
    student, teacher = models.create("resnet8", num_classes=CLASSES), smooth(9)
    vs, vt = student.init(key, images), teacher.init(jax.random.fold_in(key, 2), images)

    def summed(model, variables, x, train):
        logits = model.apply(variables, x, train=train)[0].logits
        return losses.cross_entropy(logits, batch.targets).sum()

    def two_calls(params):
        variables = {**vs, "params": params}
        a = jax.grad(lambda x: summed(student, variables, x, True))(images).reshape(6, -1)
        b = jax.grad(lambda x: summed(teacher, vt, x, False))(images).reshape(6, -1)
        return (1 - (a * b).sum(-1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)).sum()

    def shared(params):
        return input_matching(student, teacher, {**vs, "params": params}, vt, batch, train=True).sum()

    (a, da), (b, db) = (jax.jit(jax.value_and_grad(f))(vs["params"]) for f in (shared, two_calls))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(db))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5 * scale), da, db)


@pytest.mark.parametrize("margin", [25.0, 100.0, 1000.0])
def test_a_confident_teacher_gives_finite_numbers(pair, margin):
    student, teacher, vs, vt, batch = pair
    images = batch.images["weak"]
    logits = teacher.apply(vt, images, train=False)[0].logits
    labels = jnp.argmax(logits, -1)
    gap = jnp.sort(logits, -1)[:, -1] - jnp.sort(logits, -1)[:, -2]
    sure = {**vt, "params": {**vt["params"], "out": vt["params"]["out"] * margin / gap.min()}}
    batch = make_batch(images, labels)

    def loss(params):
        return input_matching(student, teacher, {"params": params}, sure, batch).sum()

    value, gradient = jax.value_and_grad(loss)(vs["params"])
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_gradient_at_a_feature_equals_that_of_the_rest_of_the_network(pair):
    student, _, variables, _, batch = pair
    wanted = [
        Gradient("here", "feature:-1", lambda z, t, b, k: losses.residual(z, b.targets)),
        Gradient("top", "input", lambda z, t, b, k: jax.nn.one_hot(jnp.argmax(t, -1), CLASSES)),
    ]
    outputs, _ = forward(student, variables, batch.images["weak"], wanted, train=False, batch=batch)
    out = np.asarray(variables["params"]["out"])
    p = np.asarray(jax.nn.softmax(outputs.logits)) - np.asarray(batch.targets)
    np.testing.assert_allclose(outputs.grads["here"], p @ out.T, atol=1e-5)

    best = np.argmax(np.asarray(outputs.logits), -1)
    jacobian = jax.jacobian(lambda x: student.apply(variables, x, train=False)[0].logits)(batch.images["weak"])
    expected = np.stack([jacobian[i, c, i] for i, c in enumerate(best)])
    np.testing.assert_allclose(outputs.grads["top"], expected, atol=1e-5)


def test_any_number_of_gradients_share_one_forward_pass(key):
    images = jnp.zeros((2, 8, 8, 3))
    model = models.create("resnet8", num_classes=CLASSES)
    variables = model.init(key, images)
    batch = make_batch(images, jnp.arange(2))
    both = [Gradient(at, at, lambda z, t, b, k: z) for at in ("input", "feature:1")]

    def convolutions(wanted):
        jaxpr = jax.make_jaxpr(lambda x: forward(model, variables, x, wanted, train=True, batch=batch)[0])(images)
        return str(jaxpr).count("conv_general_dilated[")

    forward_only, one, two = convolutions([]), convolutions(both[:1]), convolutions(both)
    assert forward_only == 7  # stem and six 3x3; the shortcuts' 1x1 are matrix products
    assert one == 2 * forward_only
    # The second request pulls back through the six layers that follow its feature, or fewer
    assert one < two <= 3 * forward_only


def test_shapes_of_gradients_are_those_of_what_they_are_taken_at(key):
    model = models.create("resnet8", num_classes=CLASSES)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(model.init, key, images)
    wanted = [Gradient(at, at, lambda z, t, b, k: z) for at in ("input", "feature:-2")]
    grads = forward_shapes(model, variables, images, wanted, train=True).grads
    assert {k: v.shape for k, v in grads.items()} == {"input": (2, 8, 8, 3), "feature:-2": (2, 4, 4, 32)}


def test_a_feature_that_is_not_there_is_named(key):
    model = models.create("resnet8", num_classes=CLASSES)
    images = jnp.zeros((2, 8, 8, 3))
    wanted = [Gradient("x", "feature:4", lambda z, t, b, k: z)]
    with pytest.raises(ValueError, match="feature:4: the network has 4 feature maps"):
        forward(model, model.init(key, images), images, wanted, train=True, batch=None)
