"""The rule by which terms, networks and data sets take a name."""

import inspect
from typing import Any, TypeVar

_Entry = TypeVar("_Entry")


def add(register: dict[str, _Entry], what: str, name: str, entry: _Entry) -> None:
    """Adds an `entry` under `name`, in place of an earlier definition of the same function.

    So a notebook's cell may run twice, and a configuration file may be read again.

    Args:
      register: where to.
      what: "term", "model" or "data set".
      name: the name.
      entry: the function, or what has it as `__wrapped__`.

    Raises:
      ValueError: if another function has the name.
    """
    if name in register and _definition(register[name]) != _definition(entry):
        raise ValueError(f"the {what} {name!r} is registered already, by {'.'.join(_definition(register[name]))}")
    register[name] = entry


def _definition(entry: Any) -> tuple[str, str]:
    function = inspect.unwrap(entry)
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function))
