"""Plans: each example at most once an epoch, another order each epoch, the same whenever asked."""

import functools

import jax
import numpy as np
import pytest

from gkd_jax.data import epoch_plan, steps_per_epoch
from gkd_jax.errors import UserError

SIZES = {"num_examples": 103, "batch_size": 10, "num_views": 9}


@pytest.fixture
def threefry() -> jax.Array:
    return jax.random.key(7)


def test_an_epoch_sees_each_example_at_most_once(threefry):
    index, view = epoch_plan(threefry, 0, **SIZES)
    assert index.shape == view.shape == (10, 10)
    assert index.dtype == view.dtype == np.int32
    seen = np.sort(np.asarray(index).ravel())
    assert len(np.unique(seen)) == 100
    assert seen[0] >= 0
    assert seen[-1] < 103


def test_a_whole_epoch_is_a_permutation(threefry):
    index, _ = epoch_plan(threefry, 3, num_examples=60, batch_size=12, num_views=1)
    np.testing.assert_array_equal(np.sort(np.asarray(index).ravel()), np.arange(60))
    assert not np.array_equal(np.asarray(index).ravel(), np.arange(60))


def test_epochs_and_keys_differ_and_repeat(threefry):
    first, again, second = (epoch_plan(threefry, epoch, **SIZES) for epoch in (0, 0, 1))
    other = epoch_plan(jax.random.key(8), 0, **SIZES)
    for kind in range(2):
        np.testing.assert_array_equal(first[kind], again[kind])
        assert (first[kind] != second[kind]).any()
        assert (first[kind] != other[kind]).any()


def test_the_examples_left_out_change(threefry):
    left_out = [frozenset(range(103)) - set(np.asarray(epoch_plan(threefry, e, **SIZES)[0]).ravel()) for e in range(4)]
    assert len(set(left_out)) == 4


def test_jit_draws_the_same(threefry):
    jitted = jax.jit(functools.partial(epoch_plan, **SIZES))
    for epoch in (0, 5):
        for eager, compiled in zip(epoch_plan(threefry, epoch, **SIZES), jitted(threefry, epoch), strict=True):
            np.testing.assert_array_equal(eager, compiled)


def test_pinned(threefry):
    """A plan is part of a published number: it must not change between versions of JAX or of this file."""
    index, view = epoch_plan(threefry, 2, num_examples=12, batch_size=4, num_views=162)
    assert np.asarray(index).tolist() == [[7, 3, 6, 10], [4, 11, 8, 5], [1, 0, 9, 2]]
    assert np.asarray(view).tolist() == [[126, 45, 141, 81], [134, 136, 151, 124], [30, 156, 27, 114]]


def test_views_are_uniform_and_independent_of_rows(threefry):
    index, view = (
        np.asarray(x).ravel() for x in epoch_plan(threefry, 0, num_examples=18_000, batch_size=100, num_views=9)
    )
    counts = np.bincount(view, minlength=9)
    assert counts.sum() == 18_000
    assert ((counts - 2000) ** 2 / 2000).sum() < 26.1  # chi squared, 8 degrees of freedom, one in a thousand
    assert abs(np.corrcoef(index, view)[0, 1]) < 0.03


def test_steps():
    assert steps_per_epoch(50_000, 64) == 781
    assert steps_per_epoch(64, 64) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda n, b: steps_per_epoch(n, b),
        lambda n, b: epoch_plan(jax.random.key(0), 0, num_examples=n, batch_size=b, num_views=1),
    ],
)
def test_too_large_a_batch_names_both_numbers(call):
    with pytest.raises(UserError, match=r"batch_size is 65 .* 64 examples; it must be at most 64"):
        call(64, 65)
    with pytest.raises(UserError, match="batch_size is 0; it must be at least 1"):
        call(64, 0)
