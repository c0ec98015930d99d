from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax import models, native
from gkd_jax.errors import UserError
from gkd_jax.models import registry
from gkd_jax.models.convolution import CONV_FORMS
from gkd_jax.outputs import Model, Outputs

FORMS = [form for form in CONV_FORMS if form != "native" or native.available()]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Forgets what a test registers."""
    monkeypatch.setattr(registry, "_BUILDS", dict(registry._BUILDS))


def test_unknown_model():
    with pytest.raises(UserError, match=r"unknown model 'resnet8x5' \(did you mean 'resnet8x4'\?\); known: .*wrn_16_2"):
        models.create("resnet8x5", num_classes=10)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_classes", 1, "num_classes of model 'resnet8' is 1; it must be 2 or more"),
        ("conv", "matmull", r"unknown convolution form 'matmull' \(did you mean 'matmul'\?\)"),
        ("dtype", jnp.float16, "unknown compute type .*float16.* known: bfloat16, float32"),
        ("dtype", "float", "unknown compute type"),
        ("dtype", "nonsense", "unknown compute type 'nonsense'"),
    ],
)
def test_refusals(field, value, message):
    with pytest.raises(UserError, match=message):
        models.create("resnet8", **{"num_classes": 10, field: value})


def test_forms_of_convolution_by_platform():
    assert models.conv_form("cpu") == "cpu"  # of two devices
    for platform in ("gpu", "cuda", "rocm", "tpu"):
        assert models.conv_form(platform) == "matmul"
    with pytest.raises(UserError, match="unknown platform 'gpuu'"):
        models.conv_form("gpuu")


def test_a_form_can_be_fixed_for_a_while():
    with models.fixed_form("plain"):
        assert models.conv_form("tpu") == models.conv_form("cpu") == "plain"
        with models.fixed_form("cpu"):
            assert models.conv_form("tpu") == "cpu"
        assert models.conv_form("tpu") == "plain"
    assert models.conv_form("tpu") == "matmul"


def test_kernels_of_our_own_are_for_a_single_device_of_a_cpu(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda backend: 1)
    monkeypatch.setattr(native, "available", lambda: True)
    assert models.conv_form("cpu") == "native"
    assert models.conv_form("tpu") == "matmul"
    monkeypatch.setattr(native, "available", lambda: False)
    assert models.conv_form("cpu") == "cpu"
    with pytest.raises(UserError, match="form 'native' needs a C\\+\\+ compiler, and GKD_JAX_NATIVE not to be off"):
        models.create("resnet8", num_classes=10, conv="native")


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2_half", "shufflenetv1", "vgg8"])
def test_forms_share_variables(name, key):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    forms = [models.create(name, num_classes=10, conv=conv) for conv in FORMS]
    one, *others = (jax.eval_shape(model.init, key, images) for model in forms)
    assert all(other == one for other in others)


@pytest.mark.parametrize(
    ("name", "plain", "dense"),
    # The dense ones are the stem's, of three channels; the shuffling networks' stems are 1x1
    [("mobilenetv2_half", 53, 1), ("shufflenetv1", 1 + 16 * 3, 0), ("shufflenetv2", 1 + 16 * 3 + 3 * 2 + 1, 0)],
)
def test_the_plain_form_is_plain_convolutions(name, plain, dense):
    def text(conv):
        model = models.create(name, num_classes=10, conv=conv)
        images = jnp.zeros((1, 32, 32, 3))
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        return str(jax.make_jaxpr(lambda v: model.apply(v, images, train=False)[0].logits)(variables))

    assert text("plain").count("conv_general_dilated[") == plain
    assert text("matmul").count("conv_general_dilated[") == dense


class Tiny(nn.Module):
    foldable: ClassVar[bool] = True
    num_classes: int
    compute: models.Compute

    @nn.compact
    def __call__(self, images, *, train, probes):
        taps = models.Taps(probes)
        x = models.ConvNorm(4, compute=self.compute, name="stem")(images, train=train)
        x = taps(nn.relu(x), x)
        return models.classify(nn.Dropout(0.5, deterministic=not train)(x), taps, self.num_classes)


def test_a_network_of_ones_own(key):
    @models.register("tiny")
    def tiny(num_classes, dtype, conv):
        return Tiny(num_classes, models.Compute(dtype, conv))

    assert "tiny" in models.names()
    model = models.create("tiny", num_classes=3)
    images = jnp.ones((2, 4, 4, 3))
    variables = model.init(key, images)
    outputs, stats = model.apply(variables, images, train=True, key=key)
    other, _ = model.apply(variables, images, train=True, key=jax.random.fold_in(key, 1))
    assert not np.array_equal(outputs.final, other.final)  # the key reaches dropout
    assert outputs.logits.shape == (2, 3)
    assert set(stats) == {"stem"}
    folded, folded_variables = model.fold(variables)
    np.testing.assert_allclose(
        folded.apply(folded_variables, images, train=False)[0].logits,
        model.apply(variables, images, train=False)[0].logits,
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="'tiny' is registered already"):
        models.register("tiny")(lambda num_classes, dtype, conv: None)
    assert models.register("tiny")(tiny) is tiny  # a cell that runs twice


def test_a_model_of_ones_own():
    own = Model(lambda key, images: {}, lambda v, x, *, train: (Outputs(x), {}), lambda v: (v, v))
    models.register("own")(lambda num_classes, dtype, conv: own)
    assert models.create("own", num_classes=2) is own


def test_a_linen_network_without_statistics_or_compute(key):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, *, train, probes):
            return Outputs(nn.Dense(2, name="head")(images.mean((1, 2))))

    model = models.linen(Linear(), classifier="head")
    assert model.fold is model.norms is None
    images = jnp.ones((1, 2, 2, 3))
    variables = model.init(key, images)
    for train in (True, False):
        outputs, stats = model.apply(variables, images, train=train)
        assert stats == {}
    kernel, bias = model.classifier(variables)
    np.testing.assert_allclose(outputs.logits, kernel.sum(0, keepdims=True) + bias[None], rtol=1e-6)
