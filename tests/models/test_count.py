import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax import models, native
from gkd_jax.models import count
from gkd_jax.models.convolution import CONV_FORMS
from gkd_jax.outputs import Model, Outputs


def of_function(function):
    """Returns a Model without parameters whose logits are `function(images)`."""
    return Model(
        lambda key, images: {"params": {}, "batch_stats": {}},
        lambda variables, images, *, train: (Outputs(function(images)), {}),
        lambda variables: None,
    )


def test_summary():
    model = models.create("mobilenetv2_half", num_classes=10)
    summary = count.summary(model, (32, 32, 3))
    assert summary == count.Summary(
        parameters=697546,
        macs=6408448,
        features=((16, 16, 16), (16, 16, 12), (8, 8, 16), (4, 4, 48), (2, 2, 160)),
        final=(2, 2, 1280),
        embedding=1280,
    )
    assert count.macs(model, (32, 32, 3)) == summary.macs
    assert count.feature_shapes(model, (32, 32, 3)) == summary.features


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2", "shufflenetv1", "vgg8"])
def test_forms_of_convolution_count_alike(name):
    forms = [form for form in CONV_FORMS if form != "native" or native.available()]
    macs = {count.macs(models.create(name, num_classes=2, conv=conv), (16, 16, 3)) for conv in forms}
    assert len(macs) == 1
    assert min(macs) > 0


@pytest.mark.parametrize("conv", ["plain", "cpu"])
def test_layer_outputs(conv):
    found = count.layer_outputs(models.create("resnet8", num_classes=10, conv=conv), (32, 32, 3))
    wide, middle, narrow = 32 * 32 * 16, 16 * 16 * 32, 8 * 8 * 64
    # The stem and three blocks of two convolutions, the last two with a shortcut of their own; the classifier
    assert sorted(found) == sorted([*[wide] * 3, *[middle] * 3, *[narrow] * 3, 10])


def test_parameters_of_arrays_leave_out_statistics_and_what_is_frozen():
    variables = {
        "params": {"a": np.zeros((2, 3)), "b": {"c": jax.ShapeDtypeStruct((5,), jnp.float32)}},
        "batch_stats": {"mean": np.zeros(7)},
        "frozen": np.zeros(11),
    }
    assert count.parameters(variables) == 11


def test_folding_takes_a_scale_for_each_channel():
    model = models.create("resnet8", num_classes=10)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    folded = jax.eval_shape(lambda v: model.fold(v)[1], variables)
    channels = 16 + 2 * 16 + 3 * 32 + 3 * 64
    assert count.parameters(folded) == 78042 - channels


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda x: x.reshape(1, 12) @ jnp.ones((12, 5)), 60),
        (lambda x: jnp.einsum("bhwk,bijk->bhwij", x, x)[:, 0, 0, 0], 4 * 4 * 3),
        (lambda x: jax.lax.scan(lambda c, _: (c @ jnp.ones((3, 3)), None), x[:, 0, 0], length=7)[0], 7 * 9),
        (lambda x: jax.lax.cond(True, lambda y: y @ jnp.ones((3, 4)), lambda y: jnp.tile(y, 2)[:, :4], x[:, 0, 0]), 12),
        (lambda x: jax.checkpoint(lambda x: x @ jnp.ones((3, 2)))(x[:, 0, 0]), 6),
        (lambda x: jax.nn.relu(x)[:, 0, 0] + 1, 0),
    ],
    ids=["matrix", "einsum", "scan", "cond", "checkpoint", "elementwise"],
)  # fmt: skip
def test_multiply_accumulates(function, macs):
    assert count.macs(of_function(function), (2, 2, 3)) == macs


def test_a_network_that_reports_only_logits():
    summary = count.summary(of_function(lambda x: x.sum((1, 2))), (2, 2, 3))
    assert summary == count.Summary(0, 0, (), None, None)


@pytest.mark.parametrize(
    ("name", "pointwise"),
    # Of a bottleneck's 1x1, 3x3 and 1x1 convolutions with c channels between 4c, the 3x3 does 9 parts of 17
    [
        ("mobilenetv2_half", True),
        ("mobilenetv2", True),
        ("shufflenetv1", True),
        ("shufflenetv2", True),
        ("resnet20", False),
        ("resnet50", False),
        ("wrn_16_2", False),
        ("vgg8", False),
    ],
)
@pytest.mark.parametrize("conv", ["matmul", "cpu"])  # in the form "plain" depthwise ones are convolutions like others
def test_mostly_pointwise(name, pointwise, conv):
    assert count.mostly_pointwise(models.create(name, num_classes=2, conv=conv), (16, 16, 3)) is pointwise
