"""Settings that a search on validation images chose for a method on a pair, each with the study that chose it.

They stand in `tuned.json`, by "TEACHER,STUDENT,DATASET,METHOD", and apply where METHOD@tuned is asked for. Only
`python -m experiments.tune --keep NAME` writes there.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, TypedDict

from ml_collections import ConfigDict

from gkd_jax import config
from gkd_jax.errors import UserError, nearest
from gkd_jax.reporting.files import write_json

FILE = pathlib.Path(__file__).with_name("tuned.json")
TUNED = "tuned"


class Entry(TypedDict):
    """What is known of one choice.

    Attributes:
      values: the chosen numbers, by dotted field of the configuration.
      study: file of the study's record, from the repository's root.
      val_accuracy: of the chosen trial at the last epoch, the mean over seeds, as a fraction; too high by what
        choosing the best of several brings.
      trials: how many that study had.
      changes: what else its runs did otherwise than the method says, see `gkd_jax.recipes.changes`.
    """

    values: dict[str, float]
    study: str
    val_accuracy: float
    trials: int
    changes: list[str]


def key(teacher: str, student: str, dataset: str, method: str) -> str:
    """Returns under which name the settings of a method on a pair are kept."""
    return ",".join([teacher, student, dataset, method])


def entries() -> dict[str, Entry]:
    """Returns all that is kept."""
    found: dict[str, Entry] = json.loads(FILE.read_text())
    return found


def keep(name: str, entry: Entry) -> None:
    """Writes down an entry, in place of an earlier one of the same name.

    Raises:
      UserError: if the file cannot be written.
    """
    write_json(FILE, dict(sorted({**entries(), name: entry}.items())))


def apply(c: ConfigDict, name: str) -> None:
    """Puts the settings that are kept under `name` into a configuration.

    Raises:
      UserError: if nothing is kept of it, or the configuration has no such field.
    """
    known = entries()
    if name not in known:
        raise UserError(
            f"nothing was tuned for {name!r}{nearest(name, known)}; python -m experiments.tune --keep NAME would, and "
            f"without @{TUNED} the method has its authors' settings"
        )
    put(c, known[name]["values"])


def put(c: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets fields of a configuration by their dotted paths.

    Raises:
      UserError: if it has no such field.
    """
    for path, value in values.items():
        error = config.override_error(c, path)
        if error is not None:
            raise error
        *parents, name = path.split(".")
        place = c
        for parent in parents:
            place = place[parent]
        place[name] = value
