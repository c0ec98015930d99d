"""Which fields of a configuration make a run what it is, and how two runs differ."""

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from gkd_jax.config import NO_CACHE, leaves
from gkd_jax.errors import UserError

# Fields that older runs have not, with the value that means what these did: they are then the same runs.
_ADDED: dict[str, Any] = {
    "seeds": [],
    "seeds_share_batches": False,
    "batch_seed": None,
    "teacher.cache": NO_CACHE,
    "teacher.cache_top": 10,
    "data.num_train": None,
    "data.image_size": None,
    "student.reuse_classifier": False,
}

FILE = "npz:"
"""How a `data.source` begins that is a file."""

# Likewise of each line of an objective.
_LINE = re.compile(r"objective\.(ce|terms\.[^.]+)\.[^.]+$")
_ADDED_TO_LINES: dict[str, Any] = {"view": "weak", "balance": False, "standardize": False}

# Fields that change nothing about the result, and so do not make a run another run.
_NEUTRAL = (
    "compilation_cache",
    "cpu_devices",
    "data.data_dir",
    "data.residency",
    "data.workers",
    "plots",
    "recipe",
    "seed_strategy",
    "steps_per_call",
    "teacher.cache_dir",
    "teacher.cache_memory",
    "tensorboard",
)

# Values that leave the same behind as another one, of which older runs tell: "auto" keeps the same best and the last.
_ALIKE: dict[str, dict[str, Any]] = {"checkpoint_every": {"auto": 1}}


def to_json(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration as plain dictionaries, lists and numbers, as `json` reads it back.

    Raises:
      UserError: names the field whose value is none of these.
    """
    try:
        return json.loads(json.dumps(resolved))
    except (TypeError, ValueError) as error:
        for path, value in leaves(resolved):
            try:
                json.dumps(value)
            except (TypeError, ValueError):
                raise UserError(f"{path} must be a number, a string or a list of them, not {value!r}") from error
        raise


def identity(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that make a run what it is, by dotted path: all but logging and paths of caches."""
    return {
        path: _ALIKE.get(path, {}).get(value, value) if isinstance(value, str) else value
        for path, value in leaves(to_json(resolved))
        if path not in _NEUTRAL and not _added(path, value)
    }


def _added(path: str, value: Any) -> bool:
    """Returns whether a field says what was so before there was such a field."""
    if path in _ADDED:
        return bool(value == _ADDED[path])
    return (
        bool(_LINE.match(path))
        and (name := path.rpartition(".")[2]) in _ADDED_TO_LINES
        and (bool(value == _ADDED_TO_LINES[name]))
    )


def config_hash(resolved: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a resolved configuration, 16 hexadecimal digits; see `identity`."""
    text = json.dumps(identity(resolved), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Returns "field: there -> here" for each field in which two resolved configurations are different runs."""
    a, b = identity(here), identity(there)
    return [f"{k}: {b.get(k)!r} -> {a.get(k)!r}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]


# Fields that name folders of the machine that trained, with what they become elsewhere
_PLACES: dict[str, Any] = {"compilation_cache": "auto", "data.data_dir": None, "teacher.cache_dir": "auto"}


def placeless(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration to be shown to others: without folders of this machine, and of files the names alone.

    Paths below the working directory that a run was started from are kept where they say what the run was: those of
    `teacher.checkpoint`, unless they are absolute.
    """
    return _placeless(to_json(resolved), "")


def _placeless(resolved: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in resolved.items():
        path = prefix + name
        if isinstance(value, Mapping):
            found[name] = _placeless(value, f"{path}.")
        elif path in _PLACES:
            found[name] = _PLACES[path]
        elif path == "data.source" and str(value).startswith(FILE):
            found[name] = FILE + pathlib.PurePath(value.removeprefix(FILE)).name
        elif path == "teacher.checkpoint" and value is not None and pathlib.PurePath(value).is_absolute():
            found[name] = pathlib.PurePath(value).name
        else:
            found[name] = value
    return found
