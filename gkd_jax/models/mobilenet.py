"""MobileNetV2 for small images: mobilenetv2, and mobilenetv2_half at half its width.

Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks" (2018, arXiv 1801.04381), as RepDistiller's and
mdistiller's `mobile_half`: total stride 16, widths cut by `int` without rounding to multiples of 8, ReLU and not ReLU6,
an expansion convolution also where the expansion is 1, a head of 1280 channels at either width, no dropout.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from gkd_jax.models.layers import Compute, ConvNorm, Taps, classify
from gkd_jax.models.registry import register
from gkd_jax.outputs import Outputs

# Expansion, channels, blocks, stride of the first block, and whether the group ends a stage.
_GROUPS = (
    (1, 16, 1, 1, False),
    (6, 24, 2, 1, True),
    (6, 32, 3, 2, True),
    (6, 64, 4, 2, False),
    (6, 96, 3, 1, True),
    (6, 160, 3, 2, False),
    (6, 320, 1, 1, True),
)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that expands, a depthwise 3x3, and a linear 1x1 that narrows; a shortcut where shapes agree.

    Attributes:
      width: channels out.
      expansion: of the channels in.
      stride: of the depthwise convolution.
      compute: element type and form.
    """

    width: int
    expansion: int
    stride: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"], *, train: bool) -> Float[Array, "b i j o"]:
        """Returns the block's output, which no ReLU follows."""
        inner = x.shape[-1] * self.expansion
        h = ConvNorm(inner, size=1, compute=self.compute, name="expand")(x, train=train)
        h = ConvNorm(inner, stride=self.stride, groups=inner, compute=self.compute, name="depthwise")(
            nn.relu(h), train=train
        )
        h = ConvNorm(self.width, size=1, compute=self.compute, name="project")(nn.relu(h), train=train)
        return x + h if self.stride == 1 and x.shape[-1] == self.width else h


class MobileNetV2(nn.Module):
    """A 3x3 stem of stride 2, seven groups of inverted residuals, and a 1x1 head.

    Features are the stem's output and those of groups 2, 3, 5 and 7, which end linearly: their `preact` is the feature
    itself. The head's map, 1280 wide, is the one that is pooled. Convolutions start normal with variance 2 / fan-out
    (size² · channels out, depthwise too), the classifier normal with standard deviation 0.01 and bias zero.

    Attributes:
      num_classes: c.
      width: factor of all widths but the head's.
      compute: element type and form.
    """

    foldable: ClassVar[bool] = True
    num_classes: int
    width: float = 1.0
    compute: Compute = Compute()

    def preact_norms(self) -> tuple[str, ...]:
        """Returns the path of the BatchNorm at the end of each stage's last block; see `adapter.linen`."""
        ends = [f"group{i}_block{blocks}" for i, (_, _, blocks, _, ends_stage) in enumerate(_GROUPS, 1) if ends_stage]
        return ("stem/norm", *(f"{end}/project/norm" for end in ends))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w k"], *, train: bool, probes: Mapping[str, Array]) -> Outputs:
        """Returns the outputs for normalised images of any number of channels."""
        taps = Taps(probes)
        preact = ConvNorm(int(32 * self.width), stride=2, compute=self.compute, name="stem")(images, train=train)
        x = taps(nn.relu(preact), preact)
        for group, (expansion, channels, blocks, first, ends_stage) in enumerate(_GROUPS, 1):
            for i in range(blocks):
                block = InvertedResidual(
                    int(channels * self.width),
                    expansion,
                    first if i == 0 else 1,
                    self.compute,
                    name=f"group{group}_block{i + 1}",
                )
                x = block(x, train=train)
            if ends_stage:
                x = taps(x)
        final = nn.relu(ConvNorm(1280, size=1, compute=self.compute, name="head")(x, train=train))
        return classify(final, taps, self.num_classes, nn.initializers.normal(0.01), nn.initializers.zeros)


@register("mobilenetv2")
def mobilenetv2(num_classes: int, dtype: Any, conv: str) -> MobileNetV2:
    """Returns the network at full width."""
    return MobileNetV2(num_classes, 1.0, Compute(dtype, conv))


@register("mobilenetv2_half")
def mobilenetv2_half(num_classes: int, dtype: Any, conv: str) -> MobileNetV2:
    """Returns the network at half its width."""
    return MobileNetV2(num_classes, 0.5, Compute(dtype, conv))
