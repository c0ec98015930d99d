"""Plain stacks of 3x3 convolutions with max-pooling between them: vgg8, vgg13.

Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition" (2015, arXiv 1409.1556),
table 1, as RepDistiller's and mdistiller's `vgg8_bn` and `vgg13_bn`: BatchNorm behind each convolution, which keeps its
bias, and one linear layer on the mean of the last map in place of the paper's three.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from gkd_jax.errors import UserError
from gkd_jax.models.layers import Compute, ConvNorm, Taps, classify
from gkd_jax.models.pooling import max_pool
from gkd_jax.models.registry import register
from gkd_jax.outputs import Outputs

_WIDTHS = (64, 128, 256, 512, 512)
_LEAST = 8  # rows and columns of images, which three poolings halve
_LARGE = 64  # rows of images that are pooled once more; mdistiller does so for Tiny-ImageNet


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each with BatchNorm and ReLU, and max-pooling behind the first three stages.

    Images of 64 rows or more are pooled behind the fourth stage too. Features are each stage's output after the ReLU
    and before the pooling; the last one is also the map whose mean the classifier reads. There is no stem: the first
    stage is feature 0. Convolutions start normal with variance 2 / fan-out, the classifier normal with deviation 0.01;
    biases start at zero.

    Attributes:
      num_classes: c.
      widths: channels of each stage.
      depth: convolutions of each stage.
      compute: element type and form.
    """

    foldable: ClassVar[bool] = True
    num_classes: int
    widths: tuple[int, ...]
    depth: tuple[int, ...]
    compute: Compute = Compute()

    def preact_norms(self) -> tuple[str, ...]:
        """Returns the path of the BatchNorm behind each stage's last convolution; see `adapter.linen`."""
        return tuple(f"stage{stage}_conv{depth}/norm" for stage, depth in enumerate(self.depth, 1))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w k"], *, train: bool, probes: Mapping[str, Array]) -> Outputs:
        """Returns the outputs for normalised images of any number of channels.

        Raises:
          UserError: if the images are smaller than 8x8, which leaves nothing to read.
        """
        height, width = images.shape[1:3]
        if min(height, width) < _LEAST:
            raise UserError(f"a VGG network needs images of {_LEAST}x{_LEAST} or more, not {height}x{width}")
        taps = Taps(probes)
        pooled = (1, 2, 3, 4) if height >= _LARGE else (1, 2, 3)
        x = images
        for stage, (channels, depth) in enumerate(zip(self.widths, self.depth, strict=True), 1):
            for i in range(depth):
                preact = ConvNorm(channels, use_bias=True, compute=self.compute, name=f"stage{stage}_conv{i + 1}")(
                    x, train=train
                )
                x = nn.relu(preact)
            x = taps(x, preact)
            if stage in pooled:
                x = max_pool(x, form=self.compute.conv)
        return classify(x, taps, self.num_classes, nn.initializers.normal(0.01), nn.initializers.zeros)


@register("vgg8")
def vgg8(num_classes: int, dtype: Any, conv: str) -> VGG:
    """Returns one convolution a stage."""
    return VGG(num_classes, _WIDTHS, (1,) * 5, Compute(dtype, conv))


@register("vgg13")
def vgg13(num_classes: int, dtype: Any, conv: str) -> VGG:
    """Returns two convolutions a stage."""
    return VGG(num_classes, _WIDTHS, (2,) * 5, Compute(dtype, conv))
