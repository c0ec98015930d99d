"""What processes tell each other, in threads that take themselves for processes."""

import time

import numpy as np
import pytest
from stores import Joined, Store, each

from gkd_jax import hosts
from gkd_jax.errors import UserError
from gkd_jax.hosts import board


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def together(monkeypatch, store):
    """Returns a function that calls another one in as many processes, with the number of each."""
    joined = Joined()
    monkeypatch.setattr(board, "_joined", lambda: joined)
    monkeypatch.setattr(board, "_rounds", joined)
    monkeypatch.setattr(board, "_LOOK", 20)
    return lambda count, function: each(count, joined, store, function)


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.setattr(board, "client", pytest.fail)
    assert (hosts.several(), hosts.first(), hosts.index(), hosts.count()) == (False, True, 0, 1)
    assert hosts.exchange("a") == ["a"]
    assert hosts.first_does(lambda: (1, 2)) == (1, 2)  # as it is: not as JSON would have it
    assert hosts.in_turn(lambda: "done") == "done"
    assert hosts.least(3) == 3
    mask = np.array([True, False])
    assert hosts.on_all(mask) is mask
    hosts.same({"a": object()})


def test_everybody_learns_what_everybody_said(together, store):
    rounds = [["a", "b", "c"], ["", "", ""], ["x" * (board._PIECE * 2 + 5), "y" * board._PIECE, ""], ["=", "/", "1"]]

    def said(me):
        time.sleep(0.01 * me)
        return [hosts.exchange(texts[me]) for texts in rounds]

    assert together(3, said) == [rounds] * 3
    assert not any(f"/said/{old}/" in key for old in range(len(rounds) - 2) for key in store.held)


def test_who_one_is(together):
    assert together(2, lambda me: (hosts.several(), hosts.index(), hosts.count(), hosts.first())) == [
        (True, 0, 2, True),
        (True, 1, 2, False),
    ]


def test_the_first_does_it_and_all_know(together):
    done = []

    def work(me):
        return hosts.first_does(lambda: done.append(me) or {"found": [1, None]})

    assert together(3, work) == [{"found": [1, None]}] * 3
    assert done == [0]


def test_what_the_first_refuses_all_refuse(together):
    class Held(UserError):
        pass

    def refuse():
        raise Held("the directory is another run's")

    first, second = together(2, lambda me: hosts.first_does(refuse))
    assert type(first) is Held
    assert type(second) is UserError
    assert str(first) == str(second) == "the directory is another run's"


def test_in_turn(together):
    order = []

    def work(me):
        time.sleep(0.05 * (me == 0))
        order.append(me)
        return me

    assert together(3, lambda me: hosts.in_turn(lambda: work(me))) == [0, 1, 2]
    assert order[0] == 0


def test_different_configurations_are_named_everywhere(together):
    given = [{"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 2]}, {"a": 2, "b": [1, 2], "c": None, "d": 3}]
    raised = together(3, lambda me: hosts.same(given[me]))
    assert {str(error) for error in raised} == {
        "the 3 processes of a run must be given the same: a is 1 in process 0 and 2 in process 2; "
        "d is None in process 0 and 3 in process 2"
    }
    assert together(2, lambda me: hosts.same(given[me])) == [None, None]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 1000])
def test_masks_and_numbers(together, size):
    masks = np.random.default_rng(size).random((3, size)) < 0.7
    for found in together(3, lambda me: hosts.on_all(masks[me])):
        np.testing.assert_array_equal(found, masks.all(0))
    assert together(3, lambda me: hosts.least([2.5, 1e12, -1 / 3][me])) == [-1 / 3] * 3
