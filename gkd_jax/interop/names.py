"""What PyTorch code calls the layers of our networks: one small table for each family.

RepDistiller and mdistiller use the same names throughout. Their ResNet18, ResNet34 and ResNet50 say `shortcut` and
`linear` where torchvision, and their own narrow residual networks, say `downsample` and `fc`; either is understood. The
networks with ImageNet's stem are torchvision's resnet18, resnet34, resnet50 (whose names timm has too) and
mobilenet_v2. mobilenetv1 has mdistiller's names, mobilenetv1_relu6 those of timm's mobilenetv1_100: the same arrays
for another activation, so that neither is taken for the other.
"""

import re
from collections.abc import Iterator, Mapping

from gkd_jax.models.mobilenet import GROUPS
from gkd_jax.models.mobilenet_v1 import STAGES

# Path of our module -> PyTorch's names for it, the alternatives apart by "|". {n} and {stage} are the same number on
# both sides; {block} and {group} count from 1 with us and from 0 there. The first row that fits counts.
Table = Mapping[str, str]

# The name of a parameter or statistic of a module
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _conv_norm(ours: str, conv: str, norm: str) -> dict[str, str]:
    """Returns the two rows of a `layers.ConvNorm`."""
    return {f"{ours}/conv": conv, f"{ours}/norm": norm}


_RESNET: Table = {
    **_conv_norm("stem", "conv1", "bn1"),
    **_conv_norm(
        "stage{stage}_block{block}/shortcut",
        "layer{stage}.{block}.downsample.0|layer{stage}.{block}.shortcut.0",
        "layer{stage}.{block}.downsample.1|layer{stage}.{block}.shortcut.1",
    ),
    **_conv_norm("stage{stage}_block{block}/conv{n}", "layer{stage}.{block}.conv{n}", "layer{stage}.{block}.bn{n}"),
    "classifier": "fc|linear",
}

_WIDE_RESNET: Table = {
    "stem": "conv1",
    "stage{stage}_block{block}/norm1": "block{stage}.layer.{block}.bn1",
    **_conv_norm(
        "stage{stage}_block{block}/conv1", "block{stage}.layer.{block}.conv1", "block{stage}.layer.{block}.bn2"
    ),
    "stage{stage}_block{block}/conv2": "block{stage}.layer.{block}.conv2",
    "stage{stage}_block{block}/shortcut": "block{stage}.layer.{block}.convShortcut",
    "norm": "bn1",
    "classifier": "fc",
}

_VGG: Table = {
    **_conv_norm("stage{group}_conv1", "block{group}.0", "block{group}.1"),
    **_conv_norm("stage{group}_conv2", "block{group}.3", "block{group}.4"),
    "classifier": "classifier",
}

_MOBILENET: Table = {
    **_conv_norm("stem", "conv1.0", "conv1.1"),
    **_conv_norm("group{group}_block{block}/expand", "blocks.{group}.{block}.conv.0", "blocks.{group}.{block}.conv.1"),
    **_conv_norm(
        "group{group}_block{block}/depthwise", "blocks.{group}.{block}.conv.3", "blocks.{group}.{block}.conv.4"
    ),
    **_conv_norm("group{group}_block{block}/project", "blocks.{group}.{block}.conv.6", "blocks.{group}.{block}.conv.7"),
    **_conv_norm("head", "conv2.0", "conv2.1"),
    "classifier": "classifier.0",
}


def _torchvision_mobilenet() -> Iterator[tuple[str, str]]:
    """Yields the rows of torchvision's mobilenet_v2, which counts its blocks through all groups."""
    yield from _conv_norm("stem", "features.0.0", "features.0.1").items()
    blocks = [(f"group{i}_block{n + 1}", group) for i, group in enumerate(GROUPS, 1) for n in range(group.blocks)]
    for place, (ours, group) in enumerate(blocks, 1):
        theirs, at = f"features.{place}.conv", 0
        if group.expansion > 1:
            yield from _conv_norm(f"{ours}/expand", f"{theirs}.0.0", f"{theirs}.0.1").items()
            at = 1
        yield from _conv_norm(f"{ours}/depthwise", f"{theirs}.{at}.0", f"{theirs}.{at}.1").items()
        yield from _conv_norm(f"{ours}/project", f"{theirs}.{at + 1}", f"{theirs}.{at + 2}").items()
    head = f"features.{len(blocks) + 1}"
    yield from _conv_norm("head", f"{head}.0", f"{head}.1").items()
    yield "classifier", "classifier.1"


