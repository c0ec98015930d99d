"""Several runs side by side: the weight that each gave a term, and what came of it."""

import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gkd_jax.errors import UserError
from gkd_jax.notebook.display import drawn, ipython
from gkd_jax.notebook.runs import records
from gkd_jax.reporting import figure as figures
from gkd_jax.reporting.figure import PALETTE
from gkd_jax.reporting.table import aligned
from gkd_jax.training import finished, summary


def compare(workdirs: Mapping[str, str | os.PathLike[str]], term: str = "kd") -> None:
    """Shows the weights and accuracies of finished runs over their epochs, and a table of their last epochs.

    Args:
      workdirs: of the runs, by name.
      term: whose weight to show.

    Raises:
      UserError: if a run has not finished, or has no such term.
    """
    folders = {name: pathlib.Path(folder) for name, folder in workdirs.items()}
    found = {name: records(folder) for name, folder in folders.items()}
    for name, run in found.items():
        if not run or term not in run[-1]["terms"]:
            raise UserError(f"{folders[name]} holds no run with a term {term!r}")
    ipython().display(drawn(lambda file: _draw(file, found, term)))
    sys.stdout.write(f"{_table(folders)}\n")


def paired(found: Mapping[str, Any]) -> None:
    """Prints what distillation brought each seed, and the mean of that with its 95 % interval.

    The interval is Student's, over the differences of the seeds.

    Args:
      found: the summary of a run of several seeds with `compare_alone`.

    Raises:
      UserError: if the run has only one seed, or no student alone.
    """
    if not found["student_alone"] or len(found["student"].get("seeds", ())) < 2:
        raise UserError("the run has no pairs: it needs compare_alone=true and two or more seeds")
    alone, distilled = (
        {seed: 100 * part["test_accuracy"] for seed, part in found[role]["seeds"].items()}
        for role in ("student_alone", "student")
    )
    gains = np.asarray([distilled[seed] - alone[seed] for seed in distilled])
    cells = [("seed", "alone (%)", "distilled (%)", "gain (points)")]
    cells += [(s, f"{alone[s]:.2f}", f"{distilled[s]:.2f}", f"{distilled[s] - alone[s]:+.2f}") for s in distilled]
    half = scipy.stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    low, high = gains.mean() - half, gains.mean() + half
    sys.stdout.write(f"{aligned(cells)}\n\nmean gain {gains.mean():+.2f}, 95 % interval {low:+.2f} to {high:+.2f}\n")


def _table(folders: Mapping[str, pathlib.Path]) -> str:
    cells = [("run", "validation (%)", "test (%)", "training (s)")]
    for name, folder in folders.items():
        student = finished.read(folder / summary.SUMMARY)["student"]
        validation, test = (_percent(student, f"{split}_accuracy") for split in ("val", "test"))
        cells.append((name, validation, test, f"{student['seconds']:.1f}"))
    return aligned(cells)


def _percent(student: Mapping[str, Any], name: str) -> str:
    if student[name] is None:
        return "-"
    deviation = student.get("std", {}).get(name)
    return f"{100 * student[name]:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _draw(file: pathlib.Path, found: Mapping[str, list[dict[str, Any]]], term: str) -> None:
    with figures.saved(file, 10.0, 4.2) as figure:
        left, right = figure.subplots(1, 2)
        for place, (name, run) in enumerate(found.items()):
            colour = PALETTE[place % len(PALETTE)]
            epochs = [record["epoch"] for record in run]
            style: dict[str, Any] = {"color": colour, "linestyle": ("-", "--")[place % 2]}
            left.plot(epochs, [record["terms"][term]["weight"] for record in run], label=name, **style)
            part = "val_accuracy" if run[-1]["val_accuracy"] is not None else "train_accuracy"
            values = np.asarray([record[part] for record in run])
            right.plot(epochs, values, **style)
            if "std" in run[-1]:
                spread = np.asarray([record["std"][part] for record in run])
                low, high = values - spread, values + spread
                right.fill_between(epochs, low, high, color=colour, alpha=0.1, linewidth=0)
        left.set(title=f"weight of {term} at the end of each epoch", xlabel="epoch", ylim=(0, None))
        right.set(title="accuracy, on validation images where there are any", xlabel="epoch")
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figures.legend_below(figure, left.get_legend_handles_labels()[0])
