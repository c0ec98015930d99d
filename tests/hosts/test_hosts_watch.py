"""The thread that looks after the other processes."""

import json
import random
import threading
import time

import pytest
from stores import Store

from gkd_jax.errors import UserError
from gkd_jax.hosts import joining, watching
from gkd_jax.hosts.watching import Watch
from gkd_jax.training.stop import Interrupted


class Gone(BaseException):
    """What stands for the end of a process."""


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def exits(monkeypatch):
    """The statuses that processes ended with, by the thread that did so."""
    found = {}

    def leave(status):
        found[threading.current_thread().name] = status
        if threading.current_thread() is threading.main_thread():
            raise SystemExit
        threading.Event().wait()  # a thread that ends its process does nothing after it

    monkeypatch.setattr(watching.os, "_exit", leave)
    monkeypatch.setattr(watching, "_PERIOD", 0.02)
    monkeypatch.setattr(watching, "LEAVING", 1.0)
    return found


@pytest.fixture
def begin(store, exits):
    """Returns a function that begins the watch of a process; all end with the test."""
    begun = []

    def start(me, count=2):
        look = Watch(store, me, count)
        look._thread.name = f"process {me}"
        look.start()
        begun.append(look)
        return look

    yield start
    for look in begun:
        look._over.set()


def _until(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize("count", [2, 5])
def test_all_stop_at_one_point_however_far_apart_they_are(begin, count):
    wishes = dict.fromkeys(range(count))
    looks = [begin(place, count) for place in range(count)]
    stopped = {}

    def run(place):
        chance = random.Random(place)
        for point in range(1, 100_000):
            if (number := looks[place].passed()) is not None:
                stopped[place] = point, number
                return
            time.sleep(chance.random() * 0.004 * (place + 1))

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(count)]
    for place, look in enumerate(looks):
        look.listen(lambda place=place: wishes[place])
        threads[place].start()
    time.sleep(0.2)
    assert not stopped
    wishes[count - 1] = 15
    for thread in threads:
        thread.join(20)
    assert len(stopped) == count
    assert len(set(stopped.values())) == 1
    assert stopped[0][1] == 15
    assert stopped[0][0] > 1


def test_nobody_is_held_up_while_it_is_agreed_but_at_such_a_point(begin, store):
    """The other process is within a step, which ends only when this one has dispatched its own."""
    looks = [begin(0), begin(1)]
    looks[0].listen(lambda: 2)
    for _ in range(7):
        looks[1].passed()
    _until(lambda: looks[0]._stop_at == 8)
    assert [looks[0].passed() for _ in range(8)] == [None] * 7 + [2]
    assert looks[1].passed() == 2


def test_why_one_ends_is_why_the_others_do(begin, exits, capsys):
    first, _, third = begin(0, 3), begin(1, 3), begin(2, 3)
    assert third.first_to_end()
    third.tell_end(2, "batch_size is 0")
    _until(lambda: len(exits) == 2)
    assert exits == {"process 0": 2, "process 1": 2}
    assert capsys.readouterr().err.count("gkd_jax: batch_size is 0\n") == 2
    assert not first.first_to_end()


def test_who_gives_no_beat_is_taken_for_dead(begin, exits, capsys, monkeypatch):
    monkeypatch.setattr(watching, "SILENT", 0.3)
    looks = [begin(0), begin(1)]
    time.sleep(0.5)
    assert not exits
    looks[1]._over.set()
    _until(lambda: exits)
    assert exits == {"process 0": 1}
    assert "gkd_jax: process 1 of 2 gave no sign of life for 0 s; the run ends" in capsys.readouterr().err


def test_a_process_that_never_came_gives_no_beat_either(begin, exits, monkeypatch):
    monkeypatch.setattr(watching, "SILENT", 0.2)
    begin(0)
    _until(lambda: exits)


def test_without_the_store_there_is_no_run(begin, exits, store, capsys, monkeypatch):
    begin(1)

    def gone(*_, **__):
        raise RuntimeError("UNAVAILABLE: failed to connect\nand much more")

    monkeypatch.setattr(store, "key_value_dir_get", gone)
    _until(lambda: exits)
    assert exits == {"process 1": 1}
    said = "process 0, which holds the run together, cannot be reached any more (UNAVAILABLE: failed to connect)"
    assert capsys.readouterr().err == f"\ngkd_jax: {said}\n"


def test_the_store_stays_until_the_others_have_left(begin, store, exits):
    first, second = begin(0), begin(1)
    threading.Thread(target=first.leave, args=(2,), name="first", daemon=True).start()
    time.sleep(0.2)
    assert not exits
    with pytest.raises(SystemExit):
        second.leave(2)
    _until(lambda: "first" in exits)
    assert list(exits) == ["MainThread", "first"]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (
            ValueError(
                "UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error [127.0.0.1]:1: Connection reset by peer"
            ),
            True,
        ),
        (RuntimeError("UNAVAILABLE: Failed to send RPC to coordination service."), True),
        (ValueError("an image has 3 channels"), False),
    ],
)
def test_a_lost_connection_is_a_sentence(begin, store, exits, capsys, monkeypatch, error, lost):
    look = begin(0)
    monkeypatch.setattr(watching, "_watch", look)
    monkeypatch.setattr(joining, "_LISTENING", 0.1)
    monkeypatch.setattr(joining.board, "count", lambda: 2)
    if not lost:
        joining.end_if_lost(error)
        return
    with pytest.raises(SystemExit):
        joining.end_if_lost(error)
    assert exits["MainThread"] == 1
    said = capsys.readouterr().err
    assert "of 2 is gone, the run ends; start it again to go on (" in said
    told = json.loads(store.held["gkd_jax/watch/ended/0"][1:])
    assert (told["status"], f"\ngkd_jax: {told['message']}\n") == (1, said)


@pytest.mark.parametrize(
    ("error", "told", "left"),
    [
        (UserError("batch_size is 0"), (2, "batch_size is 0"), None),
        (OSError(28, "No space left on device", "f"), (2, "[Errno 28] No space left on device: 'f'"), None),
        (KeyboardInterrupt(), (130, "process 0 of 1 was interrupted"), None),
        (TypeError("no\nsuch thing"), (1, "process 0 of 1 failed: TypeError: no"), 1),
        (Interrupted(15, "student", 3), None, None),
    ],
)
def test_what_ends_one_is_told_to_all(begin, store, exits, capsys, error, told, left):
    """Where it is no mistake of the user's, the process ends at once: nobody else would say what it was."""
    look = begin(0, 1)
    try:
        joining._tell(look, error)
    except SystemExit:
        assert left is not None
    assert exits.get("MainThread") == left
    found = store.held.get("gkd_jax/watch/ended/0")
    assert (found and tuple(json.loads(found[1:]).values())) == told
    assert ("TypeError" in capsys.readouterr().err) == (left is not None)
    assert not look.first_to_end()


def test_no_watch_no_connection_to_lose():
    joining.end_if_lost(ValueError("Gloo all-reduce failed"))
    assert joining.leave(2) == 2
