"""What processes tell each other through the key-value store of JAX's coordination service.

No device takes part in it: it works while a program runs, and before the first one. An exchange takes milliseconds, so
that it belongs at the beginning and the end of things, and never into the loop over the steps.
"""

import itertools
import json
import zlib
from base64 import b85decode, b85encode
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from gkd_jax.errors import UserError

T = TypeVar("T")

ROOT = "gkd_jax"
_LOOK = 1000  # milliseconds of one wait: between two of them a signal can be heard
_PIECE = 1 << 20  # characters of one value: gRPC takes messages of up to 4 MB
_rounds = itertools.count()


def several() -> bool:
    """Returns whether more than one process does this run."""
    return _joined().num_processes > 1


def count() -> int:
    """Returns the number of processes."""
    known: int = _joined().num_processes
    return known


def index() -> int:
    """Returns the number of this process, from 0."""
    known: int = _joined().process_id
    return known


def first() -> bool:
    """Returns whether this process is the one that writes records, plots, summaries and lines on the terminal."""
    return index() == 0


def client() -> Any:
    """Returns the client of the coordination service."""
    return _joined().client


def _joined() -> Any:
    """Returns what JAX knows of the processes before it looks for devices, for which it has no public name."""
    from jax._src import distributed

    return distributed.global_state


def exchange(text: str) -> list[str]:
    """Returns what each process gave, in the order of their numbers; waits until all have given theirs.

    A process that dies meanwhile ends the others, see `watch`.
    """
    if not several():
        return [text]
    store, number = client(), next(_rounds)
    me = index()
    pieces = [text[i : i + _PIECE] for i in range(0, len(text), _PIECE)]
    for place, piece in enumerate(pieces):
        store.key_value_set(f"{ROOT}/said/{number}/{me}/{place}", f"={piece}")
    store.key_value_set(f"{ROOT}/said/{number}/{me}/pieces", f"{len(pieces)}")
    if number > 1:  # who has come to the round before this one has read all of the one before that
        store.key_value_delete(f"{ROOT}/said/{number - 2}/{me}/")
    found = []
    for other in range(count()):
        where = f"{ROOT}/said/{number}/{other}"
        found.append(
            "".join(_awaited(store, f"{where}/{i}")[1:] for i in range(int(_awaited(store, f"{where}/pieces"))))
        )
    return found


def _awaited(store: Any, key: str) -> str:
    while True:
        try:
            value: str = store.blocking_key_value_get(key, _LOOK)
            return value
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def first_does(function: Callable[[], T]) -> T:
    """Has process 0 alone call a function, and returns everywhere what it returned, as JSON can hold it.

    The others wait for it.

    Raises:
      UserError: on every process, where the function raises one.
    """
    if not several():
        return function()
    raised: UserError | None = None
    said: dict[str, Any] = {}
    if first():
        try:
            said["value"] = function()
        except UserError as error:
            raised, said["error"] = error, str(error)
    told = json.loads(exchange(json.dumps(said))[0])
    if raised is not None:
        raise raised
    if "error" in told:
        raise UserError(told["error"])
    value: T = told["value"]
    return value


def in_turn(function: Callable[[], T]) -> T:
    """Calls a function on process 0 and, when that is done, on the others: for what the first call prepares on disk."""
    if first():
        value = function()
        exchange("")
        return value
    exchange("")
    return function()


def same(what: Mapping[str, Any]) -> None:
    """Makes sure that all processes were given the same.

    Args:
      what: by name, as JSON can hold it.

    Raises:
      UserError: on every process, naming what differs, where, and how.
    """
    if not several():
        return
    first_one, *others = (json.loads(text) for text in exchange(json.dumps(dict(what), sort_keys=True)))
    for process, other in enumerate(others, 1):
        differing = sorted(k for k in {*first_one, *other} if first_one.get(k) != other.get(k))
        if differing:
            told = "; ".join(
                f"{name} is {first_one.get(name)!r} in process 0 and {other.get(name)!r} in process {process}"
                for name in differing[:3]
            )
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UserError(f"the {count()} processes of a run must be given the same: {told}{more}")


def least(number: float) -> float:
    """Returns the smallest of the numbers that the processes give."""
    return min(map(float, exchange(repr(float(number)))))


def on_all(mask: np.ndarray) -> np.ndarray:
    """Returns where a mask, bool [n] with the same n everywhere, is true on every process."""
    if not several():
        return mask
    packed = b85encode(zlib.compress(np.packbits(mask).tobytes())).decode()
    found = np.ones(len(mask), np.bool_)
    for text in exchange(packed):
        bits = np.frombuffer(zlib.decompress(b85decode(text)), np.uint8)
        found &= np.unpackbits(bits, count=len(mask)).astype(np.bool_)
    return found
