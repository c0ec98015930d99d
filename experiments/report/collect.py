"""What a grid left in its folder, read and checked: runs by group, and the cells that have no result."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.grid.tasks import FAILED, GRID, RUNS, TEACHERS
from gkd_jax import export
from gkd_jax.errors import UserError
from gkd_jax.reporting.records import read_records
from gkd_jax.training.finished import CONFIG, read
from gkd_jax.training.loop import METRICS
from gkd_jax.training.summary import SUMMARY

KEPT = (CONFIG, SUMMARY, METRICS)
"""A run's files that a report links to."""
EXPORTED = f"{export.FOLDER}/{export.RECORD}"
"""That of a run which was exported."""
_CONFIG, _SUMMARY = ("data", "teacher", "student", "objective", "epochs"), ("versions", "device", "config_hash")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished cell.

    Attributes:
      name: of the cell.
      place: its folder's name, that of the first cell which is the same run.
      kind: what sets it apart in its group.
      labels: all of them.
      config: resolved.
      summary: as the run wrote it.
      records: of its epochs.
      exported: what was measured of the files that it was exported to, see `gkd_jax.export.read`; None if it was not.
    """

    name: str
    place: str
    kind: str
    labels: Mapping[str, str]
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    exported: Mapping[str, Any] | None = None

    @property
    def student(self) -> Mapping[str, Any]:
        """What the summary says of the student."""
        part: Mapping[str, Any] = self.summary["student"]
        return part

    @property
    def overhead(self) -> np.ndarray:
        """Seconds of each epoch that went into compilation and the teacher's cache; 0 where none were recorded."""
        return self._recorded("seconds_compile") + self._recorded("seconds_cache")

    @property
    def filling(self) -> float:
        """Seconds that the run spent on filling the teacher's cache."""
        return float(self._recorded("seconds_cache").sum())

    def _recorded(self, field: str) -> np.ndarray:
        return np.asarray([record.get(field) or 0.0 for record in self.records], dtype=float)

    @functools.cached_property
    def seeds(self) -> dict[str, Mapping[str, Any]]:
        """What the summary says of each seed's student."""
        return self.student.get("seeds") or {_only_seed(self.config): self.student}

    def values(self, field: str) -> dict[str, float]:
        """Returns a number of the summary by seed, without the seeds that have none."""
        return {seed: float(part[field]) for seed, part in self.seeds.items() if _is_number(part.get(field))}

    def series(self, *place: str) -> np.ndarray:
        """Returns the numbers that stand at a place of the records, [seeds, epochs], NaN where there is none."""
        rows = [[_at(_of_seed(record, seed), place) for record in self.records] for seed in self.seeds]
        return np.asarray([[v if _is_number(v) else np.nan for v in row] for row in rows], dtype=float)

    def texts(self, *place: str) -> list[list[str | None]]:
        """Returns the texts that stand at a place of the records, by seed and epoch."""
        return [[_at(_of_seed(record, seed), place) for record in self.records] for seed in self.seeds]

    def validation(self) -> dict[str, tuple[float, float, int]]:
        """Returns by seed the validation accuracy of the last epoch, the best one, and the first epoch that had it."""
        found = {}
        for seed, row in zip(self.seeds, self.series("val_accuracy"), strict=True):
            if np.isfinite(row[-1]):
                best = int(np.nanargmax(row))
                found[seed] = float(row[-1]), float(row[best]), int(self.records[best]["epoch"])
        return found


class Missing(NamedTuple):
    """A cell, or a shared teacher, without a result.

    Attributes:
      name: of the cell, or "teachers/NAME".
      state: "failed", "unfinished" or "not started".
      error: one or a few lines.
      log: last lines of what its process printed.
    """

    name: str
    state: str
    error: str
    log: str = ""


class Group(NamedTuple):
    """Cells that are compared with one another: one table.

    Attributes:
      title: the labels that they share; empty if there is one group only, without such labels.
      slug: for file names and anchors.
      runs: those that are finished, in the grid's order.
      baseline: the one that others are compared with.
      why: there is no baseline, if there is none.
    """

    title: str
    slug: str
    runs: tuple[Run, ...]
    baseline: Run | None
    why: str


