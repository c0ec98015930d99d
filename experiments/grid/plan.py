"""From cells to tasks: who shares which teacher, which shard does what, and what is done already."""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.grid import tasks
from experiments.grid.cells import Cell
from experiments.grid.tasks import Task
from gkd_jax import config, identity
from gkd_jax.errors import UserError
from gkd_jax.reporting.files import write_json
from gkd_jax.training import experiment, summary, workdir
from gkd_jax.training import finished as left
from gkd_jax.training.resolve import resolve


def place(out: pathlib.Path) -> pathlib.Path:
    """Returns how a grid's folder is written in configurations: relative to the working directory if it is below it.

    So `--out runs/grid` and its absolute path are the same runs, and so is the folder seen from another machine whose
    working directory is the same one elsewhere.
    """
    absolute = pathlib.Path(os.path.abspath(out))
    here = pathlib.Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute


def shared(cells: Sequence[Cell]) -> dict[str, str]:
    """Returns by cell the name of the cell in whose folder it is run: the first that is the same run, by identity.

    So a student alone is trained once for all pairs that have it. A cell whose configuration cannot work is its own.
    """
    first: dict[str, str] = {}
    found = {}
    for cell in cells:
        try:
            run = identity.config_hash(_resolve(cell.config.to_dict()))
        except UserError:  # told by `plan`, if the cell is to be run
            run = cell.name
        found[cell.name] = first.setdefault(run, cell.name)
    return found


def choose(cells: Sequence[Cell], only: str | None = None, shard: tuple[int, int] = (1, 1)) -> list[Cell]:
    """Returns the cells that a shard runs, without those that are run in another's folder.

    They are dealt out like cards, in their order, so that shards which are started alike share out the same cells.

    Args:
      cells: of the grid.
      only: regular expression; cells in whose name it is not found are left out before dealing.
      shard: (i, n), the i-th of n, the first being 1.

    Raises:
      UserError: if `only` is no regular expression, or is found in no cell.
    """
    try:
        kept = [cell for cell in cells if only is None or re.search(only, cell.name)]
    except re.error as error:
        raise UserError(f"--only: {only!r} is no regular expression ({error})") from error
    if not kept:
        raise UserError(f"--only: {only!r} is found in no cell; the cells are {', '.join(c.name for c in cells)}")
    run_as = shared(cells)
    run = {run_as[cell.name] for cell in kept}
    number, count = shard
    return [cell for cell in cells if cell.name in run][number - 1 :: count]


def plan(cells: Sequence[Cell], grid: str, out: pathlib.Path) -> list[Task]:
    """Returns the tasks of cells, every teacher before the first cell that needs it.

    Two cells share a teacher if the runs that would train it are the same run, by `gkd_jax.identity`.

    Args:
      cells: what `choose` returned.
      grid: FILE.py or FILE.py:ARGUMENT.
      out: the grid's folder, see `place`.

    Raises:
      UserError: names a cell whose configuration cannot work.
    """
    planned: dict[str, Task] = {}
    for cell in cells:
        try:
            resolved = _resolve(given := cell.config.to_dict())
        except UserError as error:
            raise UserError(f"the cell {cell.name}: {error}") from error
        given = identity.to_json(given)
        needs: tuple[str, ...] = ()
        if given["teacher"]["cache_dir"] == "auto":
            given["teacher"]["cache_dir"] = str(out / tasks.TEACHER_CACHE)
        if resolved["teacher"]["model"] != config.NO_TEACHER and not resolved["teacher"]["checkpoint"]:
            name = _teacher_name(resolved)
            planned.setdefault(name, Task(name, out / name, grid, experiment.as_teacher(given)))
            given["teacher"]["checkpoint"] = str(out / name)
            needs = (name,)
        name = f"{tasks.RUNS}/{cell.name}"
        planned[name] = Task(name, out / name, grid, given, needs)
    return list(planned.values())


def _resolve(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration resolved alike on every machine, without asking JAX for its devices."""
    fixed = ConfigDict(given)
    if fixed.get("dtype") == "auto":
        fixed.dtype = "float32"
    return resolve(fixed)


def _teacher_name(resolved: Mapping[str, Any]) -> str:
    source = resolved["data"]["source"]
    dataset = pathlib.Path(source).stem if source.startswith("npz:") else source
    digits = identity.config_hash(experiment.of_teacher(resolved))[:8]
    return f"{tasks.TEACHERS}/" + re.sub(r"[^\w.+-]+", "-", f"{resolved['teacher']['model']}-{dataset}-{digits}")


def differences(task: Task) -> list[str]:
    """Returns in which fields a task is another run than the one that its folder holds; none for the same run."""
    file = task.folder / tasks.TASK
    if not file.exists():
        return []
    before = tasks.read(file)
    if before.config == task.config:
        return []
    try:
        return identity.differences(_placeless(task), _placeless(before))
    except UserError as error:
        return [str(error)]


def _placeless(task: Task) -> dict[str, Any]:
    """Returns a task's resolved configuration with its shared teacher's name for the folder: a grid may be moved."""
    resolved = _resolve(task.config)
    if task.needs:
        resolved["teacher"]["checkpoint"] = task.needs[0]
    return resolved


def continued(task: Task) -> Task:
    """Returns a task such that it goes on with the run in its folder, which may name the shared teacher otherwise.

    A run keeps the path that it was begun with as long as that is the same folder. If it is not, as when the grid was
    moved or is started from another working directory, the run's own configuration is given the new path. That the
    teacher is still the same one is seen by its parameters when the run goes on.

    Args:
      task: whose teacher is trained, and whose folder no process is at work in.

    Raises:
      UserError: if the run's configuration cannot be read or written.
    """
    file = task.folder / left.CONFIG
    if not task.needs or not file.exists():
        return task
    here, known = task.config["teacher"]["checkpoint"], left.read(file)
    there = known["teacher"]["checkpoint"]
    if there == here:
        return task
    if _same_folder(there, here):
        return task._replace(config={**task.config, "teacher": {**task.config["teacher"], "checkpoint": there}})
    write_json(file, {**known, "teacher": {**known["teacher"], "checkpoint": here}})
    return task


def _same_folder(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def finished(task: Task) -> bool:
    """Returns whether a task is done: its folder holds a summary, and the same run as the task."""
    if not ((task.folder / summary.SUMMARY).exists() and (task.folder / tasks.TASK).exists()):
        return False
    try:
        return not differences(task)
    except UserError:  # said when it is to be started
        return False


def held(task: Task) -> bool:
    """Returns whether a process, here or on another machine, is at work on a task's run."""
    return workdir.held(task.folder)
