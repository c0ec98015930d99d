"""What it takes to fill a cache of views: all of them up front, or before each epoch those that it needs.

Every epoch each seed looks up `draws` examples, each at most once, in views that are uniform and independent. Of `size`
views, a given one is therefore among them with probability `draws / size`, and among those of `s` seeds with

    q = 1 - (1 - draws / size)^s.

Of m views that are missing, m·q are expected to be looked up, and m·(1 - q) to be missing thereafter: epoch e (from 0)
asks the teacher for m·(1 - q)^e·q new views. They come in full batches, so that its forwards are the batch size times
E⌈X / batch⌉ = Σ_k P(X > k·batch), k = 0, 1, ..., where X, the number of new views, is taken as binomial with mean m·q:
each lookup finds its view missing with probability m / size.
"""

import math
from typing import Literal, NamedTuple

_SPREAD = 8.0  # standard deviations beyond which a normal variable is not expected


class Forwards(NamedTuple):
    """The teacher's forwards that a run takes to fill a cache, padding included, in either way."""

    up_front: int
    by_epoch: int

    @property
    def how(self) -> Literal["up front", "by epoch"]:
        """The cheaper way; a tie goes to "up front", which leaves later runs a complete cache."""
        return "up front" if self.up_front <= self.by_epoch else "by epoch"


def forwards(missing: int, *, size: int, epochs: int, per_epoch: int, batch: int, seeds: int) -> Forwards:
    """Returns what both ways cost; arguments as for `by_epoch`."""
    lazily = by_epoch(missing, size=size, epochs=epochs, per_epoch=per_epoch, batch=batch, seeds=seeds)
    return Forwards(up_front(missing, batch), lazily)


def up_front(missing: int, batch: int) -> int:
    """Returns the number of forwards, padding included, that fill a cache in which `missing` views are not held."""
    return -(-missing // batch) * batch


def by_epoch(missing: int, *, size: int, epochs: int, per_epoch: int, batch: int, seeds: int) -> int:
    """Returns the expected number of forwards, padding included, of a run that asks for what each epoch needs.

    Args:
      missing: views that are not held.
      size: examples times the views of each.
      epochs: to come.
      per_epoch: views looked up in an epoch, those of all seeds together.
      batch: views that are computed at a time.
      seeds: that draw their own batches; 1 where all share them.
    """
    looked_up = 1 - (1 - per_epoch / seeds / size) ** seeds
    left, batches = float(missing), 0.0
    for _ in range(epochs):
        new = left * looked_up
        batches += _batches(left, looked_up, left / size, batch)
        left -= new
    return round(batches * batch)


def _batches(left: float, looked_up: float, lacking: float, batch: int) -> float:
    """Returns the expected number of batches of an epoch.

    Args:
      left: views that are missing.
      looked_up: probability that a given view is looked up.
      lacking: probability that a lookup finds its view missing.
      batch: views in each.
    """
    mean = left * looked_up
    if mean <= 0:
        return 0.0
    none = (1 - looked_up) ** left  # where the normal distribution would not do: at the end few are left
    deviation = math.sqrt(mean * (1 - lacking))
    # The first batches are certain and the last ones impossible; only those between are worth a look
    certain = max(1, math.floor((mean - _SPREAD * deviation) / batch))
    possible = math.ceil((mean + _SPREAD * deviation) / batch)
    return certain - none + sum(_above(k * batch, mean, deviation) for k in range(certain, possible + 1))


def _above(bound: int, mean: float, deviation: float) -> float:
    """Returns the probability of more than `bound`, by the normal distribution with a continuity correction."""
    distance = mean - bound - 0.5
    if deviation == 0:
        return float(distance > 0)
    return 0.5 * math.erfc(-distance / deviation / math.sqrt(2))
