"""The networks against published sizes: reference/architectures.csv, counted on mdistiller's own code.

Its rows that are not from there, resnet8, resnet8_eighth, resnet34, mobilenetv2, mobilenetv1 and the networks with
ImageNet's stem, are counted by formula below.
"""

import csv
import pathlib

import jax
import jax.numpy as jnp
import pytest

from gkd_jax import models
from gkd_jax.models import count

_FILE = pathlib.Path(__file__).parents[1] / "reference" / "architectures.csv"
with _FILE.open() as _lines:
    ROWS = {row["name"]: row for row in csv.DictReader(_lines)}


class Tally:
    """Adds up parameters and multiply-accumulates of convolutions, side by side with the map's side."""

    def __init__(self, side):
        self.side, self.parameters, self.macs = side, 0, 0

    def conv_norm(self, size, channels_in, channels_out, stride=1, groups=1, shortcut=False):
        side = self.side // stride
        weights = size * size * channels_in // groups * channels_out
        self.parameters += weights + 2 * channels_out
        self.macs += weights * side * side
        if not shortcut:
            self.side = side

    def linear(self, inputs, classes):
        self.parameters += inputs * classes + classes


def count_resnet8(classes, stem=16, blocks=(1, 1, 1), imagenet=False, bottleneck=False):
    net = Tally(32)
    net.conv_norm(*((7, 3, stem, 2) if imagenet else (3, 3, stem)))
    net.side //= 2 if imagenet else 1  # max-pooling
    channels = stem
    for stage, n in enumerate(blocks):
        width = stem * 2**stage
        out = width * (4 if bottleneck else 1)
        for stride in [1 if stage == 0 else 2] + [1] * (n - 1):
            if out != channels:
                net.conv_norm(1, channels, out, stride, shortcut=True)
            if bottleneck:
                net.conv_norm(1, channels, width)
                net.conv_norm(3, width, width, stride)
                net.conv_norm(1, width, out)
            else:
                net.conv_norm(3, channels, width, stride)
                net.conv_norm(3, width, width)
            channels = out
    net.linear(channels, classes)
    return net


def count_resnet8_eighth(classes):
    return count_resnet8(classes, stem=2)


def count_resnet34(classes):
    return count_resnet8(classes, stem=64, blocks=(3, 4, 6, 3))


def count_resnet18_imagenet_stem(classes):
    return count_resnet8(classes, stem=64, blocks=(2, 2, 2, 2), imagenet=True)


def count_resnet34_imagenet_stem(classes):
    return count_resnet8(classes, stem=64, blocks=(3, 4, 6, 3), imagenet=True)


def count_mobilenetv1(classes, side=32):
    net = Tally(side)
    net.conv_norm(3, 3, 32, 2)
    channels = 32
    for width, blocks in ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2)):
        for block in range(blocks):
            net.conv_norm(3, channels, channels, 2 if width > 64 and not block else 1, groups=channels)
            net.conv_norm(1, channels, width)
            channels = width
    net.linear(1024, classes)
    return net


def count_resnet50_imagenet_stem(classes):
    return count_resnet8(classes, stem=64, blocks=(3, 4, 6, 3), imagenet=True, bottleneck=True)


def count_mobilenetv2(classes, imagenet=False):
    net = Tally(32)
    net.conv_norm(3, 3, 32, 2)
    channels = 32
    settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2 if imagenet else 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, width, blocks, first in settings:
        for stride in [first] + [1] * (blocks - 1):
            inner = channels * expansion
            if not imagenet or expansion > 1:
                net.conv_norm(1, channels, inner)
            net.conv_norm(3, inner, inner, stride, groups=inner)
            net.conv_norm(1, inner, width)
            channels = width
    net.conv_norm(1, 320, 1280)
    net.linear(1280, classes)
    return net


def count_mobilenetv2_imagenet_stem(classes):
    return count_mobilenetv2(classes, imagenet=True)


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("resnet8", count_resnet8),
        ("resnet8_eighth", count_resnet8_eighth),
        ("resnet34", count_resnet34),
        ("mobilenetv2", count_mobilenetv2),
        ("resnet18_imagenet_stem", count_resnet18_imagenet_stem),
        ("resnet34_imagenet_stem", count_resnet34_imagenet_stem),
        ("resnet50_imagenet_stem", count_resnet50_imagenet_stem),
        ("mobilenetv1", count_mobilenetv1),
        ("mobilenetv1_relu6", count_mobilenetv1),
        ("mobilenetv2_imagenet_stem", count_mobilenetv2_imagenet_stem),
    ],
)
def test_rows_counted_by_formula(name, counted):
    row = ROWS[name]
    assert int(row["params_10_classes"]) == counted(10).parameters
    assert int(row["params_100_classes"]) == counted(100).parameters
    assert float(row["million_macs_32x32"]) == round(counted(10).macs / 1e6, 1)


# As torchvision 0.21's documentation of its weights has them
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18_imagenet_stem", 11_689_512),
        ("resnet34_imagenet_stem", 21_797_672),
        ("resnet50_imagenet_stem", 25_557_032),
        ("mobilenetv2_imagenet_stem", 3_504_872),
    ],
)
def test_sizes_of_torchvision_on_imagenet(name, parameters):
    summary = count.summary(models.create(name, num_classes=1000), (224, 224, 3))
    assert summary.parameters == parameters
    assert summary.final[:2] == (7, 7)


# 4.2 million and 569 million in table 8 of the paper; mdistiller's and timm's code have 4,231,976
@pytest.mark.parametrize("name", ["mobilenetv1", "mobilenetv1_relu6"])
def test_size_of_mobilenetv1_on_imagenet(name):
    summary = count.summary(models.create(name, num_classes=1000), (224, 224, 3))
    assert summary.parameters == count_mobilenetv1(1000).parameters == 4_231_976
    assert summary.macs == count_mobilenetv1(1000, 224).macs + 1024 * 1000
    assert round(summary.macs / 1e6) == 569
    assert summary.features == (
        (112, 112, 32),
        (112, 112, 64),
        (56, 56, 128),
        (28, 28, 256),
        (14, 14, 512),
        (7, 7, 1024),
    )


def test_every_network_has_a_row():
    assert set(models.names()) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_sizes(name):
    row = ROWS[name]
    hundred = count.summary(models.create(name, num_classes=100), (32, 32, 3))
    ten = models.create(name, num_classes=10)
    assert hundred.parameters == int(row["params_100_classes"])
    variables = jax.eval_shape(ten.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    assert count.parameters(variables) == int(row["params_10_classes"])

    stages = [stage.split("x") for stage in row["stage_outputs_channels_x_side"].split()]
    assert hundred.features == tuple((int(side), int(side), int(channels)) for channels, side in stages)
    embedding = int(row["embedding"])
    assert hundred.embedding == embedding
    assert hundred.final[-1] == embedding

    # The table counts convolutions only, `macs` the classifier too.
    convolutions = (hundred.macs - embedding * 100) / 1e6
    assert convolutions == pytest.approx(float(row["million_macs_32x32"]), abs=0.05)
