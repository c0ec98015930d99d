"""Order and views of a streamed epoch, against torchvision's algorithm written down once more."""

import math

import numpy as np
import pytest

from gkd_jax.data.stream import draws

PINNED = draws.View(draws.Box(49, 166, 292, 242), False)
PINNED_ORDER = [1, 5, 4, 8, 2, 6, 3, 0, 9, 7]
PINNED_CYCLE = [0, 3, 2, 1, 2, 1, 3, 0]


def torchvisions(height, width, uniforms):
    """RandomResizedCrop.get_params of torchvision, with uniform numbers in place of its generator."""
    given = iter(uniforms)
    area, low, high = height * width, math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        target = area * (0.08 + 0.92 * next(given))
        ratio = math.exp(low + (high - low) * next(given))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            i, j = uniforms[20:22]
            return int(i * (height - h + 1)), int(j * (width - w + 1)), h, w
    ratio = width / height
    if ratio < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif ratio > 4 / 3:
        h, w = height, round(height * (4 / 3))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (32, 32), (1, 1), (40, 2000), (2000, 40), (3, 400)])
def test_boxes_are_torchvisions(size):
    rng = np.random.default_rng(0)
    for _ in range(200):
        uniforms = rng.random(23)
        assert draws._box(uniforms, *size) == torchvisions(*size, list(uniforms))


def test_boxes_lie_inside_and_cover_what_they_should():
    views = [draws.view(0, 0, index, 375, 500) for index in range(3000)]
    boxes = np.array([view.box for view in views])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= 375).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 500).all()
    shares, ratios = boxes[:, 2] * boxes[:, 3] / (375 * 500), boxes[:, 3] / boxes[:, 2]
    assert shares.min() > 0.075
    assert 0.74 < ratios.min() < 0.77
    assert 1.3 < ratios.max() < 1.35
    # Uniform below 0.7, where no box is too large to fit
    few = np.histogram(shares, np.linspace(0.08, 0.68, 7))[0]
    assert few.min() > 0.85 * few.mean()
    assert 0.45 < np.mean([view.flip for view in views]) < 0.55


def test_a_view_depends_on_seed_epoch_and_index_alone():
    first = draws.view(1, 2, 3, 375, 500)
    assert first == draws.view(1, 2, 3, 375, 500)
    others = [draws.view(*which, 375, 500) for which in ((0, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2), (2, 1, 3))]
    assert all(first != other for other in others)


def test_what_was_drawn_once_is_drawn_ever_after():
    """Numbers of this version: a run that goes on after an update must see the same."""
    assert draws.view(7, 5, 1234, 375, 500) == PINNED
    np.testing.assert_array_equal(draws.order(3, 2, 10), PINNED_ORDER)
    assert [draws.kept_view(3, epoch, 17, 4) for epoch in range(8)] == PINNED_CYCLE


def test_orders_are_permutations_of_their_own():
    orders = [draws.order(seed, epoch, 100) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(100))
    assert all((a != b).any() for a, b in ((orders[0], orders[1]), (orders[0], orders[2]), (orders[1], orders[2])))


@pytest.mark.parametrize("crops", [1, 3, 8])
def test_each_stretch_of_epochs_shows_every_kept_view_once(crops):
    for stretch in range(3):
        seen = [draws.kept_view(0, stretch * crops + i, 5, crops) for i in range(crops)]
        assert sorted(seen) == list(range(crops))
    first = [[draws.kept_view(0, i, index, 8) for i in range(8)] for index in range(20)]
    assert len({tuple(order) for order in first}) > 15
