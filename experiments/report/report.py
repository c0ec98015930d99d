"""Everything that a report says, in the order in which it says it: what both the page and the Markdown are made of."""

import datetime
import importlib.metadata
import pathlib
import platform
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from experiments.grid.tasks import RUNS, TEACHERS
from experiments.report import figures, tables
from experiments.report.collect import Found, Group, Missing, Run
from experiments.report.figures import Picture
from experiments.report.tables import Table
from gkd_jax import __version__

_PACKAGES = ("scipy", "statsmodels", "numpy", "matplotlib")

READING = (
    "Accuracies are of the last epoch. The accuracy on the test images of any other epoch is never computed: choosing "
    "the best one by it would be training on the test images.",
    "Validation accuracy, if images were kept for it (data.val_fraction), stands beside itself at the best epoch of "
    "each seed, so that the difference shows how much choosing an epoch by the images that one reports would have "
    "flattered.",
    "± is the sample standard deviation over n seeds (divided by n - 1); one seed has none.",
    "A difference is the mean over the seeds that a run shares with the baseline, in percentage points, with the 95 % "
    "interval of the paired t test (it is not corrected for the number of comparisons). Fewer than two such seeds "
    "give a dash.",
    "p is two-sided, of the same test, corrected by Holm's method for all comparisons of its table.",
    "Where every seed has the same difference the interval has no width: p is then 1 if that difference is 0, and a "
    "dash otherwise, since a t test says nothing without spread; it still counts as a comparison for Holm's method.",
    "Published numbers are of their authors' code; which epoch they are of stands beside each.",
    "Training seconds are of all seeds of a run together, without its teacher, without compilation and without the "
    "filling of the teacher's cache, which the first cell pays for all and which has its own column (runs that did "
    "not record these apart: with both); images/s is the median of a run's epochs.",
    "ECE is the expected calibration error, NLL the mean negative log-likelihood, agreement the share of the test "
    "images on which student and teacher predict the same class.",
)
EXPORTS = "Exported files, each verified by its own runtime; times are of one image at a time"
PUBLISHED = "Published numbers: their sources, and what these runs do otherwise"


class Section(NamedTuple):
    """One group.

    Attributes:
      title: of the group.
      slug: its anchor.
      teachers: sentences.
      table: of means.
      seeds: of single values.
      notes: sentences.
      exports: of the files that students were exported to, if any was.
      published: sentences on what was published.
      pictures: of the group.
    """

    title: str
    slug: str
    teachers: list[str]
    table: Table
    seeds: Table
    exports: Table | None
    notes: list[str]
    published: list[str]
    pictures: list[Picture]


class Report(NamedTuple):
    """A whole report.

    Attributes:
      folder: where it is written; links are relative to it.
      title: what was compared, at what size.
      machine: on what.
      kind: head of the first column.
      reading: sentences on how to read it; the first is always shown.
      sections: one for each group.
      missing: cells without a result.
      lack: a sentence on these.
      origin: command, date, versions: names and values.
      runs: all of them.
      teachers: names of the shared teachers' folders.
    """

    folder: pathlib.Path
    title: str
    machine: str
    kind: str
    reading: tuple[str, ...]
    sections: list[Section]
    missing: tuple[Missing, ...]
    lack: str
    origin: list[tuple[str, str]]
    runs: list[Run]
    teachers: tuple[str, ...]


def compose(found: Found, command: str, now: datetime.datetime) -> Report:
    """Returns the report, its figures drawn.

    Args:
      found: what the grid left.
      command: that makes the report.
      now: the date that it bears.

    Raises:
      UserError: if a figure cannot be written.
    """
    grid = found.grid
    keys = dict.fromkeys(k for cell in grid["cells"] for k in cell["labels"] if k not in grid["within"])
    states = Counter(lack.state for lack in found.missing)
    lack = ", ".join(f"{count} {state}" for state, count in states.items())
    return Report(
        found.folder,
        grid["title"],
        machine(found.runs),
        ", ".join(keys) or "run",
        READING,
        [_section(group, found.folder / figures.FIGURES) for group in found.groups],
        found.missing,
        f"Without a result: {lack}; {len(found.runs)} of {len(grid['cells'])} cells are finished.",
        _origin(found, command, now),
        found.runs,
        found.teachers,
    )


def _section(group: Group, folder: pathlib.Path) -> Section:
    return Section(
        group.title or "All runs",
        group.slug,
        tables.teachers(group),
        tables.main_table(group),
        tables.seeds_table(group),
        tables.exports_table(group),
        tables.notes(group),
        tables.beside_published(group),
        figures.draw(group, folder),
    )


def machine(runs: Iterable[Run]) -> str:
    """Returns what the runs were computed on; several machines with the number of runs of each."""
    found = Counter(_device(run.summary["device"]) for run in runs)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{name}: {count} runs" for name, count in found.items())


def _device(device: Mapping[str, Any]) -> str:
    platform_name, kind, count = device.get("platform"), device.get("kind"), device.get("count", 1)
    name = str(kind or platform_name) if kind == platform_name or not platform_name else f"{kind} ({platform_name})"
    more = ", ".join(f"{k} {v}" for k, v in device.items() if k not in ("platform", "kind", "count"))
    return f"{count} × {name}" + (f", {more}" if more else "")


def link(run: Run | str, file: str) -> str:
    """Returns the relative address of a file of a run, or of the shared teacher of that name."""
    folder, name = (TEACHERS, run) if isinstance(run, str) else (RUNS, run.place)
    return f"{folder}/{urllib.parse.quote(name)}/{file}"


def _origin(found: Found, command: str, now: datetime.datetime) -> list[tuple[str, str]]:
    versions = Counter(_told(run.summary["versions"]) for run in found.runs)
    ours = {"gkd_jax": __version__, "python": platform.python_version()}
    ours |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    several = len(versions) > 1
    return [
        *(("Grid", str(each)) for each in found.grid["commands"]),
        ("Grid file", found.grid["grid"]),
        ("Baseline", ", ".join(f"{k} {v}" for k, v in found.grid["baseline"].items()) or "none"),
        ("Report", command),
        ("Date of the report", now.strftime("%Y-%m-%d %H:%M UTC")),
        *(("Versions of the runs", f"{told}" + (f" ({n} runs)" if several else "")) for told, n in versions.items()),
        ("Versions of the report", _told(ours)),
    ]


def _told(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
