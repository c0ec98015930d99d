"""The networks of `gkd_jax.models` as PyTorch modules, laid out as in RepDistiller and mdistiller.

Each takes normalised images [b k h w] and returns logits [b c] and the pooled embedding [b d]. Initialisation is that
of gkd_jax: convolutions normal with variance 2 / fan-out, linear layers as PyTorch's unless a class says otherwise.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)


def _pool(x: Tensor) -> Tensor:
    return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of branch and shortcut after the ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, the last four times as wide, beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of branch and shortcut after the ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem of stride 1 and stages of residual blocks, each stage but the first halving the side.

    Args:
      num_classes: c.
      stem: channels of the stem.
      widths: of the blocks of each stage.
      blocks: number of blocks of each stage.
      block: `BasicBlock` or `Bottleneck`.
    """

    def __init__(
        self,
        num_classes: int,
        stem: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
    ):
        super().__init__()
        self.conv1 = _conv(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        stages, inputs = [], stem
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers = []
            for i in range(count):
                layers.append(block(inputs, width, 2 if stage > 0 and i == 0 else 1))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits and embedding."""
        embedding = _pool(self.stages(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(embedding), embedding


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, 3x3, BatchNorm, ReLU, 3x3; where the width changes, a bare 1x1 reads the activated input."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width)
        self.shortcut = None if inputs == width else _conv(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of branch and shortcut."""
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages of pre-activated blocks, BatchNorm and ReLU; the last bias starts at 0.

    Args:
      num_classes: c.
      blocks: of each stage.
      widen: factor of the stages' widths 16, 32, 64.
    """

    def __init__(self, num_classes: int, blocks: int, widen: int):
        super().__init__()
        self.conv1 = _conv(3, 16)
        stages, inputs = [], 16
        for stage in range(3):
            layers = []
            for i in range(blocks):
                layers.append(PreActBlock(inputs, 16 * widen * 2**stage, 2 if stage > 0 and i == 0 else 1))
                inputs = 16 * widen * 2**stage
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, num_classes)
        _initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits and embedding."""
        embedding = _pool(F.relu(self.bn(self.stages(self.conv1(x)))))
        return self.fc(embedding), embedding


class InvertedResidual(nn.Module):
    """A 1x1 convolution that expands, a depthwise 3x3, and a linear 1x1; a shortcut where shapes agree."""

    def __init__(self, inputs: int, width: int, expansion: int, stride: int):
        super().__init__()
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == width
        self.layers = nn.Sequential(
            _conv(inputs, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            _conv(inner, inner, 3, stride, inner),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            _conv(inner, width, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, which no ReLU follows."""
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """A 3x3 stem of stride 2, seven groups of inverted residuals and a 1x1 head of 1280 channels.

    The classifier starts normal with standard deviation 0.01 and a bias of 0.

    Args:
      num_classes: c.
      width: factor of all widths but the head's.
    """

    # Expansion, channels, blocks, stride of the first block
    groups = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, num_classes: int, width: float):
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = _conv(3, inputs, 3, 2)
        self.bn1 = nn.BatchNorm2d(inputs)
        groups = []
        for expansion, channels, blocks, stride in self.groups:
            layers, outputs = [], int(channels * width)
            for i in range(blocks):
                layers.append(InvertedResidual(inputs, outputs, expansion, stride if i == 0 else 1))
                inputs = outputs
            groups.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*groups)
        self.conv2 = _conv(inputs, 1280, 1)
        self.bn2 = nn.BatchNorm2d(1280)
        self.fc = nn.Linear(1280, num_classes)
        _initialise(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits and embedding."""
        x = self.stages(F.relu(self.bn1(self.conv1(x))))
        embedding = _pool(F.relu(self.bn2(self.conv2(x))))
        return self.fc(embedding), embedding


_IMAGENET = (64, 128, 256, 512)

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": lambda c: ResNet(c, 16, (16, 32, 64), (1, 1, 1)),
    "resnet20": lambda c: ResNet(c, 16, (16, 32, 64), (3, 3, 3)),
    "resnet32": lambda c: ResNet(c, 16, (16, 32, 64), (5, 5, 5)),
    "resnet56": lambda c: ResNet(c, 16, (16, 32, 64), (9, 9, 9)),
    "resnet110": lambda c: ResNet(c, 16, (16, 32, 64), (18, 18, 18)),
    "resnet8x4": lambda c: ResNet(c, 32, (64, 128, 256), (1, 1, 1)),
    "resnet32x4": lambda c: ResNet(c, 32, (64, 128, 256), (5, 5, 5)),
    "resnet18": lambda c: ResNet(c, 64, _IMAGENET, (2, 2, 2, 2)),
    "resnet50": lambda c: ResNet(c, 64, _IMAGENET, (3, 4, 6, 3), Bottleneck),
    "wrn_16_2": lambda c: WideResNet(c, 2, 2),
    "wrn_40_1": lambda c: WideResNet(c, 6, 1),
    "wrn_40_2": lambda c: WideResNet(c, 6, 2),
    "mobilenetv2": lambda c: MobileNetV2(c, 1.0),
    "mobilenetv2_half": lambda c: MobileNetV2(c, 0.5),
}


def create(name: str, num_classes: int) -> nn.Module:
    """Returns the network `name`, one of `NETWORKS`, in float32 on the CPU.

    Raises:
      ValueError: if there is none of that name.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
    return NETWORKS[name](num_classes)
