"""What an engine runs, each in a process of its own, and what came of it."""

import json
import pathlib
from typing import Any, NamedTuple

from gkd_jax.errors import UserError
from gkd_jax.reporting.files import write_json

GRID, TEACHERS, RUNS, FAILED, TEACHER_CACHE = "grid.json", "teachers", "runs", "failed", "teacher_cache"
TASK, LOG = "task.json", "log.txt"


class Task(NamedTuple):
    """One process: a teacher's run or a cell's.

    Attributes:
      name: "teachers/resnet20-cifar100-1a2b3c4d" or "runs/CELL", which is also its folder below the grid's.
      folder: the workdir of the run.
      grid: FILE.py or FILE.py:ARGUMENT, run by the worker for the networks, data sets and terms that it registers.
      config: as a configuration file would return it, as JSON; `teacher.checkpoint` names the shared teacher's folder.
      needs: names of the tasks that must be finished before.
    """

    name: str
    folder: pathlib.Path
    grid: str
    config: dict[str, Any]
    needs: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What came of a task.

    Attributes:
      name: of the task.
      error: one or a few lines; None if it finished.
      seconds: that its process took.
      elsewhere: whether it ended because another process is at work on the same run.
    """

    name: str
    error: str | None
    seconds: float
    elsewhere: bool = False


def write(task: Task) -> None:
    """Writes a task.json into the task's folder, which is made.

    Raises:
      UserError: if it cannot be written.
    """
    write_json(task.folder / TASK, {**task._asdict(), "folder": str(task.folder)})


def read(file: pathlib.Path) -> Task:
    """Returns the task that `write` wrote, in the folder where it is found now.

    Raises:
      UserError: if the file is missing, or holds no task.
    """
    try:
        found = json.loads(file.read_text())
        given = {field: found[field] for field in Task._fields}
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} holds no task of a grid") from error
    return Task(**{**given, "folder": file.parent, "needs": tuple(given["needs"])})
