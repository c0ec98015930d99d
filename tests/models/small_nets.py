"""Every kind of block, in networks so narrow that NumPy keeps up; and the same networks written in NumPy."""

import functools

import numpy_nets

from gkd_jax.models.mobilenet import MobileNetV2
from gkd_jax.models.mobilenet_v1 import MobileNetV1
from gkd_jax.models.resnet import ResNet
from gkd_jax.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from gkd_jax.models.vgg import VGG
from gkd_jax.models.wide_resnet import WideResNet

SMALL = {
    "basic": (ResNet(3, 4, (4, 6), (2, 1)), functools.partial(numpy_nets.resnet, blocks=(2, 1), bottleneck=False)),
    "bottleneck": (
        ResNet(3, 4, (2, 3), (1, 2), bottleneck=True),
        functools.partial(numpy_nets.resnet, blocks=(1, 2), bottleneck=True),
    ),
    "pooled": (
        ResNet(3, 4, (4, 6), (1, 1), imagenet=True),
        functools.partial(numpy_nets.resnet, blocks=(1, 1), bottleneck=False, imagenet=True),
    ),
    "wide": (WideResNet(3, 2, 1), functools.partial(numpy_nets.wide_resnet, blocks=2)),
    "mobile": (MobileNetV2(3, 0.1), numpy_nets.mobilenetv2),
    "mobile6": (MobileNetV2(3, 0.1, imagenet=True), functools.partial(numpy_nets.mobilenetv2, imagenet=True)),
    "mobile1": (
        MobileNetV1(3, 6, ((8, 1), (10, 2))),
        functools.partial(numpy_nets.mobilenetv1, blocks=(1, 2)),
    ),
    "mobile1_6": (
        MobileNetV1(3, 6, ((8, 1), (10, 2)), relu6=True),
        functools.partial(numpy_nets.mobilenetv1, blocks=(1, 2), relu6=True),
    ),
    "vgg": (VGG(3, (8, 9, 10, 16, 24), (1, 2, 1, 1, 1)), functools.partial(numpy_nets.vgg, depth=(1, 2, 1, 1, 1))),
    "grouped": (
        ShuffleNetV1(3, 8, (16, 32), (2, 2), 2),
        functools.partial(numpy_nets.shufflenetv1, blocks=(2, 2), groups=2),
    ),
    "split": (ShuffleNetV2(3, 4, (8, 12), (2, 2), 7), functools.partial(numpy_nets.shufflenetv2, blocks=(2, 2))),
}
