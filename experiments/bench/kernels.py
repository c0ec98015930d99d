"""What an optimised program starts on a device, read from its text."""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

from experiments.bench import hlo

# Names for what is there already
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_FREE |= {"opt-barrier", "async-done", "async-update", "copy-done"}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:to_apply|calls|called_computation)=%?([\w.\-]+)")
_BODY = re.compile(r"body=%?([\w.\-]+)")
_TRIPS = re.compile(r"known_trip_count\D+(\d+)")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')


class Started(NamedTuple):
    """What one turn of the longest loop of a program starts.

    Attributes:
      launches: kernels and calls of libraries, by kind; those of a loop inside as often as it turns, if it says so.
      bytes: that all of them read and write, each its operands and results; what stays in a cache is counted again.
    """

    launches: collections.Counter[str]
    bytes: float

    @property
    def total(self) -> int:
        """Number of launches."""
        return self.launches.total()


def started(text: str) -> Started:
    """Returns what a turn of the program's loop starts.

    Raises:
      ValueError: if it is no loop.
    """
    computations, main = _computations(text)
    bodies = [_found(_BODY, line) for line in computations[main] if " while(" in line]
    if not bodies:
        raise ValueError("the program is no loop")
    launches: collections.Counter[str] = collections.Counter()
    moved = sum(_walk(computations, max(bodies, key=lambda body: len(computations[body])), 1, launches))
    return Started(launches, moved)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the instructions of each computation, and the name of the main one."""
    found: dict[str, list[str]] = {}
    main, lines = "", []
    for line in hlo.without_comments(text).splitlines():
        if head := _HEAD.match(line):
            lines = found[head[2]] = []
            main = head[2] if head[1] else main
        elif " = " in line:
            lines.append(line)
    return found, main


def _walk(
    computations: dict[str, list[str]], name: str, times: int, launches: collections.Counter[str]
) -> Iterator[float]:
    """Adds what a computation starts to `launches`; yields the bytes of each."""
    sizes = {}
    for line in computations[name]:
        found = hlo.instruction(line)
        if found is None:
            continue
        sizes[found.name] = hlo.array_bytes(found.kind)
        if found.opcode in _FREE:
            continue
        if found.opcode == "while":
            trips = _TRIPS.search(line)
            yield from _walk(computations, _found(_BODY, line), times * int(trips[1] if trips else 1), launches)
        elif found.opcode in ("call", "async-start"):
            yield from _walk(computations, _found(_CALLED, line), times, launches)
        else:
            launches[_found(_TARGET, line) if found.opcode == "custom-call" else found.opcode] += times
            yield times * (sizes[found.name] + sum(sizes.get(operand, 0.0) for operand in found.operands))


def _found(pattern: re.Pattern[str], line: str) -> str:
    match = pattern.search(line)
    assert match is not None, line
    return match[1]
