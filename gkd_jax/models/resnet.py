"""Residual networks, and the narrow ones for CIFAR: resnet8 to resnet110, resnet8x4, resnet32x4.

He et al., "Deep residual learning for image recognition" (2016, arXiv 1512.03385), section 4.2, as in RepDistiller and
mdistiller: a projection with BatchNorm wherever the shape changes. The stages of the x4 nets are four times
as wide, their stem twice.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from gkd_jax.models.layers import Compute, ConvNorm, Taps, classify
from gkd_jax.models.pooling import max_pool
from gkd_jax.models.registry import register
from gkd_jax.outputs import Outputs


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; a 1x1 convolution on the shortcut where the shape changes.

    Attributes:
      width: channels out.
      stride: of the first convolution and the shortcut.
      compute: element type and form.
    """

    width: int
    stride: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"], *, train: bool) -> Float[Array, "b i j o"]:
        """Returns the sum of branch and shortcut; the ReLU on it is the caller's, who may want the sum itself."""
        h = ConvNorm(self.width, stride=self.stride, compute=self.compute, name="conv1")(x, train=train)
        h = ConvNorm(self.width, compute=self.compute, name="conv2")(nn.relu(h), train=train)
        return h + shortcut(x, self.width, self.stride, self.compute, train=train)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, the last four times as wide, beside a shortcut as in `BasicBlock`.

    The stride is the 3x3 convolution's.

    Attributes:
      width: channels of the 3x3 convolution, a quarter of those out.
      stride: of the 3x3 convolution and the shortcut.
      compute: element type and form.
    """

    width: int
    stride: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"], *, train: bool) -> Float[Array, "b i j o"]:
        """Returns the sum of branch and shortcut, before the ReLU."""
        wide = 4 * self.width
        h = ConvNorm(self.width, size=1, compute=self.compute, name="conv1")(x, train=train)
        h = ConvNorm(self.width, stride=self.stride, compute=self.compute, name="conv2")(nn.relu(h), train=train)
        h = ConvNorm(wide, size=1, compute=self.compute, name="conv3")(nn.relu(h), train=train)
        return h + shortcut(x, wide, self.stride, self.compute, train=train)


def shortcut(
    x: Float[Array, "b h w k"], width: int, stride: int, compute: Compute, *, train: bool
) -> Float[Array, "b i j o"]:
    """Returns `x`, projected by the calling module's child `shortcut` if its width or stride demands it."""
    if stride == 1 and x.shape[-1] == width:
        return x
    return ConvNorm(width, size=1, stride=stride, compute=compute, name="shortcut")(x, train=train)


class ResNet(nn.Module):
    """A stem and stages of residual blocks, each stage but the first halving the side.

    The stem is a 3x3 convolution of stride 1, or ImageNet's: 7x7 of stride 2, and max-pooling of 3x3 positions at
    stride 2 behind its ReLU. Features are the stem's output, before any pooling, and each stage's, after the ReLU; the
    last one is also the map whose mean is taken.
    Convolutions start normal with variance 2 / fan-out, the classifier as PyTorch's linear layer.

    Attributes:
      num_classes: c.
      stem: channels of the stem.
      widths: of the blocks of each stage.
      blocks: number of blocks of each stage.
      bottleneck: whether blocks are `Bottleneck`, else `BasicBlock`.
      imagenet: whether the stem is ImageNet's.
      compute: element type and form.
    """

    foldable: ClassVar[bool] = True
    num_classes: int
    stem: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    bottleneck: bool = False
    imagenet: bool = False
    compute: Compute = Compute()

    def preact_norms(self) -> tuple[str, ...]:
        """Returns the path of the BatchNorm that ends the branch of each stage's last block; see `adapter.linen`."""
        last = "conv3" if self.bottleneck else "conv2"
        return ("stem/norm", *(f"stage{stage}_block{n}/{last}/norm" for stage, n in enumerate(self.blocks, 1)))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w k"], *, train: bool, probes: Mapping[str, Array]) -> Outputs:
        """Returns the outputs for normalised images of any number of channels."""
        taps = Taps(probes)
        block = Bottleneck if self.bottleneck else BasicBlock
        size, stride = (7, 2) if self.imagenet else (3, 1)
        preact = ConvNorm(self.stem, size, stride, compute=self.compute, name="stem")(images, train=train)
        x = taps(nn.relu(preact), preact)
        if self.imagenet:
            x = max_pool(x, 3, stride=2, padding=1, form=self.compute.conv)
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True), 1):
            for i in range(blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                preact = block(width, stride, self.compute, name=f"stage{stage}_block{i + 1}")(x, train=train)
                x = nn.relu(preact)
            x = taps(x, preact)
        return classify(x, taps, self.num_classes)


def _register(name: str, depth: int, stem: int, widths: tuple[int, int, int]) -> None:
    @register(name)
    def build(num_classes: int, dtype: Any, conv: str) -> ResNet:
        return ResNet(num_classes, stem, widths, ((depth - 2) // 6,) * 3, compute=Compute(dtype, conv))


for _depth in (8, 20, 32, 56, 110):
    _register(f"resnet{_depth}", _depth, 16, (16, 32, 64))
# For devices that hold a kilobyte or two; named as mobilenetv2_half is
_register("resnet8_eighth", 8, 2, (2, 4, 8))
for _depth in (8, 32):
    _register(f"resnet{_depth}x4", _depth, 32, (64, 128, 256))
