"""The key-value store of JAX's coordination service in one process, whose threads take themselves for processes."""

import threading
from collections.abc import Callable
from typing import Any

import jax


class Store:
    """What `gkd_jax.hosts` uses of JAX's client."""

    def __init__(self):
        self.held: dict[str, str] = {}
        self._changed = threading.Condition()

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        with self._changed:
            assert allow_overwrite or key not in self.held
            self.held[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self.held, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self.held[key]

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        with self._changed:
            return [(key, value) for key, value in self.held.items() if key.startswith(folder)]

    def key_value_delete(self, folder: str) -> None:
        with self._changed:
            for key in [key for key in self.held if key.startswith(folder)]:
                del self.held[key]


class Joined(threading.local):
    """What JAX knows of the processes, of each thread its own."""

    client: Any = None
    num_processes, process_id = 1, 0
    rounds = 0

    def __next__(self) -> int:
        self.rounds += 1
        return self.rounds - 1


def each(count: int, joined: Joined, store: Any, function: Callable[[int], Any]) -> list[Any]:
    """Calls a function in so many threads, and returns what each returned or raised."""
    store.held.clear()
    found: list[Any] = [None] * count

    def work(place: int) -> None:
        joined.client, joined.num_processes, joined.process_id = store, count, place
        try:
            found[place] = function(place)
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return found
