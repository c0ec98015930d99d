import errno
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.training import tables
from gkd_jax.training.cache import Cache, NotFinite
from gkd_jax.training.devices import mesh, replicated
from gkd_jax.training.shards import Shards
from gkd_jax.training.tables import TooLarge

SIZE, BATCH = 150, 16
ROWS: dict[str, tuple[int, ...]] = {"logits": (5,), "embedding": (2, 3), "norm": ()}
PLENTY = 1 << 20


def truth(name: str, ids: np.ndarray) -> np.ndarray:
    """Integers below 2,048, which float16 holds exactly; each id has its own."""
    row = np.arange(int(np.prod(ROWS[name]))).reshape(ROWS[name])
    return (np.asarray(ids).reshape((*np.shape(ids), *[1] * row.ndim)) * 7 + row * 11 + len(name)).astype(np.float16)


class Teacher:
    """What is asked of it is remembered."""

    def __init__(self, rows: dict[str, tuple[int, ...]] | None = None):
        self.rows = ROWS if rows is None else rows
        self.calls: list[list[int]] = []
        self.bad: dict[str, list[int]] = {}

    def __call__(self, ids: jax.Array) -> dict[str, jax.Array]:
        assert ids.shape == (BATCH,)
        self.calls.append(np.asarray(ids).tolist())
        rows = {name: truth(name, np.asarray(ids)) for name in self.rows}
        for name, bad in self.bad.items():
            rows[name][np.isin(np.asarray(ids), bad)] = np.inf
        return {name: jax.device_put(x, ids.sharding) for name, x in rows.items()}

    @property
    def asked(self) -> list[int]:
        """The ids of all calls, each once a call."""
        return sorted(i for call in self.calls for i in set(call))


@pytest.fixture(params=["device", "host", "two devices", "two devices, host"])
def make(request: pytest.FixtureRequest) -> Callable[..., Cache]:
    """Returns a function that makes a cache in the tier under test, with the folder and the teacher that are given."""
    many = "two" in request.param
    where = replicated(mesh(jax.devices()[: 2 if many else 1]))

    def build(ask: Any, folder: pathlib.Path | None = None, **fields: Any) -> Cache:
        say = fields.setdefault("say", pytest.fail)
        rows = fields.pop("rows", ROWS)
        given = {
            "size": SIZE,
            "batch": BATCH,
            "where": where,
            "device_budget": 0 if "host" in request.param else PLENTY,
            "shards": None if folder is None else {name: Shards(folder / name, say) for name in rows},
            "waits": many,
        }
        cache = Cache(ask, rows, **{**given, **fields})
        assert cache.tier == ("host" if "host" in request.param else "device")
        return cache

    build.where = where  # type: ignore[attr-defined]
    return build


def check(cache: Cache, make: Any, ids: Any) -> None:
    found = cache.lookup(ids, make.where)
    assert sorted(found) == sorted(ROWS)
    for name, rows in found.items():
        assert rows.dtype == jnp.float16
        assert rows.sharding == make.where
        np.testing.assert_array_equal(np.asarray(rows), truth(name, np.asarray(ids)))


