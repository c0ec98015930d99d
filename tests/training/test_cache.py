from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from caches import BATCH, SIZE, Teacher, check, one_device, truth

from gkd_jax.training import tables


def test_everything_can_be_looked_up_and_is_asked_for_once(make_cache: Any) -> None:
    teacher = Teacher()
    cache = make_cache(teacher)
    assert not cache.complete
    cache.fill_all()
    assert cache.complete
    assert teacher.asked == list(range(SIZE))
    assert (cache.computed, cache.from_disk, cache.missing) == (SIZE, 0, 0)
    assert cache.nbytes == SIZE * 2 * (5 + 6 + 1)
    check(cache, make_cache, np.arange(SIZE))
    check(cache, make_cache, np.random.default_rng(0).integers(0, SIZE, (4, 6)))
    check(cache, make_cache, jnp.array([[0, SIZE - 1]]))
    check(cache, make_cache, np.array(3, np.int32))
    check(cache, make_cache, np.zeros((0, 4), np.int32))
    cache.fill_all()
    cache.fill(np.arange(SIZE))
    assert len(teacher.calls) == -(-SIZE // BATCH)


def test_only_what_is_missing_is_asked_for(make_cache: Any) -> None:
    teacher = Teacher()
    cache = make_cache(teacher)
    cache.fill(np.array([[5, 9], [5, 149]], np.int32))
    assert teacher.asked == [5, 9, 149]
    cache.fill(jnp.array([9, 10]))
    assert teacher.asked == [5, 9, 10, 149]
    assert cache.computed == 4
    check(cache, make_cache, np.array([5, 149, 10, 9]))
    cache.fill_all()
    assert teacher.asked == list(range(SIZE))
    check(cache, make_cache, np.arange(SIZE))


def test_what_is_not_held_cannot_be_looked_up(make_cache: Any) -> None:
    cache = make_cache(Teacher())
    cache.fill(np.array([1, 2, 3]))
    with pytest.raises(RuntimeError, match="2 of 4 ids"):
        cache.lookup(np.array([[1, 4], [5, 2]]), make_cache.where)
    for bad in (-1, SIZE):
        with pytest.raises(RuntimeError, match=f"there are but 0 to {SIZE - 1}"):
            cache.lookup(np.array([1, bad]), make_cache.where)
        with pytest.raises(RuntimeError, match=f"there are but 0 to {SIZE - 1}"):
            cache.fill(np.array([1, bad]))


def test_rows_come_on_the_sharding_that_is_asked_for(make_cache: Any) -> None:
    cache = make_cache(Teacher())
    cache.fill_all()
    where = jax.sharding.NamedSharding(make_cache.where.mesh, jax.sharding.PartitionSpec(None, "data"))
    ids = np.arange(24).reshape(3, 8)
    for name, rows in cache.lookup(ids, where).items():
        assert rows.sharding == where
        np.testing.assert_array_equal(np.asarray(rows), truth(name, ids))
    check(cache, make_cache, ids)


def test_a_jitted_sharded_teacher(make_cache: Any) -> None:
    by_row = jax.sharding.NamedSharding(make_cache.where.mesh, jax.sharding.PartitionSpec("data"))

    def ask(ids: jax.Array) -> dict[str, jax.Array]:
        return {"logits": (ids[:, None] * 7 + jnp.arange(5)[None] * 11 + 6).astype(jnp.float16)}

    cache = make_cache(jax.jit(ask, out_shardings=by_row), rows={"logits": (5,)})
    cache.fill_all()
    (rows,) = cache.lookup(np.arange(SIZE), make_cache.where).values()
    np.testing.assert_array_equal(np.asarray(rows), truth("logits", np.arange(SIZE)))


@pytest.mark.parametrize("wrong", [np.zeros((BATCH, 5), np.float32), np.zeros((BATCH, 4), np.float16)])
def test_rows_of_another_type_or_shape_are_refused(make_cache: Any, wrong: np.ndarray) -> None:
    cache = make_cache(lambda ids: {"logits": jnp.asarray(wrong)}, rows={"logits": (5,)})
    with pytest.raises(ValueError, match=r"not float16\(16, 5\)"):
        cache.fill_all()


def test_a_long_fill_says_how_long_and_a_short_one_nothing(make_cache: Any) -> None:
    now = 0.0

    class Slow(Teacher):
        def __call__(self, ids: np.ndarray) -> dict[str, jax.Array]:
            nonlocal now
            now += 100.0 if not self.calls else 2.0  # the first compiles
            return super().__call__(ids)

    said: list[str] = []
    cache = make_cache(Slow(), say=said.append, clock=lambda: now)
    cache.fill_all()
    # Ten batches; the third is put away when the fifth is under way, two seconds a batch: 7 to go
    assert said == [
        "150 views are computed for the cache, in about 14 s from now",
        "150 views computed in 118 s, 1 a second",
    ]
    assert cache.seconds == 118.0
    said.clear()
    short = make_cache(Teacher(), say=said.append, clock=lambda: 0.0)
    short.fill_all()
    assert said == []


def test_nothing_is_compiled_twice(make_cache: Any) -> None:
    cache = make_cache(Teacher(), rows={"logits": (5,)})
    cache.fill(np.arange(5))
    cache.lookup(np.arange(5), make_cache.where)
    compiled = [tables._storing(make_cache.where), tables._gathering(make_cache.where)]
    before = [function._cache_size() for function in compiled]
    cache.fill(np.arange(5, 100))
    cache.fill_all()
    cache.lookup(np.arange(5, 10), make_cache.where)
    assert [function._cache_size() for function in compiled] == before


def test_the_cheaper_way_is_chosen_and_said() -> None:
    # 150 views of 15 examples: 160 forwards up front, in batches of 16
    cache = one_device(Teacher({"logits": (5,)}))
    assert cache.cost(1, 15, 10) == (160, 16)
    how, why = cache.choose(1, 15)
    assert how == "by epoch"
    assert "160 forwards for the 150 views" in why
    assert "against 16 expected" in why
    assert cache.choose(100, 15)[0] == "up front"


def test_a_tie_leaves_a_complete_cache() -> None:
    # With one view of each example, the first epoch asks for everything anyway
    cache = one_device(Teacher({"logits": (5,)}))
    assert cache.cost(3, SIZE, 1) == (160, 160)
    assert cache.choose(3, SIZE)[0] == "up front"
    cache.fill_all()
    assert cache.cost(3, SIZE, 1) == (0, 0)
    assert cache.choose(3, SIZE) == ("up front", "all 150 views are held")
