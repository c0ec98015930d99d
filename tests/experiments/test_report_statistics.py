"""The statistics of a report against formulas written here and against SciPy's."""

import math

import numpy as np
import pytest
import scipy.stats

pytest.importorskip("statsmodels")

from experiments.report.statistics import holm, paired, spread


def _holm(ps):
    """Holm's procedure as his paper has it: step down from the smallest, never below what came before."""
    ps = np.asarray(ps)
    order = np.argsort(ps, kind="stable")
    corrected, highest = np.empty(len(ps)), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = highest
    return corrected


def _by_seed(values, first=0):
    return {str(first + i): float(value) for i, value in enumerate(values)}


def test_spread():
    values = [70.1, 70.9, 69.8, 71.3]
    found = spread(values)
    mean = sum(values) / 4
    assert found.mean == pytest.approx(mean, rel=1e-14)
    assert found.std == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 3), rel=1e-12)
    assert found.n == 4


def test_spread_of_one_and_of_none():
    assert spread([3.5]) == (3.5, None, 1)
    assert spread([]) is None
    assert spread([2.0, 2.0]) == (2.0, 0.0, 2)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_paired_interval(n):
    rng = np.random.default_rng(n)
    base = rng.normal(70, 1, n)
    ours = base + rng.normal(0.4, 0.3, n)
    found = paired(_by_seed(ours), _by_seed(base))
    d = ours - base
    s = math.sqrt(((d - d.mean()) ** 2).sum() / (n - 1))
    half = scipy.stats.t.ppf(0.975, n - 1) * s / math.sqrt(n)
    assert found.n == n
    np.testing.assert_allclose(found[1:4], [d.mean(), d.mean() - half, d.mean() + half], rtol=1e-9)
    p = 2 * scipy.stats.t.sf(abs(d.mean()) / (s / math.sqrt(n)), n - 1)
    assert found.p == pytest.approx(p, rel=1e-9)
    one = scipy.stats.ttest_1samp(d, 0.0)
    assert found.p == pytest.approx(one.pvalue, rel=1e-9)
    np.testing.assert_allclose(found[2:4], one.confidence_interval(0.95), rtol=1e-9)


def test_seeds_are_paired_by_name_and_not_by_place():
    base = {"0": 70.0, "1": 80.0, "2": 60.0, "7": 1.0}
    ours = {"2": 60.5, "9": 99.0, "1": 80.7, "0": 70.6}
    found = paired(ours, base)
    assert found.n == 3
    assert found.difference == pytest.approx(0.6)
    assert found.high - found.low < 1  # as if unpaired it would be some fifty


def test_too_few_common_seeds():
    assert paired({"0": 1.0, "1": 2.0}, {"2": 1.0, "3": 2.0}) is None
    assert paired({"0": 1.0, "1": 2.0}, {"1": 1.0, "2": 2.0}) is None
    assert paired({"0": 1.0}, {"0": 1.0}) is None
    assert paired({}, {}) is None


def test_no_spread():
    base = _by_seed([70.1, 69.3, 71.9])
    assert paired(base, base) == (3, 0.0, 0.0, 0.0, 1.0)
    shifted = {seed: value + 0.1 for seed, value in base.items()}  # equal but for rounding
    found = paired(shifted, base)
    assert found.p is None
    assert found.low == found.difference == found.high == pytest.approx(0.1)
    zeros = _by_seed([0.0, 0.0])
    assert paired(zeros, zeros) == (2, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_holm(n):
    ps = np.random.default_rng(n).uniform(0, 1, n) ** 3
    np.testing.assert_allclose(holm(list(ps)), _holm(ps), rtol=1e-12)


def test_holm_with_ties_and_extremes():
    ps = [0.01, 0.04, 0.01, 1.0, 0.0, 0.03]
    np.testing.assert_allclose(holm(ps), _holm(ps), rtol=1e-12)
    # By hand: sorted 0, .01, .01, .03, .04, 1 times 6, 5, 4, 3, 2, 1, made monotone
    np.testing.assert_allclose(holm(ps), [0.05, 0.09, 0.05, 1.0, 0.0, 0.09], rtol=1e-12)


def test_what_has_no_p_still_counts():
    assert holm([0.01, None]) == [pytest.approx(0.02), None]
    assert holm([None]) == [None]
    assert holm([]) == []
