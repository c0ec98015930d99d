"""The wide residual networks of ImageNet: resnet18, resnet34, resnet50, and the same with ImageNet's own stem.

He et al. (2016, arXiv 1512.03385), table 1. For small images they have a 3x3 stem of stride 1 and no max-pooling, as in
mdistiller's ResNet18 and ResNet50 for CIFAR. resnet18_imagenet_stem, resnet34_imagenet_stem and resnet50_imagenet_stem
are torchvision's networks as they are, which bring images of 32x32 down to maps of 1x1: weak students there, whose
published gains by distillation are large. Initialisation as in `resnet.ResNet`, which is torchvision's too.
"""

from collections.abc import Mapping
from typing import Any

from gkd_jax.models.layers import Compute
from gkd_jax.models.registry import register
from gkd_jax.models.resnet import ResNet

# Depth -> blocks of each stage, and whether they are bottlenecks
_BLOCKS: Mapping[int, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
}


def _register(name: str, depth: int, *, imagenet: bool) -> None:
    blocks, bottleneck = _BLOCKS[depth]

    @register(name)
    def build(num_classes: int, dtype: Any, conv: str) -> ResNet:
        return ResNet(num_classes, 64, (64, 128, 256, 512), blocks, bottleneck, imagenet, Compute(dtype, conv))


for _depth in _BLOCKS:
    _register(f"resnet{_depth}", _depth, imagenet=False)
    _register(f"resnet{_depth}_imagenet_stem", _depth, imagenet=True)
