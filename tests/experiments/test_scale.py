"""The model of cost for many chips: arithmetic that can be done by hand, and a document that says what it gives."""

import math
import pathlib

import pytest

from experiments import scale
from experiments.scale import MACHINES, Machine, size, step


def test_the_document_has_the_tables_of_the_program():
    text = (pathlib.Path(__file__).parents[2] / "experiments" / "scale.md").read_text()
    assert f"\n{scale.tables()}\n" in text
    assert "computed, not measured" in text


def test_sizes_of_the_networks():
    """Parameters and multiply-adds as torchvision states them: 11,689,512 and 1.81 G, 25,557,032 and 4.09 G."""
    assert size("resnet18_imagenet_stem").parameters == 11_689_512
    assert size("resnet18_imagenet_stem").macs == pytest.approx(1.81e9, rel=0.01)
    assert size("resnet50_imagenet_stem").parameters == 25_557_032
    # 7x7 stem at 112², four stages of 2 blocks of 2 convolutions, three 1x1 shortcuts, the classifier
    stages = [64 * 56**2, 128 * 28**2, 256 * 14**2, 512 * 7**2]
    assert size("resnet18_imagenet_stem").outputs == 64 * 112**2 + 4 * sum(stages) + sum(stages[1:]) + 1000
    assert size("resnet18_imagenet_stem").layers == 1 + 16 + 3 + 1


@pytest.mark.parametrize(
    ("chips", "group", "seconds"),
    [
        (2, 2, 1.0),  # each sends a half twice
        (8, 8, 2 * 7 / 8),
        (16, 8, 2 * 7 / 8 + 2 * 1 / 2 / 8 * 10),  # and an eighth of it between two groups, ten times as slowly
    ],
)
def test_all_reduce(chips, group, seconds):
    machine = Machine("m", chips, 1, 1, within=100.0, group=group, between=10.0, latency=3.0, host=8)
    assert machine.all_reduce(100.0) == pytest.approx(3.0 + seconds)
    assert machine.all_reduce(0.0) == 3.0


def test_a_step_by_hand():
    machine = Machine("m", 2, flops=1e12, memory=1e12, within=1e9, group=2, between=math.inf, latency=1e-6, host=8)
    teacher, student = (size(name) for name in scale.PAIRS[0])
    found = step(*scale.PAIRS[0], machine, 10)
    assert found.flops == 20 * (3 * student.macs + teacher.macs)
    assert found.computing == pytest.approx(found.flops / 1e12 / scale.REACHED)
    assert found.bound == "compute"
    assert found.gradients == pytest.approx(4 * student.parameters / 1e9 + 1e-6)
    assert found.statistics == pytest.approx(2 * 21 * 1e-6)
    assert found.efficiency == pytest.approx(found.computing / found.seconds)


def test_more_images_a_chip_are_more_computing_for_the_same_exchange():
    for machine in MACHINES:
        few, many = (step(*scale.PAIRS[0], machine, batch) for batch in scale.BATCHES)
        assert many.efficiency > few.efficiency
        assert (many.gradients, many.statistics) == (few.gradients, few.statistics)
