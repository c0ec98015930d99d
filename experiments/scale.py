"""What a step on many chips takes, by published figures of the chips and their links: computed, not measured.

  python -m experiments.scale

prints the tables of `experiments/scale.md`, which states the assumptions. Nothing runs on an accelerator: networks are
traced for the sizes of their layers, and the rest is arithmetic.
"""

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from gkd_jax import models
from gkd_jax.models import count

PAIRS = (("resnet34_imagenet_stem", "resnet18_imagenet_stem"), ("resnet50_imagenet_stem", "mobilenetv1"))
IMAGE, CLASSES = (224, 224, 3), 1000
IMAGES, EPOCHS = 1_281_167, 100  # ILSVRC 2012's training split, the field's recipe
BATCHES = (32, 128)  # images a chip and step; 32 on 8 chips is the recipe's 256

REACHED = 0.4  # of the roofline
READ_EVAL, READ_TRAIN = 2.5, 15.0  # times that an output of a layer is written or read, forward; forward and backward
STUDENT, TEACHER = 3, 1  # forwards that forward and backward together take
OPTIMISER = 22  # bytes that SGD with momentum moves for a parameter in float32
GRADIENT = 4  # bytes of a parameter's gradient
DECODED = 325  # images that a core decodes and crops a second


class Machine(NamedTuple):
    """Chips, the links between them, and the hosts they stand in.

    Attributes:
      name: for the table.
      chips: how many.
      flops: of one, a second, in bfloat16.
      memory: bytes a second between one and its memory.
      within: bytes a second that one sends to the others of its group, in one direction.
      group: chips that such links join.
      between: bytes a second that one sends to other groups.
      latency: seconds of an all-reduce of nothing.
      host: chips of a host.
    """

    name: str
    chips: int
    flops: float
    memory: float
    within: float
    group: int
    between: float
    latency: float
    host: int

    def all_reduce(self, size: float) -> float:
        """Returns the seconds that all chips take to add up arrays of `size` bytes.

        Within a group each chip receives and sends (g - 1) / g of them twice; between n groups each sends its g-th part
        likewise.
        """
        groups = self.chips // self.group
        within = 2 * (self.group - 1) / self.group * size / self.within
        between = 2 * (groups - 1) / groups * size / self.group / self.between if groups > 1 else 0.0
        return self.latency + within + between


def hops(*counts: int, seconds: float) -> float:
    """Returns the latency of an all-reduce that passes so many links there, along each way, and as many back."""
    return 2 * sum(counts) * seconds


_H100: dict[str, Any] = {"flops": 989e12, "memory": 3.35e12, "within": 450e9, "group": 8, "between": 50e9, "host": 8}
_V5E: dict[str, Any] = {"flops": 197e12, "memory": 819e9, "between": math.inf, "host": 8}
MACHINES = (
    Machine("8 H100, a node", 8, **_H100, latency=hops(7, seconds=1e-6)),
    # Among the nodes a tree: there are 32
    Machine("256 H100, 32 nodes", 256, **_H100, latency=hops(7, seconds=1e-6) + hops(5, seconds=5e-6)),
    # Two by four chips, no ring along either axis: one link of 50 GB/s in use on each
    Machine("8 TPU v5e, a host", 8, **_V5E, within=100e9, group=8, latency=hops(1, 3, seconds=1e-6)),
    # Rings of sixteen along both axes, used in both directions
    Machine("256 TPU v5e, a pod", 256, **_V5E, within=200e9, group=256, latency=hops(8, 8, seconds=1e-6)),
)


class Size(NamedTuple):
    """What a network costs for one image.

    Attributes:
      parameters: trained values.
      macs: multiply-accumulates of a forward pass.
      outputs: numbers that its convolutions and matrix products give.
      layers: how many of these there are.
    """

    parameters: int
    macs: int
    outputs: int
    layers: int


