"""What a cache leaves on disk, and finds there."""

import contextlib
import errno
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from caches import BATCH, ROWS, SIZE, Teacher, check, truth

from gkd_jax.training import tables
from gkd_jax.training.cache import NotFinite
from gkd_jax.training.shards import Shards, alone


def test_padding_is_kept_nowhere(make_cache: Any, tmp_path: pathlib.Path) -> None:
    cache = make_cache(Teacher(), tmp_path)
    cache.fill(np.array([3, 20]))
    assert (cache.computed, cache.missing) == (2, SIZE - 2)
    for name, row in ROWS.items():
        ((ids, _),) = Shards(tmp_path / name, pytest.fail).read(np.float16, row, SIZE)
        assert ids.tolist() == [3, 20]


def test_the_next_run_asks_nothing(make_cache: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_cache(Teacher(), tmp_path)
    first.fill(np.arange(40))
    first.fill_all()
    monkeypatch.setattr(tables, "_LOADED", 2 * 5 * 32)  # several parts, the last one not full
    again = make_cache(pytest.fail, tmp_path)
    assert again.complete
    assert (again.computed, again.from_disk, again.seconds) == (0, SIZE, 0.0)
    check(again, make_cache, np.arange(SIZE))
    again.fill_all()


def test_shards_are_written_as_they_fill(
    make_cache: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gkd_jax.training.cache._SHARD", 4 * BATCH * 2 * 5)
    make_cache(Teacher(), tmp_path).fill_all()
    assert len(list((tmp_path / "logits").glob("*.npz"))) == 3  # 10 batches: 4, 4 and 2
    assert make_cache(pytest.fail, tmp_path).complete


def test_a_quantity_that_was_lost_is_computed_and_the_others_stay(make_cache: Any, tmp_path: pathlib.Path) -> None:
    make_cache(Teacher(), tmp_path).fill(np.arange(100))
    for path in (tmp_path / "norm").iterdir():
        path.unlink()

    def other(ids: np.ndarray) -> dict[str, jax.Array]:
        rows = {name: truth(name, ids) for name in ROWS}
        rows["logits"] = np.where(ids[:, None] < 100, np.float16(-1), rows["logits"])  # must not be taken
        return jax.tree.map(jnp.asarray, rows)

    cache = make_cache(other, tmp_path)
    assert (cache.from_disk, cache.missing) == (0, SIZE)
    cache.fill_all()
    check(cache, make_cache, np.arange(SIZE))
    check(make_cache(pytest.fail, tmp_path), make_cache, np.arange(SIZE))
    logits = [ids for ids, _ in Shards(tmp_path / "logits", pytest.fail).read(np.float16, (5,), SIZE)]
    assert sorted(np.concatenate(logits).tolist()) == list(range(SIZE))  # each written once


def test_a_damaged_shard_is_computed_anew(make_cache: Any, tmp_path: pathlib.Path) -> None:
    cache = make_cache(Teacher(), tmp_path)
    cache.fill(np.arange(30))
    known = set((tmp_path / "logits").iterdir())
    cache.fill(np.arange(30, SIZE))
    (second,) = set((tmp_path / "logits").iterdir()) - known
    second.write_bytes(second.read_bytes()[:-30])
    said: list[str] = []
    teacher = Teacher()
    again = make_cache(teacher, tmp_path, say=said.append)
    assert len(said) == 1
    assert again.from_disk == 30
    again.fill_all()
    assert teacher.asked == list(range(30, SIZE))
    check(again, make_cache, np.arange(SIZE))
    assert make_cache(pytest.fail, tmp_path).complete


def test_two_runs_share_a_folder(make_cache: Any, tmp_path: pathlib.Path) -> None:
    one, other = make_cache(Teacher(), tmp_path), make_cache(Teacher(), tmp_path)
    one.fill(np.arange(0, 90))
    other.fill(np.arange(60, SIZE))
    both = make_cache(pytest.fail, tmp_path)
    assert both.complete
    check(both, make_cache, np.arange(SIZE))


def test_what_another_run_computed_meanwhile_is_read(make_cache: Any, tmp_path: pathlib.Path) -> None:
    one, two = Teacher(), Teacher()
    first, second = make_cache(one, tmp_path), make_cache(two, tmp_path)
    first.fill(np.arange(40))
    second.fill(np.arange(30))
    assert (two.calls, second.computed, second.from_disk, second.missing) == ([], 0, 40, SIZE - 40)
    second.fill(np.arange(30, 60))
    assert (two.asked, second.computed) == (list(range(40, 60)), 20)
    first.fill_all()
    assert one.asked == [*range(40), *range(60, SIZE)]
    second.fill_all()
    assert two.asked == list(range(40, 60))
    for cache in (first, second):
        assert cache.complete
        check(cache, make_cache, np.arange(SIZE))
    again = make_cache(pytest.fail, tmp_path)
    assert (again.from_disk, again.complete) == (SIZE, True)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_who_comes_while_another_fills_waits_and_asks_nothing(make_cache: Any, tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    other = contextlib.ExitStack()
    polls = 0

    def polled() -> None:
        nonlocal polls
        polls += bool(said)
        if polls == 3:
            for name in ROWS:
                Shards(tmp_path / name, pytest.fail).write(np.arange(SIZE), truth(name, np.arange(SIZE)))
            other.close()

    teacher = Teacher()
    cache = make_cache(teacher, tmp_path, say=said.append, polled=polled)
    with other:
        other.enter_context(alone([Shards(tmp_path / "logits", pytest.fail)], pytest.fail, pytest.fail))
        cache.fill_all()
    assert (teacher.calls, cache.computed, cache.from_disk) == ([], 0, SIZE)
    assert cache.seconds > 0
    assert said == [f"another process computes rows for {tmp_path / 'logits'}: waiting until it is done"]
    check(cache, make_cache, np.arange(SIZE))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_a_stop_while_another_is_waited_for(make_cache: Any, tmp_path: pathlib.Path) -> None:
    class Asked(Exception):
        pass

    said: list[str] = []

    def polled() -> None:
        if said:
            raise Asked

    cache = make_cache(Teacher(), tmp_path, say=said.append, polled=polled)
    with alone([Shards(tmp_path / "norm", pytest.fail)], pytest.fail, pytest.fail), pytest.raises(Asked):
        cache.fill_all()
    assert (cache.computed, len(said)) == (0, 1)
    make_cache(Teacher(), tmp_path).fill_all()  # which waits for nobody


def test_a_full_disk_does_not_stop(make_cache: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said: list[str] = []
    cache = make_cache(Teacher(), tmp_path, say=said.append)
    cache.fill(np.arange(10))
    monkeypatch.setattr(os, "replace", full)
    cache.fill(np.arange(20))
    cache.fill_all()
    assert len(said) == len(ROWS)
    check(cache, make_cache, np.arange(SIZE))
    monkeypatch.undo()
    assert make_cache(Teacher(), tmp_path).from_disk == 10


def test_what_does_not_fit_on_the_disk_is_not_begun(
    make_cache: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id and a row of each quantity take 4 + 10, 4 + 12 and 4 + 2 bytes."""
    free = 0.0
    monkeypatch.setattr("gkd_jax.training.cache.room", lambda folder: free)
    free = 36.0 * SIZE
    cache = make_cache(Teacher(), tmp_path)
    cache.fill(np.arange(50))
    assert cache.on_disk == 36 * SIZE
    before = sorted(tmp_path.rglob("*"))
    # What is there already needs no more room
    free = 36.0 * (SIZE - 50)
    assert make_cache(Teacher(), tmp_path).on_disk == 36 * SIZE
    free -= 1
    said: list[str] = []
    cache = make_cache(Teacher(), tmp_path, say=said.append)
    cache.fill_all()
    check(cache, make_cache, np.arange(SIZE))
    assert (cache.from_disk, cache.on_disk) == (50, 0)
    (message,) = said
    assert f"{tmp_path} has room for 0.0 MB" in message
    assert "is not kept for the next run" in message
    assert sorted(tmp_path.rglob("*")) == before


def test_the_disk_is_written_while_the_teacher_is_asked(
    make_cache: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gkd_jax.training.cache._SHARD", BATCH * 2 * 5)
    teacher, written, asked = Teacher(), Shards.write, []

    def slow(self: Shards, ids: np.ndarray, rows: np.ndarray) -> bool:
        deadline = time.monotonic() + 5
        while len(teacher.calls) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        asked.append(len(teacher.calls))
        return written(self, ids, rows)

    monkeypatch.setattr(Shards, "write", slow)
    make_cache(teacher, tmp_path, rows={"logits": (5,)}).fill_all()
    # When the first shard has come about, two more batches are under way
    assert asked[0] >= 4
    assert len(asked) == 10
    assert make_cache(pytest.fail, tmp_path, rows={"logits": (5,)}).complete
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gkd_jax")]


def test_what_the_disks_thread_did_not_expect_ends_the_fill(
    make_cache: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Shards, "write", failing)
    with pytest.raises(ZeroDivisionError):
        make_cache(Teacher(), tmp_path, rows={"logits": (5,)}).fill_all()  # one shard: the last to be waited for
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gkd_jax")]


def test_a_stop_keeps_what_was_computed(make_cache: Any, tmp_path: pathlib.Path) -> None:
    class Asked(Exception):
        pass

    teacher = Teacher()

    def polled() -> None:
        if len(teacher.calls) == 4:
            raise Asked

    cache = make_cache(teacher, tmp_path, polled=polled)
    with pytest.raises(Asked):
        cache.fill_all()
    assert cache.computed == 4 * BATCH
    rest = Teacher()
    again = make_cache(rest, tmp_path)
    assert again.from_disk == 4 * BATCH
    again.fill_all()
    assert rest.asked == list(range(4 * BATCH, SIZE))
    check(again, make_cache, np.arange(SIZE))


def test_a_stop_while_the_disk_is_read(make_cache: Any, tmp_path: pathlib.Path) -> None:
    class Asked(Exception):
        pass

    for start in range(0, 90, 30):
        make_cache(Teacher(), tmp_path).fill(np.arange(start, start + 30))
    polls = 0

    def polled() -> None:
        nonlocal polls
        polls += 1
        if polls == 3:
            raise Asked

    with pytest.raises(Asked):
        make_cache(Teacher(), tmp_path, polled=polled)
    assert make_cache(Teacher(), tmp_path, polled=polled).from_disk == 90
    assert polls == 3 + 3 * 4  # of each quantity, before its three shards and after each


def test_reading_long_says_how_long(make_cache: Any, tmp_path: pathlib.Path) -> None:
    rows = {"logits": (5,)}
    for start in range(0, 120, 30):
        make_cache(Teacher(rows), tmp_path, rows=rows).fill(np.arange(start, start + 30))
    said: list[str] = []
    moments = iter(range(0, 1000, 5))
    cache = make_cache(Teacher(rows), tmp_path, rows=rows, say=said.append, clock=lambda: float(next(moments)))
    assert cache.from_disk == 120
    (message,) = said
    # Of four alike, at five seconds each, one is left; files are a little more than what they hold
    assert re.fullmatch(r"0.0 GB of the teacher's cache are read from disk, in about (\d+) s from now", message)
    assert 5 <= int(message.split()[-4]) < 60


def test_a_teacher_that_fails_leaves_what_it_gave(make_cache: Any, tmp_path: pathlib.Path) -> None:
    def failing(ids: np.ndarray) -> dict[str, jax.Array]:
        if 50 in ids:
            raise ZeroDivisionError
        return Teacher()(ids)

    with pytest.raises(ZeroDivisionError):
        make_cache(failing, tmp_path).fill_all()
    assert make_cache(Teacher(), tmp_path).from_disk == 3 * BATCH


@pytest.mark.parametrize("name", ["embedding", "norm"])
def test_rows_that_are_not_finite_are_named_and_not_kept(make_cache: Any, tmp_path: pathlib.Path, name: str) -> None:
    teacher = Teacher()
    teacher.bad = {name: [40, 44, 149]}  # the last one is padding, too, in the last batch
    cache = make_cache(teacher, tmp_path)
    with pytest.raises(
        NotFinite, match=rf"the {name} of 2 of 16 views .* another --workdir and --config.teacher.cache=none"
    ):
        cache.fill_all()
    assert cache.computed == 2 * BATCH
    again = make_cache(teacher, tmp_path)
    assert again.from_disk == 2 * BATCH
    with pytest.raises(NotFinite, match=f"the {name} of 1 of 2 views"):
        again.fill(np.array([148, 149]))
    with pytest.raises(RuntimeError, match="1 of 1"):
        again.lookup(np.array([149]), make_cache.where)


KILLED = """
import pathlib, sys, time
import jax, jax.numpy as jnp, numpy as np
from gkd_jax.training import cache
from gkd_jax.training.devices import mesh, replicated
from gkd_jax.training.shards import Shards

def ask(ids):
    time.sleep(0.002)
    return {"logits": jnp.asarray(((ids % 200)[:, None] * 7 + np.arange(5) * 11).astype(np.float16))}

cache._SHARD = 1000
shards = {"logits": Shards(pathlib.Path(sys.argv[1]), print)}
where = replicated(mesh(jax.devices()))
fields = {"device_budget": 0, "where": where, "shards": shards, "say": print}
cache.Cache(ask, {"logits": (5,)}, size=10**6, batch=16, **fields).fill_all()
"""


@pytest.mark.slow
def test_a_fill_that_is_killed_leaves_what_it_wrote(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "logits"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", KILLED, folder], cwd=root, env=env, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.npz"))) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    said, _ = process.communicate()
    assert (process.returncode, said) == (-9, b"")
    with alone([Shards(folder, pytest.fail)], pytest.fail, pytest.fail):  # it let go
        pass
    found = list(Shards(folder, pytest.fail).read(np.float16, (5,), 10**6))
    ids = np.concatenate([ids for ids, _ in found])
    assert sorted(ids.tolist()) == list(range(len(ids)))  # whole shards, one after another
    assert len(ids) >= 5 * 100
    for some, rows in found:
        np.testing.assert_array_equal(rows, (some % 200)[:, None] * 7 + np.arange(5) * 11)