def _mobilenet_v1() -> Iterator[tuple[str, str]]:
    """Yields the rows of mdistiller's MobileNetV1, which counts its blocks through all stages."""
    yield from _conv_norm("stem", "model.0.0", "model.0.1").items()
    blocks = [f"stage{i}_block{n + 1}" for i, (_, count) in enumerate(STAGES, 1) for n in range(count)]
    for place, ours in enumerate(blocks, 1):
        yield from _conv_norm(f"{ours}/depthwise", f"model.{place}.0", f"model.{place}.1").items()
        yield from _conv_norm(f"{ours}/pointwise", f"model.{place}.3", f"model.{place}.4").items()
    yield "classifier", "fc"


_TIMM_MOBILENET_1: Table = {
    **_conv_norm("stem", "conv_stem", "bn1"),
    **_conv_norm("stage{group}_block{block}/depthwise", "blocks.{group}.{block}.conv_dw", "blocks.{group}.{block}.bn1"),
    **_conv_norm("stage{group}_block{block}/pointwise", "blocks.{group}.{block}.conv_pw", "blocks.{group}.{block}.bn2"),
    "classifier": "classifier",
}

_SHUFFLENET_1: Table = {
    **_conv_norm("stem", "conv1", "bn1"),
    **_conv_norm("stage{stage}_block{block}/compress", "layer{stage}.{block}.conv1", "layer{stage}.{block}.bn1"),
    **_conv_norm("stage{stage}_block{block}/depthwise", "layer{stage}.{block}.conv2", "layer{stage}.{block}.bn2"),
    **_conv_norm("stage{stage}_block{block}/expand", "layer{stage}.{block}.conv3", "layer{stage}.{block}.bn3"),
    "classifier": "linear",
}

_SHUFFLENET_2: Table = {
    **_conv_norm("stem", "conv1", "bn1"),
    **_conv_norm("stage{stage}_block1/shortcut_depthwise", "layer{stage}.0.conv1", "layer{stage}.0.bn1"),
    **_conv_norm("stage{stage}_block1/shortcut", "layer{stage}.0.conv2", "layer{stage}.0.bn2"),
    **_conv_norm("stage{stage}_block1/conv1", "layer{stage}.0.conv3", "layer{stage}.0.bn3"),
    **_conv_norm("stage{stage}_block1/depthwise", "layer{stage}.0.conv4", "layer{stage}.0.bn4"),
    **_conv_norm("stage{stage}_block1/conv2", "layer{stage}.0.conv5", "layer{stage}.0.bn5"),
    **_conv_norm("stage{stage}_block{block}/conv1", "layer{stage}.{block}.conv1", "layer{stage}.{block}.bn1"),
    **_conv_norm("stage{stage}_block{block}/depthwise", "layer{stage}.{block}.conv2", "layer{stage}.{block}.bn2"),
    **_conv_norm("stage{stage}_block{block}/conv2", "layer{stage}.{block}.conv3", "layer{stage}.{block}.bn3"),
    **_conv_norm("head", "conv2", "bn2"),
    "classifier": "linear",
}

_FAMILIES: dict[str, Table] = {
    r"resnet\d+(x4|_eighth|_imagenet_stem)?": _RESNET,
    r"wrn_\d+_\d+": _WIDE_RESNET,
    r"vgg\d+": _VGG,
    r"mobilenetv1": dict(_mobilenet_v1()),
    r"mobilenetv1_relu6": _TIMM_MOBILENET_1,
    r"mobilenetv2(_half)?": _MOBILENET,
    r"mobilenetv2_imagenet_stem": dict(_torchvision_mobilenet()),
    r"shufflenetv1": _SHUFFLENET_1,
    r"shufflenetv2": _SHUFFLENET_2,
}


def table(model: str) -> Table | None:
    """Returns the table of the family that the network `model` is of, None for a network of another family."""
    for name, found in _FAMILIES.items():
        if re.fullmatch(name, model):
            return found
    return None


def torch_names(family: Table, path: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns the names that an array may have in a state_dict.

    Args:
      family: from `table`.
      path: of the array in its collection, as ("stage1_block1", "conv1", "conv", "kernel").

    Returns:
      One or more names, of which a state_dict has one; None if the table knows no such module.
    """
    module, leaf = "/".join(path[:-1]), _LEAVES.get(path[-1])
    for ours, theirs in family.items():
        match = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>\\d+)", ours), module)
        if match and leaf:
            numbers = {name: int(text) - (name in ("block", "group")) for name, text in match.groupdict().items()}
            return tuple(f"{name}.{leaf}" for name in theirs.format(**numbers).split("|"))
    return None