class Found(NamedTuple):
    """All that a report tells of.

    Attributes:
      folder: of the grid.
      grid: what its grid.json holds.
      groups: those with a finished run.
      missing: cells and teachers without a result.
      teachers: names of the shared teachers' folders, of those that the finished cells had.
    """

    folder: pathlib.Path
    grid: Mapping[str, Any]
    groups: tuple[Group, ...]
    missing: tuple[Missing, ...]
    teachers: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        """All that are finished, in the order of the tables."""
        return [run for group in self.groups for run in group.runs]


def collect(folder: pathlib.Path, baseline: Mapping[str, str] | None = None) -> Found:
    """Returns what a grid left in its folder.

    Args:
      folder: of the grid.
      baseline: labels that mark the cell which others are compared with; the grid's own by default.

    Raises:
      UserError: if the folder is no grid's, a finished run's file is damaged, no run is finished, or no cell has one of
        the baseline's labels.
    """
    grid = read_grid(folder)
    if baseline is not None:
        _check_baseline(grid["cells"], baseline)
        grid["baseline"] = dict(baseline)
    within = list(grid["within"])
    runs: dict[str, Run] = {}
    missing: list[Missing] = []
    kinds = _kinds(grid["cells"], within)
    for cell in grid["cells"]:
        name = cell["name"]
        lack = _missing(folder, cell["run"])
        if lack is None:
            runs[name] = _run(folder / RUNS / cell["run"], cell, kinds[name])
        else:
            missing.append(lack._replace(name=name))
    # Of others than cells only teachers: a cell that the grid has no more is nobody's lack
    others = sorted({file.stem for file in (folder / FAILED).glob("*.json")} - set(kinds))
    missing += [lack for name in others if (lack := _failure(folder, name)).name.startswith(f"{TEACHERS}/")]
    if not runs:
        raise UserError(f"{folder}: no run is finished yet, of {len(grid['cells'])} cells; {_told(missing)}")
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for cell in grid["cells"]:
        groups.setdefault(tuple(cell["labels"].get(label, "") for label in within), []).append(cell)
    made = [
        _group(", ".join(filter(None, shared)), number, cells, runs, grid["baseline"])
        for number, (shared, cells) in enumerate(groups.items(), 1)
    ]
    return Found(folder, grid, tuple(group for group in made if group.runs), tuple(missing), _teachers(folder, runs))


def _teachers(folder: pathlib.Path, runs: Mapping[str, Run]) -> tuple[str, ...]:
    """Returns the names of the shared teachers of these runs."""
    had = (pathlib.PurePath(run.config["teacher"].get("checkpoint") or "").name for run in runs.values())
    return tuple(name for name in dict.fromkeys(had) if name and (folder / TEACHERS / name / SUMMARY).exists())


def _check_baseline(cells: Sequence[Mapping[str, Any]], baseline: Mapping[str, str]) -> None:
    for label, value in baseline.items():
        known = list(dict.fromkeys(str(cell["labels"].get(label)) for cell in cells if label in cell["labels"]))
        if value not in known:
            said = f"it is one of {', '.join(known)}" if known else "no cell has such a label"
            raise UserError(f"--baseline: {label} is {value!r}; {said}")


def read_grid(folder: pathlib.Path) -> dict[str, Any]:
    """Returns what a grid's grid.json holds.

    Raises:
      UserError: if there is none, or fields are missing.
    """
    if not (folder / GRID).is_file():
        raise UserError(f"{folder} has no {GRID}: it must be the --out folder of python -m experiments.grid")
    grid = read(folder / GRID)
    kinds = {"title": str, "grid": str, "commands": list, "baseline": dict, "within": list, "cells": list}
    for field, kind in kinds.items():
        if not isinstance(grid.get(field), kind):
            raise UserError(f"{folder / GRID}: damaged: {field} must be a {kind.__name__}, not {grid.get(field)!r}")
    for cell in grid["cells"]:
        if not (isinstance(cell, dict) and isinstance(cell.get("name"), str) and isinstance(cell.get("labels"), dict)):
            raise UserError(f"{folder / GRID}: damaged: a cell needs name and labels, found {cell!r}")
        cell.setdefault("run", cell["name"])  # as it was in every grid before cells could share a run
        for name in (cell["name"], cell["run"]):
            if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name) or name.strip(".") == "":
                raise UserError(f"{folder / GRID}: damaged: {name!r} is no folder's name")
    return grid


