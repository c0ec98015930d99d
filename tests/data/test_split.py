"""The validation split: disjoint, complete, stratified, and a function of the data and its own seed."""

import numpy as np
import pytest

from gkd_jax.data.split import shuffled, split_rows, val_size
from gkd_jax.errors import UserError

LABELS = np.random.default_rng(0).integers(0, 7, 500)


@pytest.mark.parametrize("fraction", [0.0, 0.002, 0.1, 0.5, 0.9])
def test_disjoint_and_complete(fraction):
    train, val = split_rows(LABELS, fraction, 3)
    assert train.dtype == val.dtype == np.int32
    assert len(val) == round(500 * fraction)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(500))
    assert (np.diff(train) > 0).all()


def test_every_class_gives_its_share():
    for seed in range(3):
        _, val = split_rows(LABELS, 0.1, seed)
        share = np.bincount(LABELS, minlength=7) * 0.1
        assert (np.abs(np.bincount(LABELS[val], minlength=7) - share) < 1).all()


def test_the_seed_alone_decides():
    np.random.seed(0)  # noqa: NPY002 - a global seed must not matter
    first = split_rows(LABELS, 0.1, 0)[1]
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(first, split_rows(LABELS.copy(), 0.1, 0)[1])
    assert set(first) != set(split_rows(LABELS, 0.1, 1)[1])


def test_a_smaller_split_lies_inside_a_larger():
    small, large = (set(split_rows(LABELS, fraction, 5)[1]) for fraction in (0.1, 0.3))
    assert small < large


def test_few_to_train_on():
    """As many as asked for, none held out, the validation rows as ever, each class with its share."""
    whole, val = split_rows(LABELS, 0.2, 5)
    few, same = split_rows(LABELS, 0.2, 5, 130)
    more, _ = split_rows(LABELS, 0.2, 5, 200)
    np.testing.assert_array_equal(val, same)
    assert (few.dtype, len(few)) == (np.int32, 130)
    assert (np.diff(few) > 0).all()
    assert set(few) < set(more) < set(whole)
    assert (np.abs(np.bincount(LABELS[few], minlength=7) - np.bincount(LABELS, minlength=7) * 130 / 500) < 1).all()
    np.testing.assert_array_equal(split_rows(LABELS, 0.2, 5, 400)[0], whole)


@pytest.mark.parametrize("num", [0, -3, 401])
def test_as_many_to_train_on_as_there_are(num):
    with pytest.raises(UserError, match=rf"data.num_train is {num}; it must be 1 to 400, the training images not held"):
        split_rows(LABELS, 0.2, 0, num)


def test_pinned():
    """A split is part of a published number: it must not change between versions of NumPy or of this file."""
    assert shuffled(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert split_rows(np.arange(20) % 2, 0.3, 0)[1].tolist() == [2, 3, 8, 11, 13, 18]
    assert split_rows(np.arange(20) % 2, 0.3, 0, 4)[0].tolist() == [5, 9, 12, 16]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_fraction_outside_its_range(fraction):
    with pytest.raises(UserError, match=r"data.val_fraction is .*; it must be at least 0 and below 1"):
        val_size(100, fraction)


def test_fraction_that_empties_a_split():
    with pytest.raises(
        UserError, match=r"data.val_fraction is 0.001, which leaves no validation image of 100 training"
    ):
        val_size(100, 0.001)
    with pytest.raises(UserError, match=r"data.val_fraction is 0.999, which leaves no training image of 100"):
        val_size(100, 0.999)


def test_negative_seed():
    with pytest.raises(UserError, match=r"data.split_seed is -1; it must be at least 0"):
        split_rows(LABELS, 0.1, -1)
