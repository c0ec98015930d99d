"""Numbers over seeds: their mean, their paired difference to a baseline, and p-values for many comparisons at once."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

LEVEL = 0.95
# Differences that agree this closely, beside the values themselves, are equal but for how numbers are rounded
_ROUNDING = 1e-9


class Spread(NamedTuple):
    """A number over seeds.

    Attributes:
      mean: of the seeds.
      std: sample standard deviation, divided by n - 1; None for one seed.
      n: how many seeds.
    """

    mean: float
    std: float | None
    n: int


class Comparison(NamedTuple):
    """How a cell differs from the baseline on the same seeds.

    Attributes:
      n: how many seeds both have.
      difference: mean of the cell's value minus the baseline's.
      low: lower end of its 95 % interval.
      high: its upper end.
      p: two-sided; None where the differences of all seeds are the same but not 0, of which a t test says nothing.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float | None


def spread(values: Iterable[float]) -> Spread | None:
    """Returns mean, sample standard deviation and number of `values`; None if there are none."""
    found = np.asarray(list(values), dtype=float)
    if not found.size:
        return None
    return Spread(float(found.mean()), float(found.std(ddof=1)) if found.size > 1 else None, found.size)


def paired(ours: Mapping[str, float], baseline: Mapping[str, float]) -> Comparison | None:
    r"""Returns the difference of two cells over the seeds that both have.

    With the differences :math:`d_i` of n seeds the interval is
    :math:`\bar d \pm t_{0.975, n-1}\, s_d / \sqrt n`, and p that of the paired t test. Where all :math:`d_i` are equal
    the interval has no width; p is then 1 if they are 0, and None otherwise.

    Args:
      ours: by seed, in any unit.
      baseline: likewise.

    Returns:
      The comparison, in that unit; None unless there are at least two common seeds.

    References:
      Student, The probable error of a mean, Biometrika 1908.
    """
    seeds = [seed for seed in ours if seed in baseline]
    if len(seeds) < 2:
        return None
    a, b = (np.asarray([values[seed] for seed in seeds], dtype=float) for values in (ours, baseline))
    differences = a - b
    mean = float(differences.mean())
    size = float(np.abs([a, b]).max())
    if np.ptp(differences) <= _ROUNDING * size:
        if abs(mean) <= _ROUNDING * size:
            return Comparison(len(seeds), 0.0, 0.0, 0.0, 1.0)
        return Comparison(len(seeds), mean, mean, mean, None)
    test = scipy.stats.ttest_rel(a, b)
    low, high = test.confidence_interval(LEVEL)
    return Comparison(len(seeds), mean, float(low), float(high), float(test.pvalue))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Returns p-values corrected for their number by Holm's step-down method.

    Args:
      ps: of all comparisons of one family. None, a comparison without a p-value, counts as 1: it is one of the family,
        and the others must not look better for it.

    Returns:
      The corrected values in the same order, at most 1; None stays None.

    References:
      Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.
    """
    if not ps:
        return []
    from statsmodels.stats.multitest import multipletests  # of the extra `experiments`; a second to load

    corrected = multipletests([1.0 if p is None or math.isnan(p) else p for p in ps], method="holm")[1]
    return [None if p is None else float(q) for p, q in zip(ps, corrected, strict=True)]
