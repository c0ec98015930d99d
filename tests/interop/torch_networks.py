"""The networks as PyTorch modules, written for the tests, with the names of RepDistiller's and mdistiller's layers.

Those with ImageNet's stem have torchvision's. `modern=True` names shortcut and classifier of a residual network as
mdistiller's ResNet18 to ResNet50 do.
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv(i, o, size, stride=1, groups=1, bias=False):
    return nn.Conv2d(i, o, size, stride, padding=size // 2, groups=groups, bias=bias)


def pooled(x):
    return x.mean((2, 3))


def shuffled(x, groups):
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Residual(nn.Module):
    def __init__(self, i, width, stride, bottleneck, modern):
        super().__init__()
        sizes = (1, 3, 1) if bottleneck else (3, 3)
        o = width * (4 if bottleneck else 1)
        widths = (width,) * (len(sizes) - 1) + (o,)
        strided = 1 if bottleneck else 0
        self.depth, before = len(sizes), i
        for n, (size, after) in enumerate(zip(sizes, widths, strict=True)):
            setattr(self, f"conv{n + 1}", conv(before, after, size, stride if n == strided else 1))
            setattr(self, f"bn{n + 1}", nn.BatchNorm2d(after))
            before = after
        self.name = "shortcut" if modern else "downsample"
        projected = stride != 1 or i != o
        setattr(self, self.name, nn.Sequential(conv(i, o, 1, stride), nn.BatchNorm2d(o)) if projected else None)

    def forward(self, x):
        h = x
        for n in range(1, self.depth + 1):
            h = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(h))
            h = F.relu(h) if n < self.depth else h
        shortcut = getattr(self, self.name)
        return F.relu(h + (x if shortcut is None else shortcut(x)))


class ResNet(nn.Module):
    def __init__(self, classes, stem, widths, blocks, *, bottleneck=False, modern=False, imagenet=False):
        super().__init__()
        self.conv1, self.bn1 = conv(3, stem, 7, 2) if imagenet else conv(3, stem, 3), nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        i, self.stages = stem, len(widths)
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            units = []
            for n in range(count):
                units.append(Residual(i, width, 2 if stage and not n else 1, bottleneck, modern))
                i = width * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*units))
        self.name = "linear" if modern else "fc"
        setattr(self, self.name, nn.Linear(i, classes))

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return getattr(self, self.name)(pooled(x))


class Activated(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), conv(i, o, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), conv(o, o, 3)
        self.convShortcut = None if i == o else conv(i, o, 1, stride)

    def forward(self, x):
        active = F.relu(self.bn1(x))
        h = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return h + (x if self.convShortcut is None else self.convShortcut(active))


class Layered(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.layer = nn.Sequential(*units)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, classes, depth, widen):
        super().__init__()
        self.conv1, i = conv(3, 16, 3), 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            units = []
            for n in range((depth - 4) // 6):
                units.append(Activated(i, width, 2 if stage and not n else 1))
                i = width
            setattr(self, f"block{stage + 1}", Layered(units))
        self.bn1, self.fc = nn.BatchNorm2d(i), nn.Linear(i, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(pooled(F.relu(self.bn1(x))))


class VGG(nn.Module):
    def __init__(self, classes, depth):
        super().__init__()
        i = 3
        for stage, width in enumerate((64, 128, 256, 512, 512)):
            layers = []
            for _ in range(depth):
                layers += [conv(i, width, 3, bias=True), nn.BatchNorm2d(width), nn.ReLU()]
                i = width
            setattr(self, f"block{stage}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(i, classes)

    def forward(self, x):
        for stage in range(5):
            x = F.relu(getattr(self, f"block{stage}")(x))
            x = F.max_pool2d(x, 2) if stage < 3 else x
        return self.classifier(pooled(x))


class Inverted(nn.Module):
    def __init__(self, i, o, stride, expansion):
        super().__init__()
        inner, self.residual = i * expansion, stride == 1 and i == o
        expand = [conv(i, inner, 1), nn.BatchNorm2d(inner), nn.ReLU()]
        depthwise = [conv(inner, inner, 3, stride, inner), nn.BatchNorm2d(inner), nn.ReLU()]
        self.conv = nn.Sequential(*expand, *depthwise, conv(inner, o, 1), nn.BatchNorm2d(o))

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        i = int(32 * width)
        self.conv1 = nn.Sequential(conv(3, i, 3, 2), nn.BatchNorm2d(i), nn.ReLU())
        self.blocks = nn.ModuleList()
        plan = [
            (1, 16, 1, 1),
            (6, 24, 2, 1),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ]
        for expansion, channels, count, stride in plan:
            units = []
            for n in range(count):
                units.append(Inverted(i, int(channels * width), 1 if n else stride, expansion))
                i = int(channels * width)
            self.blocks.append(nn.Sequential(*units))
        self.conv2 = nn.Sequential(conv(i, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(1280, classes))

    def forward(self, x):
        x = self.conv1(x)
        for group in self.blocks:
            x = group(x)
        return self.classifier(pooled(self.conv2(x)))


def activated(i, o, size, stride=1, groups=1):
    return nn.Sequential(conv(i, o, size, stride, groups), nn.BatchNorm2d(o), nn.ReLU6())


class ImageNetInverted(nn.Module):
    def __init__(self, i, o, stride, expansion):
        super().__init__()
        inner, self.residual = i * expansion, stride == 1 and i == o
        layers = [activated(i, inner, 1)] if expansion != 1 else []
        layers += [activated(inner, inner, 3, stride, inner), conv(inner, o, 1), nn.BatchNorm2d(o)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class ImageNetMobileNetV2(nn.Module):
    def __init__(self, classes):
        super().__init__()
        layers, i = [activated(3, 32, 3, 2)], 32
        for o, count, stride in [(16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)]:
            for n in range(count):
                layers.append(ImageNetInverted(i, o, 1 if n else stride, 1 if o == 16 else 6))
                i = o
        self.features = nn.Sequential(*layers, activated(i, 1280, 1))
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(1280, classes))  # dropout there

    def forward(self, x):
        return self.classifier(pooled(self.features(x)))


class Grouped(nn.Module):
    def __init__(self, i, o, stride, first):
        super().__init__()
        o = o - i if stride == 2 else o
        inner, self.stride, self.groups = o // 4, stride, 1 if first else 3
        self.conv1, self.bn1 = conv(i, inner, 1, groups=self.groups), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, inner, 3, stride, inner), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = conv(inner, o, 1, groups=3), nn.BatchNorm2d(o)

    def forward(self, x):
        h = shuffled(F.relu(self.bn1(self.conv1(x))), self.groups)
        h = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(h)))))
        return F.relu(h + x if self.stride == 1 else torch.cat([h, F.avg_pool2d(x, 3, 2, 1)], 1))


class Split(nn.Module):
    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = conv(half, half, 1), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = conv(half, half, 3, groups=half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(half, half, 1), nn.BatchNorm2d(half)

    def forward(self, x):
        kept, h = x.chunk(2, 1)
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(h)))))
        return shuffled(torch.cat([kept, F.relu(self.bn3(self.conv3(h)))], 1), 2)


class Down(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        half = o // 2
        self.conv1, self.bn1 = conv(i, i, 3, 2, i), nn.BatchNorm2d(i)
        self.conv2, self.bn2 = conv(i, half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(i, half, 1), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = conv(half, half, 3, 2, half), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = conv(half, half, 1), nn.BatchNorm2d(half)

    def forward(self, x):
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return shuffled(torch.cat([left, F.relu(self.bn5(self.conv5(right)))], 1), 2)


class ShuffleNet(nn.Module):
    def __init__(self, classes, version):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24, 1), nn.BatchNorm2d(24)
        i, self.head = 24, version == 2
        for stage, width in enumerate((116, 232, 464) if version == 2 else (240, 480, 960)):
            units = []
            for n in range((4, 8, 4)[stage]):
                if version == 2:
                    units.append(Split(width) if n else Down(i, width))
                else:
                    units.append(Grouped(i, width, 1 if n else 2, first=not (stage or n)))
                i = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*units))
        if self.head:
            self.conv2, self.bn2, i = conv(i, 1024, 1), nn.BatchNorm2d(1024), 1024
        self.linear = nn.Linear(i, classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(pooled(F.relu(self.bn2(self.conv2(x))) if self.head else x))


def separable(i, o, stride):
    layers = []
    for size, a, b, s, groups in ((3, i, i, stride, i), (1, i, o, 1, 1)):
        layers += [conv(a, b, size, s, groups), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers)


WIDTHS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class MobileNetV1(nn.Module):
    """With mdistiller's names."""

    def __init__(self, classes):
        super().__init__()
        layers, i = [nn.Sequential(conv(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU())], 32
        for o, stride in WIDTHS:
            layers.append(separable(i, o, stride))
            i = o
        self.model, self.fc = nn.Sequential(*layers), nn.Linear(i, classes)

    def forward(self, x):
        return self.fc(pooled(self.model(x)))


class Separable6(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv_dw, self.bn1 = conv(i, i, 3, stride, i), nn.BatchNorm2d(i)
        self.conv_pw, self.bn2 = conv(i, o, 1), nn.BatchNorm2d(o)

    def forward(self, x):
        return F.relu6(self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x))))))


