import ml_dtypes
import numpy as np
import pytest
import state_dicts

from gkd_jax import models
from gkd_jax.errors import UserError
from gkd_jax.interop import names
from gkd_jax.interop.torch import convert


def _refused(model, arrays, **how):
    with pytest.raises(UserError) as caught:
        convert(model, arrays, **how)
    return str(caught.value)


def test_layouts_and_collections():
    arrays = state_dicts.resnet()
    variables = convert("resnet8", arrays)
    params, stats = variables["params"], variables["batch_stats"]
    block = "stage2_block1"
    kernel = params[block]["shortcut"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0], arrays["layer2.0.downsample.0.weight"][:, :, 0, 0].T)
    kernel = params[block]["conv1"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel[2, 1, 5, 7], arrays["layer2.0.conv1.weight"][7, 5, 2, 1])
    np.testing.assert_array_equal(params["classifier"]["kernel"], arrays["fc.weight"].T)
    np.testing.assert_array_equal(params["classifier"]["bias"], arrays["fc.bias"])
    np.testing.assert_array_equal(params["stem"]["norm"]["scale"], arrays["bn1.weight"])
    np.testing.assert_array_equal(params["stem"]["norm"]["bias"], arrays["bn1.bias"])
    np.testing.assert_array_equal(stats[block]["conv2"]["norm"]["mean"], arrays["layer2.0.bn2.running_mean"])
    np.testing.assert_array_equal(stats[block]["conv2"]["norm"]["var"], arrays["layer2.0.bn2.running_var"])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_widths_of_numbers_become_float32(dtype):
    arrays = state_dicts.resnet()
    given = {name: array.astype(dtype) if array.ndim else array for name, array in arrays.items()}
    kernel = convert("resnet8", given)["params"]["classifier"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, given["fc.weight"].T.astype(np.float32))


def test_classes_are_those_of_the_file_or_as_demanded():
    arrays = state_dicts.resnet(classes=7)
    assert convert("resnet8", arrays)["params"]["classifier"]["bias"].shape == (7,)
    assert convert("resnet8", arrays, num_classes=7)
    message = _refused("resnet8", arrays, num_classes=10)
    assert message.startswith("fc.bias is [7], and should be [10]: the network knows 7 classes, not 10")


def test_images_of_one_channel():
    arrays = state_dicts.resnet(channels=1)
    assert convert("resnet8", arrays, channels=1)["params"]["stem"]["conv"]["kernel"].shape == (3, 3, 1, 16)
    assert "conv1.weight is [16, 1, 3, 3], and should be [16, 3, 3, 3]" in _refused("resnet8", arrays)


def _without(name):
    return lambda arrays: arrays.pop(name)


def _renamed(old, new):
    return lambda arrays: arrays.update({new: arrays.pop(old)})


def _set(name, value):
    return lambda arrays: arrays.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("fc.bias"), "resnet8 needs 'fc.bias', which the state_dict lacks"),
        (_without("layer1.0.bn1.running_var"), "resnet8 needs 'layer1.0.bn1.running_var', which the state_dict lacks"),
        (
            _renamed("fc.weight", "fcc.weight"),
            "'fcc.weight' there is no array of resnet8 (did you mean 'fc.weight'?), which lacks 'fc.weight'",
        ),
        (_set("aux.weight", np.zeros(3)), "'aux.weight' there is no array of resnet8"),
        (_set("linear.bias", np.zeros(10)), "'linear.bias' there is no array of resnet8"),
        (
            _set("layer1.0.conv2.weight", np.zeros((16, 16, 5, 5))),
            "layer1.0.conv2.weight is [16, 16, 5, 5], and should be [16, 16, 3, 3] in resnet8",
        ),
        (_set("fc.weight", np.zeros((10, 65))), "fc.weight is [10, 65], and should be [10, 64] in resnet8"),
        (
            _set("conv1.weight", np.zeros((16, 3, 7, 7))),
            "conv1.weight is [16, 3, 7, 7], and should be [16, 3, 3, 3]: it is the 7x7 stem of a network for large "
            "images, and our resnet8 is the one for small images, whose stem is 3x3",
        ),
        (_set("bn1.bias", np.zeros(16, int)), "bn1.bias is of type int64; weights are floating-point numbers"),
        (_set("bn1.bias", np.full(16, np.nan)), "bn1.bias holds a value that is not finite"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arrays = state_dicts.resnet()
    change(arrays)
    assert _refused("resnet8", arrays) == message


def test_the_network_that_the_arrays_fit_is_named():
    message = _refused("resnet8", state_dicts.resnet(20, classes=100))
    assert message.startswith("'layer1.1.conv1.weight' (and 59 more) there is no array of resnet8")
    assert message.endswith("; the arrays are those of resnet20")
    message = _refused("resnet20", state_dicts.resnet(8))
    assert message.startswith("resnet20 needs 'layer1.1.bn1.running_mean' (and 59 more), which the state_dict lacks")
    assert message.endswith("; the arrays are those of resnet8")
    message = _refused("resnet8", state_dicts.resnet(8, (2, 4, 8)))
    assert message.startswith("layer1.0.bn1.running_mean is [2], and should be [16] in resnet8 (and 45 more)")
    assert message.endswith("; the arrays are those of resnet8_eighth")


def test_networks_without_names():
    assert _refused("resnet9", {}).startswith("unknown model 'resnet9' (did you mean")
    try:

        @models.register("of_a_user")
        def build(num_classes, dtype, conv):
            raise AssertionError

        message = _refused("of_a_user", {})
    finally:
        models.registry._BUILDS.pop("of_a_user")
    assert message.startswith("no PyTorch names are known for 'of_a_user'; known: mobilenetv1, ")


def test_names_of_a_module_that_no_table_has():
    table = names.table("resnet8")
    assert names.torch_names(table, ("stem", "conv", "kernel")) == ("conv1.weight",)
    assert names.torch_names(table, ("stem", "conv", "sharpness")) is None
    assert names.torch_names(table, ("trunk", "conv", "kernel")) is None
