"""Mean and standard deviation over seeds of what is recorded for each."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def over_seeds(records: Mapping[str, Record]) -> dict[str, Any]:
    """Returns the record of several students: the mean of every number, with "std" and "seeds" beside it.

    Args:
      records: one for each student, by seed, all with the same fields at every depth. There are two or more.

    Returns:
      The fields of one record, where a number is the mean, and None where any of them is None; a field of another type
      is that of the first seed. "std" holds the sample standard deviation (divided by n - 1) of every number that is
      not None, at the same place; "seeds" the records themselves. Mean and deviation of values of which one is not
      finite are NaN.
    """
    parts = list(records.values())
    return {**_means(parts), "std": _deviations(parts), "seeds": {seed: dict(part) for seed, part in records.items()}}


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _means(parts: Sequence[Record]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if isinstance(first, Mapping):
            found[name] = _means(values)
        elif any(value is None for value in values):
            found[name] = None
        else:
            found[name] = _finite(statistics.fmean, values) if _numbers(values) else first
    return found


def _deviations(parts: Sequence[Record]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if isinstance(first, Mapping):
            found[name] = _deviations(values)
        elif _numbers(values):
            found[name] = _finite(statistics.stdev, values)
    return found


def _finite(function: Callable[[Sequence[float]], float], values: Sequence[float]) -> float:
    # The functions of `statistics` raise errors of their own for some of these
    return function(values) if all(map(math.isfinite, values)) else math.nan
