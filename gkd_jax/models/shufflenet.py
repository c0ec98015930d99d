"""Pointwise and depthwise convolutions, and groups of channels mixed by shuffling: shufflenetv1, shufflenetv2.

Zhang et al., "ShuffleNet: an extremely efficient convolutional neural network for mobile devices" (2018, arXiv
1707.01083), figure 2, with three groups; Ma et al., "ShuffleNet V2: practical guidelines for efficient CNN architecture
design" (2018, arXiv 1807.11164), figure 3 (c, d), at width 1. As RepDistiller's and mdistiller's `ShuffleV1` and
`ShuffleV2`: a 1x1 stem of 24 channels and stride 1, no max-pooling, and in the first a ReLU behind the
depthwise convolution. Convolutions and classifier start as PyTorch's do.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gkd_jax.models.layers import Compute, ConvNorm, Taps, classify, linear_kernel_init
from gkd_jax.models.registry import register
from gkd_jax.outputs import Outputs


def shuffle(x: Float[Array, "b h w k"], groups: int) -> Float[Array, "b h w k"]:
    """Returns the channels dealt out: the first of each of the `groups` equal groups, then the second of each, ...

    `groups` must divide the channels.
    """
    split = x.reshape(*x.shape[:3], groups, x.shape[3] // groups)
    return split.swapaxes(3, 4).reshape(x.shape)


class GroupedUnit(nn.Module):
    """ShuffleNet's unit: a grouped 1x1 convolution, a shuffle, a depthwise 3x3 and a grouped 1x1, beside a shortcut.

    With stride 1 branch and input are added; with stride 2 the branch is concatenated with the
    input's mean over 3x3 positions, those beyond the edges counting as zeros.

    Attributes:
      width: channels out; for a stride of 2, the input's channels and the branch's. The branch's convolutions between
        have a quarter of the branch's.
      stride: of the depthwise convolution.
      groups_in: groups of the first 1x1 convolution and of the shuffle.
      groups: of the last 1x1 convolution.
      compute: element type and form.
    """

    width: int
    stride: int
    groups_in: int
    groups: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"], *, train: bool) -> Float[Array, "b i j o"]:
        """Returns branch and shortcut joined, before the ReLU."""
        out = self.width - x.shape[3] if self.stride == 2 else self.width
        inner = out // 4
        h = _conv(inner, 1, self.compute, "compress", groups=self.groups_in)(x, train=train)
        h = shuffle(nn.relu(h), self.groups_in)
        h = _conv(inner, 3, self.compute, "depthwise", stride=self.stride, groups=inner)(h, train=train)
        h = _conv(out, 1, self.compute, "expand", groups=self.groups)(nn.relu(h), train=train)
        if self.stride == 1:
            return h + x
        # In float32: bfloat16 would lose in a sum of nine
        mean = nn.avg_pool(x.astype(jnp.float32), (3, 3), (2, 2), ((1, 1), (1, 1)))
        return jnp.concatenate([h, mean.astype(h.dtype)], 3)


class ShuffleNetV1(nn.Module):
    """A 1x1 stem and stages of grouped units, the first of each stage halving the side.

    Features are the stem's and each stage's output after the ReLU; the last one is also the map that is pooled. The
    first unit of all reads the stem's few channels without groups.

    Attributes:
      num_classes: c.
      stem: channels of the stem.
      widths: channels of each stage.
      blocks: units of each stage.
      groups: of the 1x1 convolutions.
      compute: element type and form.
    """

    foldable: ClassVar[bool] = True
    num_classes: int
    stem: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    groups: int = 3
    compute: Compute = Compute()

    def preact_norms(self) -> tuple[str | None, ...]:
        """Returns the path of the BatchNorm at the end of the branch of each stage's last unit; see `adapter.linen`.

        A stage of one unit ends in a concatenation, of which the BatchNorm has seen but a part: it has none.
        """
        stages = [f"stage{i}_block{n}/expand/norm" if n > 1 else None for i, n in enumerate(self.blocks, 1)]
        return ("stem/norm", *stages)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w k"], *, train: bool, probes: Mapping[str, Array]) -> Outputs:
        """Returns the outputs for normalised images of any number of channels."""
        taps = Taps(probes)
        preact = _conv(self.stem, 1, self.compute, "stem")(images, train=train)
        x = taps(nn.relu(preact), preact)
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True), 1):
            for i in range(blocks):
                unit = GroupedUnit(
                    width,
                    2 if i == 0 else 1,
                    1 if stage == 1 and i == 0 else self.groups,
                    self.groups,
                    self.compute,
                    name=f"stage{stage}_block{i + 1}",
                )
                preact = unit(x, train=train)
                x = nn.relu(preact)
            x = taps(x, preact)
        return classify(x, taps, self.num_classes)


class SplitUnit(nn.Module):
    """ShuffleNet V2's unit: two halves side by side, each of `width / 2` channels, concatenated and shuffled.

    One half is a 1x1, a depthwise 3x3 without ReLU and a 1x1 convolution. With stride 1 it reads the second half of the
    input, and the first passes as it is; with stride 2 it reads all of the input, and so does the other half, a
    depthwise 3x3 and a 1x1 convolution.

    Attributes:
      width: channels out.
      stride: of the depthwise convolutions.
      compute: element type and form.
    """

    width: int
    stride: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"], *, train: bool) -> Float[Array, "b i j o"]:
        """Returns the halves shuffled, before the ReLU; that changes nothing in a half that has passed one before."""
        half = self.width // 2
        if self.stride == 1:
            kept, x = x[..., :half], x[..., half:]
        else:
            kept = _conv(x.shape[3], 3, self.compute, "shortcut_depthwise", stride=2, groups=x.shape[3])(x, train=train)
            kept = _conv(half, 1, self.compute, "shortcut")(kept, train=train)
        h = _conv(half, 1, self.compute, "conv1")(x, train=train)
        h = _conv(half, 3, self.compute, "depthwise", stride=self.stride, groups=half)(nn.relu(h), train=train)
        h = _conv(half, 1, self.compute, "conv2")(h, train=train)
        return shuffle(jnp.concatenate([kept, h], 3), 2)


class ShuffleNetV2(nn.Module):
    """A 1x1 stem, stages of split units, the first of each stage halving the side, and a 1x1 head.

    Features are the stem's and each stage's output after the ReLU. `preact` has their channels' order, shuffled;
    mdistiller's has the order before that. Only every other channel of it, those with odd numbers, comes out of a
    BatchNorm in the stage's last unit; the others have passed a ReLU already.

    Attributes:
      num_classes: c.
      stem: channels of the stem.
      widths: channels of each stage.
      blocks: units of each stage.
      head: channels of the map that is pooled.
      compute: element type and form.
    """

    foldable: ClassVar[bool] = True
    num_classes: int
    stem: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    head: int
    compute: Compute = Compute()

    def preact_norms(self) -> tuple[str | None, ...]:
        """Returns the path of the stem's BatchNorm, and none for the stages; see `adapter.linen`."""
        return ("stem/norm", *(None for _ in self.blocks))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w k"], *, train: bool, probes: Mapping[str, Array]) -> Outputs:
        """Returns the outputs for normalised images of any number of channels."""
        taps = Taps(probes)
        preact = _conv(self.stem, 1, self.compute, "stem")(images, train=train)
        x = taps(nn.relu(preact), preact)
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True), 1):
            for i in range(blocks):
                unit = SplitUnit(width, 2 if i == 0 else 1, self.compute, name=f"stage{stage}_block{i + 1}")
                preact = unit(x, train=train)
                x = nn.relu(preact)
            x = taps(x, preact)
        final = nn.relu(_conv(self.head, 1, self.compute, "head")(x, train=train))
        return classify(final, taps, self.num_classes)


def _conv(features: int, size: int, compute: Compute, name: str, *, stride: int = 1, groups: int = 1) -> ConvNorm:
    return ConvNorm(features, size, stride, groups, kernel_init=linear_kernel_init, compute=compute, name=name)


@register("shufflenetv1")
def shufflenetv1(num_classes: int, dtype: Any, conv: str) -> ShuffleNetV1:
    """Returns the network of three groups."""
    return ShuffleNetV1(num_classes, 24, (240, 480, 960), (4, 8, 4), compute=Compute(dtype, conv))


@register("shufflenetv2")
def shufflenetv2(num_classes: int, dtype: Any, conv: str) -> ShuffleNetV2:
    """Returns the network at width 1."""
    return ShuffleNetV2(num_classes, 24, (116, 232, 464), (4, 8, 4), 1024, Compute(dtype, conv))