def test_everything_can_be_looked_up_and_is_asked_for_once(make: Any) -> None:
    teacher = Teacher()
    cache = make(teacher)
    assert not cache.complete
    cache.fill_all()
    assert cache.complete
    assert teacher.asked == list(range(SIZE))
    assert (cache.computed, cache.from_disk, cache.missing) == (SIZE, 0, 0)
    assert cache.nbytes == SIZE * 2 * (5 + 6 + 1)
    check(cache, make, np.arange(SIZE))
    check(cache, make, np.random.default_rng(0).integers(0, SIZE, (4, 6)))
    check(cache, make, jnp.array([[0, SIZE - 1]]))
    check(cache, make, np.array(3, np.int32))
    check(cache, make, np.zeros((0, 4), np.int32))
    cache.fill_all()
    cache.fill(np.arange(SIZE))
    assert len(teacher.calls) == -(-SIZE // BATCH)


def test_only_what_is_missing_is_asked_for(make: Any) -> None:
    teacher = Teacher()
    cache = make(teacher)
    cache.fill(np.array([[5, 9], [5, 149]], np.int32))
    assert teacher.asked == [5, 9, 149]
    cache.fill(jnp.array([9, 10]))
    assert teacher.asked == [5, 9, 10, 149]
    assert cache.computed == 4
    check(cache, make, np.array([5, 149, 10, 9]))
    cache.fill_all()
    assert teacher.asked == list(range(SIZE))
    check(cache, make, np.arange(SIZE))


def test_padding_is_kept_nowhere(make: Any, tmp_path: pathlib.Path) -> None:
    cache = make(Teacher(), tmp_path)
    cache.fill(np.array([3, 20]))
    assert (cache.computed, cache.missing) == (2, SIZE - 2)
    for name, row in ROWS.items():
        ((ids, _),) = Shards(tmp_path / name, pytest.fail).read(np.float16, row, SIZE)
        assert ids.tolist() == [3, 20]


def test_what_is_not_held_cannot_be_looked_up(make: Any) -> None:
    cache = make(Teacher())
    cache.fill(np.array([1, 2, 3]))
    with pytest.raises(RuntimeError, match="2 of 4 ids"):
        cache.lookup(np.array([[1, 4], [5, 2]]), make.where)
    for bad in (-1, SIZE):
        with pytest.raises(RuntimeError, match=f"there are but 0 to {SIZE - 1}"):
            cache.lookup(np.array([1, bad]), make.where)
        with pytest.raises(RuntimeError, match=f"there are but 0 to {SIZE - 1}"):
            cache.fill(np.array([1, bad]))


def test_rows_come_on_the_sharding_that_is_asked_for(make: Any) -> None:
    cache = make(Teacher())
    cache.fill_all()
    where = jax.sharding.NamedSharding(make.where.mesh, jax.sharding.PartitionSpec(None, "data"))
    ids = np.arange(24).reshape(3, 8)
    for name, rows in cache.lookup(ids, where).items():
        assert rows.sharding == where
        np.testing.assert_array_equal(np.asarray(rows), truth(name, ids))
    check(cache, make, ids)


def test_a_jitted_sharded_teacher(make: Any) -> None:
    by_row = jax.sharding.NamedSharding(make.where.mesh, jax.sharding.PartitionSpec("data"))

    def ask(ids: jax.Array) -> dict[str, jax.Array]:
        return {"logits": (ids[:, None] * 7 + jnp.arange(5)[None] * 11 + 6).astype(jnp.float16)}

    cache = make(jax.jit(ask, out_shardings=by_row), rows={"logits": (5,)})
    cache.fill_all()
    (rows,) = cache.lookup(np.arange(SIZE), make.where).values()
    np.testing.assert_array_equal(np.asarray(rows), truth("logits", np.arange(SIZE)))


def test_the_next_run_asks_nothing(make: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(Teacher(), tmp_path)
    first.fill(np.arange(40))
    first.fill_all()
    monkeypatch.setattr(tables, "_LOADED", 2 * 5 * 32)  # several parts, the last one not full
    again = make(pytest.fail, tmp_path)
    assert again.complete
    assert (again.computed, again.from_disk, again.seconds) == (0, SIZE, 0.0)
    check(again, make, np.arange(SIZE))
    again.fill_all()


def test_shards_are_written_as_they_fill(make: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gkd_jax.training.cache._SHARD", 4 * BATCH * 2 * 5)
    make(Teacher(), tmp_path).fill_all()
    assert len(list((tmp_path / "logits").glob("*.npz"))) == 3  # 10 batches: 4, 4 and 2
    assert make(pytest.fail, tmp_path).complete


def test_a_quantity_that_was_lost_is_computed_and_the_others_stay(make: Any, tmp_path: pathlib.Path) -> None:
    make(Teacher(), tmp_path).fill(np.arange(100))
    for path in (tmp_path / "norm").iterdir():
        path.unlink()

    def other(ids: jax.Array) -> dict[str, jax.Array]:
        rows = {name: truth(name, np.asarray(ids)) for name in ROWS}
        rows["logits"] = np.where(np.asarray(ids)[:, None] < 100, np.float16(-1), rows["logits"])  # must not be taken
        return {name: jax.device_put(x, ids.sharding) for name, x in rows.items()}

    cache = make(other, tmp_path)
    assert (cache.from_disk, cache.missing) == (0, SIZE)
    cache.fill_all()
    check(cache, make, np.arange(SIZE))
    check(make(pytest.fail, tmp_path), make, np.arange(SIZE))
    logits = [ids for ids, _ in Shards(tmp_path / "logits", pytest.fail).read(np.float16, (5,), SIZE)]
    assert sorted(np.concatenate(logits).tolist()) == list(range(SIZE))  # each written once


def test_a_damaged_shard_is_computed_anew(make: Any, tmp_path: pathlib.Path) -> None:
    cache = make(Teacher(), tmp_path)
    cache.fill(np.arange(30))
    known = set((tmp_path / "logits").iterdir())
    cache.fill(np.arange(30, SIZE))
    (second,) = set((tmp_path / "logits").iterdir()) - known
    second.write_bytes(second.read_bytes()[:-30])
    said: list[str] = []
    teacher = Teacher()
    again = make(teacher, tmp_path, say=said.append)
    assert len(said) == 1
    assert again.from_disk == 30
    again.fill_all()
    assert teacher.asked == list(range(30, SIZE))
    check(again, make, np.arange(SIZE))
    assert make(pytest.fail, tmp_path).complete


def test_two_runs_share_a_folder(make: Any, tmp_path: pathlib.Path) -> None:
    one, other = make(Teacher(), tmp_path), make(Teacher(), tmp_path)
    one.fill(np.arange(0, 90))
    other.fill(np.arange(60, SIZE))
    both = make(pytest.fail, tmp_path)
    assert both.complete
    check(both, make, np.arange(SIZE))


def test_a_full_disk_does_not_stop(make: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said: list[str] = []
    cache = make(Teacher(), tmp_path, say=said.append)
    cache.fill(np.arange(10))
    monkeypatch.setattr(os, "replace", full)
    cache.fill(np.arange(20))
    cache.fill_all()
    assert len(said) == len(ROWS)
    check(cache, make, np.arange(SIZE))
    monkeypatch.undo()
    assert make(Teacher(), tmp_path).from_disk == 10


def test_a_stop_keeps_what_was_computed(make: Any, tmp_path: pathlib.Path) -> None:
    class Asked(Exception):
        pass

    teacher = Teacher()

    def polled() -> None:
        if len(teacher.calls) == 4:
            raise Asked

    cache = make(teacher, tmp_path, polled=polled)
    with pytest.raises(Asked):
        cache.fill_all()
    assert cache.computed == 4 * BATCH
    rest = Teacher()
    again = make(rest, tmp_path)
    assert again.from_disk == 4 * BATCH
    again.fill_all()
    assert rest.asked == list(range(4 * BATCH, SIZE))
    check(again, make, np.arange(SIZE))


def test_a_teacher_that_fails_leaves_what_it_gave(make: Any, tmp_path: pathlib.Path) -> None:
    def failing(ids: jax.Array) -> dict[str, jax.Array]:
        if 50 in np.asarray(ids):
            raise ZeroDivisionError
        return Teacher()(ids)

    with pytest.raises(ZeroDivisionError):
        make(failing, tmp_path).fill_all()
    assert make(Teacher(), tmp_path).from_disk == 3 * BATCH


@pytest.mark.parametrize("name", ["embedding", "norm"])
def test_rows_that_are_not_finite_are_named_and_not_kept(make: Any, tmp_path: pathlib.Path, name: str) -> None:
    teacher = Teacher()
    teacher.bad = {name: [40, 44, 149]}  # the last one is padding, too, in the last batch
    cache = make(teacher, tmp_path)
    with pytest.raises(NotFinite, match=rf"the {name} of 2 of 16 views .* use teacher.cache=none"):
        cache.fill_all()
    assert cache.computed == 2 * BATCH
    again = make(teacher, tmp_path)
    assert again.from_disk == 2 * BATCH
    with pytest.raises(NotFinite, match=f"the {name} of 1 of 2 views"):
        again.fill(np.array([148, 149]))
    with pytest.raises(RuntimeError, match="1 of 1"):
        again.lookup(np.array([149]), make.where)


@pytest.mark.parametrize("wrong", [np.zeros((BATCH, 5), np.float32), np.zeros((BATCH, 4), np.float16)])
def test_rows_of_another_type_or_shape_are_refused(make: Any, wrong: np.ndarray) -> None:
    cache = make(lambda ids: {"logits": jnp.asarray(wrong)}, rows={"logits": (5,)})
    with pytest.raises(ValueError, match=r"not float16\(16, 5\)"):
        cache.fill_all()


def test_a_long_fill_says_how_long_and_a_short_one_nothing(make: Any) -> None:
    now = 0.0

    class Slow(Teacher):
        def __call__(self, ids: jax.Array) -> dict[str, jax.Array]:
            nonlocal now
            now += 100.0 if not self.calls else 2.0  # the first compiles
            return super().__call__(ids)

    said: list[str] = []
    cache = make(Slow(), say=said.append, clock=lambda: now)
    cache.fill_all()
    # Ten batches; the third is put away when the fifth is under way, two seconds a batch: 7 to go
    assert said == [
        "150 views are computed for the cache, in about 14 s from now",
        "150 views computed in 118 s, 1 a second",
    ]
    assert cache.seconds == 118.0
    said.clear()
    short = make(Teacher(), say=said.append, clock=lambda: 0.0)
    short.fill_all()
    assert said == []


def one_device(ask: Any, **fields: Any) -> Cache:
    where = replicated(mesh(jax.devices()[:1]))
    given: dict[str, Any] = {"size": SIZE, "batch": BATCH, "device_budget": PLENTY, "shards": None, "say": pytest.fail}
    return Cache(ask, {"logits": (5,)}, **{**given, "where": where, **fields})


def test_the_tier_is_the_first_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = SIZE * 2 * 5
    assert one_device(pytest.fail, device_budget=needed).tier == "device"
    assert one_device(pytest.fail, device_budget=needed - 1).tier == "host"
    monkeypatch.setattr(tables, "available_memory", lambda: needed * 10 // 8)
    assert one_device(pytest.fail, device_budget=0).tier == "host"
    monkeypatch.setattr(tables, "available_memory", lambda: needed * 10 // 8 - 1)
    with pytest.raises(TooLarge, match=r"150 rows of logits take 1,500 bytes; of the 1,874 that are available"):
        one_device(pytest.fail, device_budget=0)
    monkeypatch.setattr(tables, "MAX_SIZE", SIZE - 1)
    with pytest.raises(TooLarge, match="int32"):
        one_device(pytest.fail)


def test_available_memory_is_less_than_there_is() -> None:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1 << 20 < tables.available_memory() <= there


def test_the_device_table_is_changed_in_place() -> None:
    cache = one_device(Teacher({"logits": (5,)}))
    before = cache._tables["logits"]._table.unsafe_buffer_pointer()  # type: ignore[attr-defined]
    cache.fill_all()
    assert cache._tables["logits"]._table.unsafe_buffer_pointer() == before  # type: ignore[attr-defined]


def test_nothing_is_compiled_twice(make: Any) -> None:
    cache = make(Teacher(), rows={"logits": (5,)})
    cache.fill(np.arange(5))
    cache.lookup(np.arange(5), make.where)
    compiled = [tables._storing(make.where), tables._gathering(make.where)]
    before = [function._cache_size() for function in compiled]
    cache.fill(np.arange(5, 100))
    cache.fill_all()
    cache.lookup(np.arange(5, 10), make.where)
    assert [function._cache_size() for function in compiled] == before


def test_the_cheaper_way_is_chosen_and_said() -> None:
    # 150 views of 15 examples: 160 forwards up front, in batches of 16
    cache = one_device(Teacher({"logits": (5,)}))
    assert cache.cost(1, 15, 10) == (160, 16)
    how, why = cache.choose(1, 15, 10)
    assert how == "by epoch"
    assert "160 forwards for the 150 views" in why
    assert "against 16 expected" in why
    assert cache.choose(100, 15, 10)[0] == "up front"


def test_a_tie_leaves_a_complete_cache() -> None:
    # With one view of each example, the first epoch asks for everything anyway
    cache = one_device(Teacher({"logits": (5,)}))
    assert cache.cost(3, SIZE, 1) == (160, 160)
    assert cache.choose(3, SIZE, 1)[0] == "up front"
    cache.fill_all()
    assert cache.cost(3, SIZE, 1) == (0, 0)
    assert cache.choose(3, SIZE, 1) == ("up front", "all 150 views are held")
