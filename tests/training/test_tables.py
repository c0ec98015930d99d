import os
from typing import Any

import jax
import pytest
from caches import SIZE, Teacher, one_device

from gkd_jax.training import tables
from gkd_jax.training.tables import TooLarge


def test_the_tier_is_the_first_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = SIZE * 2 * 5
    assert one_device(pytest.fail, device_budget=needed).tier == "device"
    assert one_device(pytest.fail, device_budget=needed - 1).tier == "host"
    monkeypatch.setattr(tables, "available_memory", lambda: needed * 10 // 8)
    assert one_device(pytest.fail, device_budget=0).tier == "host"
    monkeypatch.setattr(tables, "available_memory", lambda: needed * 10 // 8 - 1)
    with pytest.raises(TooLarge, match=r"150 rows of logits, .* take 1,500 bytes; of the 1,874 that are available"):
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


class Late:
    """An array of which only waiting tells that there is no memory for it."""

    def block_until_ready(self) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1500 bytes.")


def test_a_device_that_has_less_than_it_was_given_leaves_the_rows_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(tables, "_empty", lambda where: lambda shape: Late())
    cache = one_device(Teacher({"logits": (5,)}), say=said.append)
    assert cache.tier == "host"
    (message,) = said
    assert message.startswith("teacher.cache: the device has no 1,500 bytes left, though teacher.cache_memory allows")
    cache.fill_all()
    # Where the host has no room either, the run asks the teacher at every step
    monkeypatch.setattr(tables, "available_memory", lambda: 1000)
    with pytest.raises(TooLarge):
        one_device(pytest.fail, say=said.append)


def test_other_errors_of_the_device_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(where: Any) -> Any:
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is gone")

    monkeypatch.setattr(tables, "_empty", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="is gone"):
        one_device(pytest.fail)


def test_a_device_that_really_has_not_so_much() -> None:
    said: list[str] = []
    rows, size = {"logits": (1 << 20,)}, 1 << 30
    where = one_device(pytest.fail)._where
    assert tables.on_device(rows, size, 1 << 60, where, False, said.append) is None
    assert len(said) == 1