def _run(folder: pathlib.Path, cell: Mapping[str, Any], kind: str) -> Run:
    config, summary = read(folder / CONFIG), read(folder / SUMMARY)
    student = summary.get("student")
    if not isinstance(student, dict) or "test_accuracy" not in student:
        raise UserError(f"{folder / SUMMARY}: damaged: it has no student with a test_accuracy")
    for file, found, fields in ((CONFIG, config, _CONFIG), (SUMMARY, summary, _SUMMARY)):
        for field in fields:
            if field not in found:
                raise UserError(f"{folder / file}: damaged: it has no {field}")
    records = read_records(folder / METRICS)
    if not records or records[-1]["epoch"] != config["epochs"]:
        last = records[-1]["epoch"] if records else 0
        raise UserError(f"{folder / METRICS}: damaged: it ends at epoch {last} of {config['epochs']}")
    return Run(cell["name"], cell["run"], kind, cell["labels"], config, summary, records, _exported(folder))


def _exported(folder: pathlib.Path) -> Mapping[str, Any] | None:
    found = export.read(folder)
    if found is not None and not isinstance(found.get("rows"), list):
        raise UserError(f"{folder / EXPORTED}: damaged: it has no rows")
    return found


def _missing(folder: pathlib.Path, name: str) -> Missing | None:
    """Returns why a cell has no result; None if it has one."""
    if (folder / FAILED / f"{name}.json").exists():  # even beside a summary, which is then another configuration's
        return _failure(folder, name)
    run = folder / RUNS / name
    if (run / SUMMARY).exists():
        return None
    if not (run / METRICS).exists():
        return Missing(name, "not started", "it has no epoch yet")
    records = read_records(run / METRICS)
    epochs = read(run / CONFIG).get("epochs") if (run / CONFIG).exists() else "?"
    return Missing(name, "unfinished", f"{records[-1]['epoch'] if records else 0} of {epochs} epochs are done")


def _failure(folder: pathlib.Path, name: str) -> Missing:
    found = read(folder / FAILED / f"{name}.json")
    log = found.get("log") or ""
    return Missing(
        str(found.get("name") or name),
        "failed",
        str(found.get("error") or "no error was recorded"),
        log if isinstance(log, str) else "\n".join(map(str, log)),
    )


def _told(missing: Iterable[Missing]) -> str:
    states = [lack.state for lack in missing]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _kinds(cells: Sequence[Mapping[str, Any]], within: Sequence[str]) -> dict[str, str]:
    """Returns by cell's name what sets it apart in its group, unambiguously."""
    labels = {c["name"]: ", ".join(str(v) for k, v in c["labels"].items() if k not in within) for c in cells}
    place = {c["name"]: json.dumps([labels[c["name"]], *(c["labels"].get(k) for k in within)]) for c in cells}
    taken = list(place.values())
    kinds = {}
    for name, kind in labels.items():
        alone = taken.count(place[name]) == 1
        kinds[name] = kind if kind and alone else f"{kind} ({name})" if kind else name
    return kinds


def _group(
    title: str, number: int, cells: Sequence[Mapping[str, Any]], runs: Mapping[str, Run], marks: Mapping[str, str]
) -> Group:
    finished = tuple(runs[cell["name"]] for cell in cells if cell["name"] in runs)
    slug = f"{number:02d}-" + (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "all")
    marked = [cell["name"] for cell in cells if all(cell["labels"].get(k) == v for k, v in marks.items())]
    told = ", ".join(f"{k} {v}" for k, v in marks.items())
    if not marks:
        return Group(title, slug, finished, None, "the grid names no baseline")
    if len(marked) != 1:
        found = f"{len(marked)} cells here are ({', '.join(marked)})" if marked else "no cell here is"
        return Group(title, slug, finished, None, f"the baseline is {told}, which {found}")
    if marked[0] not in runs:
        return Group(title, slug, finished, None, f"the baseline, {marked[0]}, has no result")
    return Group(title, slug, finished, runs[marked[0]], "")


def _only_seed(config: Mapping[str, Any]) -> str:
    return str((config.get("seeds") or [config.get("seed", 0)])[0])


def _of_seed(record: Mapping[str, Any], seed: str) -> Any:
    return record.get("seeds", {}).get(seed, {}) if "seeds" in record else record


def _at(record: Any, place: Sequence[str]) -> Any:
    for name in place:
        record = record.get(name) if isinstance(record, Mapping) else None
    return record


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
