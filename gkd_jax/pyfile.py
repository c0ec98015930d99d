"""What a Python file of the user's returns: `FILE.py` or `FILE.py:ARGUMENT`, every mistake in it one sentence."""

import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, TypeVar

from gkd_jax.errors import UserError

T = TypeVar("T")


def split(name: str) -> tuple[pathlib.Path, list[str]]:
    """Returns the file that is named, and what follows a colon behind it, if anything does."""
    match = re.fullmatch(r"(.*?\.py):(.*)", name, re.DOTALL)
    return (pathlib.Path(match[1]), [match[2]]) if match else (pathlib.Path(name), [])


def call(flag: str, name: str, function: str, kind: type[T], example: str) -> T:
    """Returns what a function in a file returns.

    The file is run once: it may register terms, networks and data sets.

    Args:
      flag: that names the file, for messages.
      name: FILE.py or FILE.py:ARGUMENT.
      function: in the file, which is given the argument, if there is one.
      kind: of what it must return.
      example: of that.

    Raises:
      UserError: if there is no such file or function, or it fails, or returns anything else.
    """
    file, argument = split(name)
    if not file.is_file():
        raise UserError(f"{flag}: no such file: {file}")
    spec = importlib.util.spec_from_file_location(f"gkd_jax_{function}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{flag}: {file} is no Python file; it must be a .py file with {function}()")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where classes that it defines look for it
    try:
        spec.loader.exec_module(module)
        found = getattr(module, function, None)
        if not callable(found):
            raise UserError(f"it has no function {function}()")
        _check_argument(found, argument)
        returned = found(*argument)
    except UserError as error:
        raise UserError(f"{flag}: {file}: {error}") from error
    except Exception as error:  # whatever the user's file raises
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{flag}: {file} fails{_line(error, file)}: {what}") from error
    if not isinstance(returned, kind):
        raise UserError(
            f"{flag}: {file}: {function}() returned {type(returned).__name__}; it must return an "
            f"{kind.__module__}.{kind.__name__}, such as {example}"
        )
    return returned


def _check_argument(function: Any, argument: Sequence[str]) -> None:
    try:
        inspect.signature(function).bind(*argument)
    except TypeError as error:
        if argument:
            raise UserError(f"it takes no argument, but {argument[0]!r} stands behind the colon") from error
        raise UserError("it needs an argument, as in FILE.py:ARGUMENT; its first lines say which") from error


def _line(error: Exception, file: pathlib.Path) -> str:
    """Returns " in line 12", the last line of the file itself that an error came through."""
    trace = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in trace if pathlib.Path(frame.filename).name == file.name]
    return f" in line {lines[-1]}" if lines else ""
