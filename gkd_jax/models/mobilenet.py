"""MobileNetV2: mobilenetv2 and mobilenetv2_half for small images, mobilenetv2_imagenet_stem as on ImageNet.

Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks" (2018, arXiv 1801.04381). For small images they
are RepDistiller's and mdistiller's `mobile_half`: total stride 16, widths cut by `int` without rounding to multiples of
8, ReLU and not ReLU6, an expansion convolution also where the expansion is 1, a head of 1280 channels at either width,
no dropout. That of ImageNet is the paper's and torchvision's at full width, but for the dropout before the classifier:
total stride 32, ReLU6, and no convolution where there is nothing to expand.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gkd_jax.models.layers import Compute, ConvNorm, Taps, classify
from gkd_jax.models.registry import register
from gkd_jax.outputs import Outputs


class Group(NamedTuple):
    """Blocks of one width, of which the first may have another stride than 1: one on small images, one on ImageNet."""

    expansion: int
    width: int
    blocks: int
    stride: int
    imagenet_stride: int
    ends_stage: bool


GROUPS = (
    Group(1, 16, 1, 1, 1, False),
    Group(6, 24, 2, 1, 2, True),
    Group(6, 32, 3, 2, 2, True),
    Group(6, 64, 4, 2, 2, False),
    Group(6, 96, 3, 1, 1, True),
    Group(6, 160, 3, 2, 2, False),
    Group(6, 320, 1, 1, 1, True),
)


def activation(x: Array, *, imagenet: bool) -> Array:
    """Returns ReLU of `x`, on ImageNet ReLU6 with PyTorch's derivative: 0 at 0 and at 6. NaN stays NaN."""
    x = nn.relu(x)
    return jnp.where(x >= 6, jnp.asarray(6, x.dtype), x) if imagenet else x


class InvertedResidual(nn.Module):
    """A 1x1 convolution that expands, a depthwise 3x3, and a linear 1x1 that narrows; a shortcut where shapes agree.

    Attributes:
      width: channels out.
      expansion: of the channels in.
      stride: of the depthwise convolution.
      imagenet: whether it is ImageNet's: ReLU6, and nothing expands by 1.
      compute: element type and form.
    """

    width: int
    expansion: int
    stride: int
    imagenet: bool
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"], *, train: bool) -> Float[Array, "b i j o"]:
        """Returns the block's output, which no ReLU follows."""
        inner, h = x.shape[-1] * self.expansion, x
        if self.expansion > 1 or not self.imagenet:
            h = ConvNorm(inner, size=1, compute=self.compute, name="expand")(h, train=train)
            h = activation(h, imagenet=self.imagenet)
        depthwise = ConvNorm(inner, stride=self.stride, groups=inner, compute=self.compute, name="depthwise")
        h = activation(depthwise(h, train=train), imagenet=self.imagenet)
        h = ConvNorm(self.width, size=1, compute=self.compute, name="project")(h, train=train)
        return x + h if self.stride == 1 and x.shape[-1] == self.width else h


class MobileNetV2(nn.Module):
    """A 3x3 stem of stride 2, seven groups of inverted residuals, and a 1x1 head.

    Features are the stem's output and those of groups 2, 3, 5 and 7, which end linearly: their `preact` is the feature
    itself. The head's map, 1280 wide, is the one that is pooled. Convolutions start normal with variance 2 / fan-out
    (size² · channels out, depthwise too), the classifier normal with standard deviation 0.01 and bias zero.

    Attributes:
      num_classes: c.
      width: factor of all widths but the head's.
      imagenet: whether it is ImageNet's, see the module.
      compute: element type and form.
    """

    foldable: ClassVar[bool] = True
    num_classes: int
    width: float = 1.0
    imagenet: bool = False
    compute: Compute = Compute()

    def preact_norms(self) -> tuple[str, ...]:
        """Returns the path of the BatchNorm at the end of each stage's last block; see `adapter.linen`."""
        ends = [f"group{i}_block{group.blocks}" for i, group in enumerate(GROUPS, 1) if group.ends_stage]
        return ("stem/norm", *(f"{end}/project/norm" for end in ends))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w k"], *, train: bool, probes: Mapping[str, Array]) -> Outputs:
        """Returns the outputs for normalised images of any number of channels."""
        taps = Taps(probes)
        preact = ConvNorm(int(32 * self.width), stride=2, compute=self.compute, name="stem")(images, train=train)
        x = taps(activation(preact, imagenet=self.imagenet), preact)
        for i, group in enumerate(GROUPS, 1):
            first = group.imagenet_stride if self.imagenet else group.stride
            for block in range(group.blocks):
                x = InvertedResidual(
                    int(group.width * self.width),
                    group.expansion,
                    1 if block else first,
                    self.imagenet,
                    self.compute,
                    name=f"group{i}_block{block + 1}",
                )(x, train=train)
            if group.ends_stage:
                x = taps(x)
        head = ConvNorm(1280, size=1, compute=self.compute, name="head")(x, train=train)
        final = activation(head, imagenet=self.imagenet)
        return classify(final, taps, self.num_classes, nn.initializers.normal(0.01), nn.initializers.zeros)


def _register(name: str, width: float, *, imagenet: bool = False) -> None:
    @register(name)
    def build(num_classes: int, dtype: Any, conv: str) -> MobileNetV2:
        return MobileNetV2(num_classes, width, imagenet, Compute(dtype, conv))


_register("mobilenetv2", 1.0)
_register("mobilenetv2_half", 0.5)
_register("mobilenetv2_imagenet_stem", 1.0, imagenet=True)