@functools.cache
def size(name: str) -> Size:
    """Returns the size of a network for ImageNet."""
    model = models.create(name, num_classes=CLASSES)
    known, outputs = count.summary(model, IMAGE), count.layer_outputs(model, IMAGE)
    return Size(known.parameters, known.macs, sum(outputs), len(outputs))


class Step(NamedTuple):
    """The seconds of a step, and what bounds its computation.

    Attributes:
      flops, bytes: of one chip.
      computing: what `REACHED` of the roofline takes.
      gradients: all-reduce of the student's gradients.
      statistics: all-reduces of BatchNorm's sums, each of which the next layer waits for.
      bound: "compute" or "memory".
    """

    flops: float
    bytes: float
    computing: float
    gradients: float
    statistics: float
    bound: str

    @property
    def seconds(self) -> float:
        """Of the whole, nothing of it at the same time."""
        return self.computing + self.gradients + self.statistics

    @property
    def efficiency(self) -> float:
        """Share of the time that is computing."""
        return self.computing / self.seconds


def step(teacher: str, student: str, machine: Machine, batch: int) -> Step:
    """Returns what a KD step takes, the teacher run at every step.

    Args:
      teacher: a network.
      student: another.
      machine: to run on.
      batch: images a chip.
    """
    ours, theirs = size(student), size(teacher)
    flops = 2.0 * batch * (STUDENT * ours.macs + TEACHER * theirs.macs)
    moved = 2.0 * batch * (READ_TRAIN * ours.outputs + READ_EVAL * theirs.outputs)  # bfloat16
    moved += OPTIMISER * ours.parameters + 4 * theirs.parameters
    by_compute, by_memory = flops / machine.flops, moved / machine.memory
    return Step(
        flops,
        moved,
        max(by_compute, by_memory) / REACHED,
        machine.all_reduce(GRADIENT * ours.parameters),
        2 * ours.layers * machine.latency,
        "compute" if by_compute > by_memory else "memory",
    )


def tables() -> str:
    """Returns the tables in Markdown."""
    networks: list[tuple[str, ...]] = [
        ("network", "parameters, M", "multiply-adds, G", "outputs of layers, M", "layers")
    ]
    for name in dict.fromkeys(name for pair in PAIRS for name in pair):
        known = size(name)
        networks.append(
            (
                name,
                f"{known.parameters / 1e6:.2f}",
                f"{known.macs / 1e9:.2f}",
                f"{known.outputs / 1e6:.2f}",
                str(known.layers),
            )
        )
    heads: tuple[str, ...] = (
        "pair, chips",
        "images a chip",
        "GFLOP",
        "MB",
        "bound by",
        "computing, ms",
        "gradients, ms",
    )
    heads += (
        "BatchNorm, ms",
        "computing, %",
        "images a second",
        "an epoch, s",
        f"{EPOCHS} epochs, min",
        "cores a host",
    )
    rows: list[tuple[str, ...]] = [heads]
    for teacher, student in PAIRS:
        for machine in MACHINES:
            for batch in BATCHES:
                s = step(teacher, student, machine, batch)
                rate = machine.chips * batch / s.seconds
                rows.append(
                    (
                        f"{_short(teacher)} to {_short(student)}, {machine.name}",
                        f"{batch}",
                        f"{s.flops / 1e9:,.0f}",
                        f"{s.bytes / 1e6:,.0f}",
                        s.bound,
                        f"{1e3 * s.computing:.2f}",
                        f"{1e3 * s.gradients:.2f}",
                        f"{1e3 * s.statistics:.2f}",
                        f"{100 * s.efficiency:.0f}",
                        f"{rate:,.0f}",
                        f"{IMAGES / rate:.1f}",
                        f"{EPOCHS * IMAGES / rate / 60:,.0f}",
                        f"{math.ceil(rate / machine.chips * machine.host / DECODED):,}",
                    )
                )
    return f"{_markdown(networks)}\n\n{_markdown(rows)}"


def _short(name: str) -> str:
    return name.removesuffix("_imagenet_stem")


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["--:"] * (len(rows[0]) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


if __name__ == "__main__":
    sys.stdout.write(f"{tables()}\n")
