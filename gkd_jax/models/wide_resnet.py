"""Wide residual networks: wrn_16_2, wrn_40_1, wrn_40_2.

Zagoruyko & Komodakis, "Wide residual networks" (2016, arXiv 1605.07146), as in RepDistiller and mdistiller, without
dropout. Blocks are pre-activated: BatchNorm and ReLU stand before the convolutions, so a stage ends in a sum.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from gkd_jax.models.layers import BatchNorm, Compute, Conv, ConvNorm, Taps, classify
from gkd_jax.models.registry import register
from gkd_jax.outputs import Outputs


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, 3x3, BatchNorm, ReLU, 3x3, beside a shortcut.

    Where the width changes the shortcut is a bare 1x1 convolution that, like the branch, reads the activated input;
    otherwise it is the raw input.

    Attributes:
      width: channels out.
      stride: of the first convolution and the shortcut.
      compute: element type and form.
    """

    width: int
    stride: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Returns the block's output [b i j o], and its input after BatchNorm and before ReLU [b h w k]."""
        preact = BatchNorm(self.compute, name="norm1")(x, train=train)
        active = nn.relu(preact)
        h = ConvNorm(self.width, stride=self.stride, compute=self.compute, name="conv1")(active, train=train)
        h = Conv(self.width, compute=self.compute, name="conv2")(nn.relu(h))
        if x.shape[-1] != self.width:
            x = Conv(self.width, size=1, stride=self.stride, compute=self.compute, name="shortcut")(active)
        return x + h, preact


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages of pre-activated blocks, BatchNorm and ReLU.

    Features are the stem's and the stages' raw sums, the last one before the final BatchNorm and ReLU, which give the
    map that is pooled. `preact[i]` is feature i behind the BatchNorm that reads it first, before that one's ReLU.
    Convolutions start normal with variance 2 / fan-out; the classifier as PyTorch's linear layer, its bias at zero.

    Attributes:
      num_classes: c.
      blocks: of each stage, (depth - 4) / 6.
      widen: factor of the stages' widths 16, 32, 64.
      compute: element type and form.
    """

    foldable: ClassVar[bool] = True
    num_classes: int
    blocks: int
    widen: int
    compute: Compute = Compute()

    def preact_norms(self) -> tuple[str, ...]:
        """Returns the path of the BatchNorm that reads each feature first; see `adapter.linen`."""
        return (*(f"stage{stage}_block1/norm1" for stage in (1, 2, 3)), "norm")

    @nn.compact
    def __call__(self, images: Float[Array, "b h w k"], *, train: bool, probes: Mapping[str, Array]) -> Outputs:
        """Returns the outputs for normalised images of any number of channels."""
        taps = Taps(probes)
        preacts = []
        x = taps(Conv(16, compute=self.compute, name="stem")(images))
        for stage in (1, 2, 3):
            width = 16 * self.widen * 2 ** (stage - 1)
            for i in range(self.blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                x, preact = PreActBlock(width, stride, self.compute, name=f"stage{stage}_block{i + 1}")(x, train=train)
                if i == 0:
                    preacts.append(preact)
            x = taps(x)
        preacts.append(BatchNorm(self.compute, name="norm")(x, train=train))
        outputs = classify(nn.relu(preacts[-1]), taps, self.num_classes, bias_init=nn.initializers.zeros)
        return outputs._replace(preact=tuple(preacts))


def _register(depth: int, widen: int) -> None:
    @register(f"wrn_{depth}_{widen}")
    def build(num_classes: int, dtype: Any, conv: str) -> WideResNet:
        return WideResNet(num_classes, (depth - 4) // 6, widen, Compute(dtype, conv))


for _depth, _widen in ((16, 2), (40, 1), (40, 2)):
    _register(_depth, _widen)
