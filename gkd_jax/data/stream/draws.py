"""What is drawn for an example: its place in an epoch, the box that is cut from it, whether it is mirrored.

Everything is a function of (seed, epoch, index) by a counter-based generator, Philox, whose raw words NumPy guarantees
for all time. So an epoch is the same whatever the number of worker processes and hosts, and wherever a run goes on.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

_ORDER, _VIEW, _CYCLE = range(3)  # what a draw is for
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
_TRIES = 10


class Box(NamedTuple):
    """A rectangle in an image, in pixels from its upper left corner."""

    top: int
    left: int
    height: int
    width: int


class View(NamedTuple):
    """What is seen of an image: a box, and whether it is mirrored."""

    box: Box
    flip: bool


def _words(seed: int, purpose: int, first: int, second: int, count: int) -> np.ndarray:
    """Returns `count` raw words, uint64, that depend on the other arguments alone."""
    # The lowest word of the counter is the generator's own, to count what it gave
    key, counter = np.array([seed, purpose], np.uint64), np.array([0, 0, first, second], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def _uniform(words: np.ndarray) -> np.ndarray:
    """Returns float64 in [0, 1), of 53 bits each."""
    return (words >> np.uint64(11)) * 2.0**-53


def order(seed: int, epoch: int, num: int) -> Int64[np.ndarray, " num"]:
    """Returns the places 0 to `num` - 1 in the order of an epoch, from 0."""
    return np.argsort(_words(seed, _ORDER, epoch, 0, num), kind="stable")


def view(seed: int, epoch: int, index: int, height: int, width: int) -> View:
    """Draws the view of an example in an epoch: torchvision's RandomResizedCrop and a mirror image with probability ½.

    The area is uniform on 8 to 100 % of the image's and the logarithm of the ratio of the sides on that of 3/4 to 4/3;
    what does not fit is drawn again, ten times at most, and then it is the largest box in the centre whose ratio is
    allowed (Szegedy et al., "Going deeper with convolutions", 2015, arXiv 1409.4842, section 6; the rounding and the
    ten tries are torchvision's, transforms.RandomResizedCrop).

    Args:
      seed: of the run, from 0.
      epoch: from 0.
      index: the example's place in the training split.
      height: of the image, in pixels.
      width: likewise.
    """
    # All that may be needed, whatever is: one number's meaning does not hang on another's value
    drawn = _uniform(_words(seed, _VIEW, index, epoch, 2 * _TRIES + 3))
    return View(_box(drawn, height, width), bool(drawn[-1] < 0.5))


def _box(drawn: np.ndarray, height: int, width: int) -> Box:
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for share, slope in zip(drawn[: 2 * _TRIES : 2], drawn[1 : 2 * _TRIES : 2], strict=True):
        area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * share)
        ratio = math.exp(low + (high - low) * slope)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = drawn[2 * _TRIES : 2 * _TRIES + 2] * (height - h + 1, width - w + 1)
            return Box(int(top), int(left), h, w)
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(w / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(h * RATIO[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def kept_view(seed: int, epoch: int, index: int, crops: int) -> int:
    """Returns which of an example's `crops` kept views an epoch shows.

    Each stretch of `crops` epochs shows all of them once, in an order drawn anew.
    """
    stretch, place = divmod(epoch, crops)
    return int(np.argsort(_words(seed, _CYCLE, index, stretch, crops), kind="stable")[place])
