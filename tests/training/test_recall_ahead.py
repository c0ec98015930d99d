"""The rows of an epoch, looked up while the device is busy with the epoch before."""

import threading

import jax
import numpy as np
import pytest

from gkd_jax.training import recall
from gkd_jax.training.program import Program

pytestmark = pytest.mark.usefixtures("in_large_batches")


@pytest.fixture
def program(make_job, tmp_path):
    """Returns a function that makes the program of three epochs with a cache of logits in the host's memory."""

    def make(devices=1, **fields):
        fields = {"teacher__cache_dir": str(tmp_path / "teachers"), **fields}
        job = make_job(teacher__cache="logits", teacher__cache_memory=0, epochs=3, **fields)
        return Program(job, devices=jax.devices()[:devices])

    return make


@pytest.fixture
def ahead(program):
    """Returns a function that makes a program whose rows are looked up early, and the list of the epochs that were."""

    def make(**fields):
        made, early = program(**fields), []
        made.recall.early = True
        take = made.recall._looked_up_early

        def spied(ids):
            early.append(take(ids))
            return early[-1]

        made.recall._looked_up_early = spied
        return made, early

    return make


def _no_thread_is_left():
    for thread in threading.enumerate():
        if thread.name.startswith("gkd_jax"):
            thread.join(10)
    return not [thread for thread in threading.enumerate() if thread.name.startswith("gkd_jax")]


@pytest.mark.parametrize("devices", [1, 2])
def test_rows_that_were_looked_up_early_are_the_same(program, ahead, devices):
    plain = program(devices)
    made, early = ahead(devices=devices)
    for epoch in range(3):
        expected, found = plain.plan(epoch).teacher["logits"], made.plan(epoch).teacher["logits"]
        np.testing.assert_array_equal(found, expected)
        assert found.sharding == expected.sharding
    assert [rows is not None for rows in early] == [False, True, True]
    assert made.recall._next is None  # nothing was begun for an epoch that does not come
    assert _no_thread_is_left()


def test_rows_of_another_epoch_than_the_one_that_is_asked_for_are_not_given(program, ahead):
    made, early = ahead()
    expected = program().plan(2).teacher["logits"]
    made.plan(0)
    np.testing.assert_array_equal(made.plan(2).teacher["logits"], expected)
    assert early == [None, None]


def test_what_must_be_computed_is_not_looked_up_early(program, ahead, monkeypatch):
    monkeypatch.setattr(recall, "views_at_once", lambda _: 16)
    made, early = ahead(teacher__cache_dir="off")
    plans = [made.plan(epoch).teacher["logits"] for epoch in range(3)]
    assert made.recall.how == "by epoch"
    assert early == [None, None, None]
    for epoch, found in enumerate(plans):
        np.testing.assert_array_equal(found, program().plan(epoch).teacher["logits"])


def test_what_goes_wrong_early_is_raised_when_the_epoch_comes(ahead, monkeypatch):
    made, _ = ahead()
    lookup = type(made.recall.cache).lookup

    def failing(self, *given):
        if threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError
        return lookup(self, *given)

    monkeypatch.setattr(type(made.recall.cache), "lookup", failing)
    made.plan(0)
    with pytest.raises(ZeroDivisionError):
        made.plan(1)
    assert _no_thread_is_left()