class TimmMobileNetV1(nn.Module):
    """With timm's names and its ReLU6."""

    def __init__(self, classes):
        super().__init__()
        self.conv_stem, self.bn1 = conv(3, 32, 3, 2), nn.BatchNorm2d(32)
        blocks, i = [], 32
        for o, stride in WIDTHS:
            if stride == 2 or not blocks:
                blocks.append([])
            blocks[-1].append(Separable6(i, o, stride))
            i = o
        self.blocks = nn.Sequential(*(nn.Sequential(*stage) for stage in blocks))
        self.classifier = nn.Linear(i, classes)

    def forward(self, x):
        return self.classifier(pooled(self.blocks(F.relu6(self.bn1(self.conv_stem(x))))))


def _narrow(depth, stem=16, widths=(16, 32, 64)):
    return lambda c: ResNet(c, stem, widths, ((depth - 2) // 6,) * 3)


_IMAGENET = 64, (64, 128, 256, 512)
NETWORKS = {
    "resnet8": _narrow(8),
    "resnet8_eighth": _narrow(8, 2, (2, 4, 8)),
    "resnet20": _narrow(20),
    "resnet32": _narrow(32),
    "resnet56": _narrow(56),
    "resnet110": _narrow(110),
    "resnet8x4": _narrow(8, 32, (64, 128, 256)),
    "resnet32x4": _narrow(32, 32, (64, 128, 256)),
    "resnet18": lambda c, **how: ResNet(c, *_IMAGENET, (2, 2, 2, 2), **how),
    "resnet34": lambda c, **how: ResNet(c, *_IMAGENET, (3, 4, 6, 3), **how),
    "resnet50": lambda c, **how: ResNet(c, *_IMAGENET, (3, 4, 6, 3), bottleneck=True, **how),
    "resnet18_imagenet_stem": lambda c: ResNet(c, *_IMAGENET, (2, 2, 2, 2), imagenet=True),
    "resnet34_imagenet_stem": lambda c: ResNet(c, *_IMAGENET, (3, 4, 6, 3), imagenet=True),
    "resnet50_imagenet_stem": lambda c: ResNet(c, *_IMAGENET, (3, 4, 6, 3), bottleneck=True, imagenet=True),
    "mobilenetv1": MobileNetV1,
    "mobilenetv1_relu6": TimmMobileNetV1,
    "mobilenetv2_imagenet_stem": ImageNetMobileNetV2,
    "wrn_16_2": lambda c: WideResNet(c, 16, 2),
    "wrn_40_1": lambda c: WideResNet(c, 40, 1),
    "wrn_40_2": lambda c: WideResNet(c, 40, 2),
    "vgg8": lambda c: VGG(c, 1),
    "vgg13": lambda c: VGG(c, 2),
    "mobilenetv2": lambda c: MobileNetV2(c, 1.0),
    "mobilenetv2_half": lambda c: MobileNetV2(c, 0.5),
    "shufflenetv1": lambda c: ShuffleNet(c, 1),
    "shufflenetv2": lambda c: ShuffleNet(c, 2),
}


def create(name, classes, **how):
    """Returns the network with random weights, and random statistics not far from what its maps have."""
    torch.manual_seed(0)
    network = NETWORKS[name](classes, **how)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3)
    for module in norms:
        nn.init.uniform_(module.weight, 0.5, 1.5)
        module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(16, 3, 32, 32))
        for module in norms:
            module.running_mean += 0.1 * module.running_var.sqrt() * torch.randn_like(module.running_mean)
            module.running_var *= torch.empty_like(module.running_var).uniform_(0.8, 1.3)
            module.momentum = 0.1
    return network


def arrays(network):
    """Returns the state_dict as NumPy arrays, which no later step of the network changes."""
    return {name: value.numpy().copy() for name, value in network.state_dict().items()}
