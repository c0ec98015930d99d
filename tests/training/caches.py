"""Caches for tests: of a teacher whose every row is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.training.cache import Cache
from gkd_jax.training.devices import mesh, replicated

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

    def __call__(self, ids: np.ndarray) -> dict[str, jax.Array]:
        assert ids.shape == (BATCH,)
        self.calls.append(ids.tolist())
        rows = {name: truth(name, ids) for name in self.rows}
        for name, bad in self.bad.items():
            rows[name][np.isin(ids, bad)] = np.inf
        return jax.tree.map(jnp.asarray, rows)

    @property
    def asked(self) -> list[int]:
        """The ids of all calls, each once a call."""
        return sorted(i for call in self.calls for i in set(call))


def check(cache: Cache, make_cache: Any, ids: Any) -> None:
    found = cache.lookup(ids, make_cache.where)
    assert sorted(found) == sorted(ROWS)
    for name, rows in found.items():
        assert rows.dtype == jnp.float16
        assert rows.sharding == make_cache.where
        np.testing.assert_array_equal(np.asarray(rows), truth(name, np.asarray(ids)))


def one_device(ask: Any, **fields: Any) -> Cache:
    where = replicated(mesh(jax.devices()[:1]))
    given: dict[str, Any] = {"size": SIZE, "batch": BATCH, "device_budget": PLENTY, "shards": None, "say": pytest.fail}
    return Cache(ask, {"logits": (5,)}, **{**given, "where": where, **fields})
