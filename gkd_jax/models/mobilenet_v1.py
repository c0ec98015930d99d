"""MobileNetV1 of ImageNet: mobilenetv1, and mobilenetv1_relu6 with the activation that timm's has.

Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications" (2017, arXiv
1704.04861), table 1: a 3x3 stem of stride 2 and thirteen pairs of a depthwise 3x3 and a 1x1 convolution, each followed
by BatchNorm and ReLU; 4,231,976 parameters with 1,000 classes, 569 million multiply-adds at 224 x 224. mobilenetv1 is
the student that distillation on ImageNet is compared on (mdistiller's `MobileNetV1`); timm's `mobilenetv1_100` is the
same but for ReLU6, and weights of the one are not for the other. The total stride is 32: images of 32 x 32 leave maps
of single positions.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from gkd_jax.models.layers import Compute, ConvNorm, Taps, classify
from gkd_jax.models.mobilenet import activation
from gkd_jax.models.registry import register
from gkd_jax.outputs import Outputs

STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))
"""Width and blocks of each stage; the first block of each but the first has stride 2."""


class Separable(nn.Module):
    """A depthwise 3x3 convolution and a 1x1 convolution, with BatchNorm and activation behind the first of them.

    Attributes:
      width: channels out.
      stride: of the depthwise convolution.
      relu6: whether the activation is ReLU6.
      compute: element type and form.
    """

    width: int
    stride: int
    relu6: bool
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"], *, train: bool) -> Float[Array, "b i j o"]:
        """Returns what the block's last activation is applied to."""
        inner = x.shape[-1]
        depthwise = ConvNorm(inner, stride=self.stride, groups=inner, compute=self.compute, name="depthwise")
        h = activation(depthwise(x, train=train), imagenet=self.relu6)
        return ConvNorm(self.width, size=1, compute=self.compute, name="pointwise")(h, train=train)


class MobileNetV1(nn.Module):
    """A 3x3 stem of stride 2 and stages of depthwise separable convolutions.

    Features are the stem's output and those of the five stages, after the activation; the last one is also the map
    whose mean is taken. Convolutions start normal with variance 2 / fan-out, the classifier as PyTorch's linear layer.

    Attributes:
      num_classes: c.
      stem: channels of the stem.
      stages: width and blocks of each.
      relu6: whether activations are ReLU6.
      compute: element type and form.
    """

    foldable: ClassVar[bool] = True
    num_classes: int
    stem: int = 32
    stages: tuple[tuple[int, int], ...] = STAGES
    relu6: bool = False
    compute: Compute = Compute()

    def preact_norms(self) -> tuple[str, ...]:
        """Returns the path of the BatchNorm at the end of each stage's last block; see `adapter.linen`."""
        ends = [f"stage{stage}_block{blocks}/pointwise/norm" for stage, (_, blocks) in enumerate(self.stages, 1)]
        return ("stem/norm", *ends)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w k"], *, train: bool, probes: Mapping[str, Array]) -> Outputs:
        """Returns the outputs for normalised images of any number of channels."""
        taps = Taps(probes)
        preact = ConvNorm(self.stem, stride=2, compute=self.compute, name="stem")(images, train=train)
        x = taps(activation(preact, imagenet=self.relu6), preact)
        for stage, (width, blocks) in enumerate(self.stages, 1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                name = f"stage{stage}_block{block}"
                made = Separable(width, stride, self.relu6, self.compute, name=name)
                preact = made(x, train=train)
                x = activation(preact, imagenet=self.relu6)
            x = taps(x, preact)
        return classify(x, taps, self.num_classes)


def _register(name: str, *, relu6: bool) -> None:
    @register(name)
    def build(num_classes: int, dtype: Any, conv: str) -> MobileNetV1:
        return MobileNetV1(num_classes, relu6=relu6, compute=Compute(dtype, conv))


_register("mobilenetv1", relu6=False)
_register("mobilenetv1_relu6", relu6=True)
