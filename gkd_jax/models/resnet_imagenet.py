"""The wide residual networks of ImageNet with a stem for small images: resnet18, resnet34, resnet50.

He et al. (2016, arXiv 1512.03385), table 1, with a 3x3 stem of stride 1 and no max-pooling, as in mdistiller's ResNet18
and ResNet50 for CIFAR. Initialisation as in `resnet.ResNet`.
"""

from typing import Any

from gkd_jax.models.layers import Compute
from gkd_jax.models.registry import register
from gkd_jax.models.resnet import ResNet

_WIDTHS = (64, 128, 256, 512)


@register("resnet18")
def resnet18(num_classes: int, dtype: Any, conv: str) -> ResNet:
    """Returns 18 layers of basic blocks."""
    return ResNet(num_classes, 64, _WIDTHS, (2, 2, 2, 2), compute=Compute(dtype, conv))


@register("resnet34")
def resnet34(num_classes: int, dtype: Any, conv: str) -> ResNet:
    """Returns 34 layers of basic blocks."""
    return ResNet(num_classes, 64, _WIDTHS, (3, 4, 6, 3), compute=Compute(dtype, conv))


@register("resnet50")
def resnet50(num_classes: int, dtype: Any, conv: str) -> ResNet:
    """Returns 50 layers of bottleneck blocks."""
    return ResNet(num_classes, 64, _WIDTHS, (3, 4, 6, 3), bottleneck=True, compute=Compute(dtype, conv))
