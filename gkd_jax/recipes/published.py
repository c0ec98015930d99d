"""What others published on the standard pairs of CIFAR-100, and how a run compares with it."""

import csv
import functools
import importlib.resources
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gkd_jax.config import NO_TEACHER
from gkd_jax.recipes.standard import bare, changes
from gkd_jax.reporting.table import aligned

DATASET = "cifar100"
_EPOCHS = {
    "best": "the best test epoch",
    "last": "the last epoch",
    "unknown": "best or last epoch is not said",
}


class Published(NamedTuple):
    """One published number.

    Attributes:
      method: as a recipe is called; "alone" for the student by cross-entropy, "teacher" for the teacher.
      teacher, student: the pair.
      accuracy: on the test images of CIFAR-100, %.
      epoch: that it is of: "last", "best" on the test images, or "unknown".
      epochs: of the training.
      source: where it stands.
    """

    method: str
    teacher: str
    student: str
    accuracy: float
    epoch: str
    epochs: int
    source: str


@functools.cache
def table() -> tuple[Published, ...]:
    """Returns all that is known, as the READMEs that are named have it; none of it was measured by this project."""
    text = importlib.resources.files("gkd_jax.recipes").joinpath("published_cifar100.csv").read_text()
    rows: Iterator[dict[str, Any]] = csv.DictReader(text.splitlines())
    return tuple(Published(**{**r, "accuracy": float(r["accuracy"]), "epochs": int(r["epochs"])}) for r in rows)


def pairs() -> tuple[tuple[str, str], ...]:
    """Returns the standard pairs (teacher, student)."""
    return tuple(dict.fromkeys((row.teacher, row.student) for row in table() if row.method == "teacher"))


def pair(resolved: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the pair of a run; one trained alone counts to the first standard pair with its student."""
    teacher, student = resolved["teacher"]["model"], resolved["student"]["model"]
    if teacher == NO_TEACHER:  # which is the same beside any teacher
        teacher = next((known for known, of in pairs() if of == student), teacher)
    return teacher, student


def find(method: str, teacher: str, student: str) -> Published | None:
    """Returns what was published of a method on a pair; None if nothing is known."""
    return next((row for row in table() if row[:3] == (method, teacher, student)), None)


def compare(summary: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    """Returns the accuracies of a finished run beside the published ones, for the terminal.

    Args:
      summary: of the run.
      resolved: its configuration, whose `recipe` says which method it is.
    """
    recipe, dataset = resolved["recipe"], resolved["data"]["source"]
    teacher, student = pair(resolved)
    if dataset != DATASET:
        return f"Nothing published is known of {dataset}: the standard pairs are compared on {DATASET}."
    if (teacher, student) not in pairs():
        return f"Nothing published is known of {teacher} to {student}, which is none of the standard pairs."
    method = bare(recipe) if recipe else None
    rows = [("CIFAR-100 test accuracy (%)", "published where", "ours", "published", "difference")]
    for name, part, said in (
        ("teacher", "teacher", f"teacher ({teacher})"),
        ("alone", "student_alone", f"student alone ({student})"),
        (method, "student", f"student, {recipe or 'no recipe'}"),
    ):
        if summary.get(part):
            rows.append((said, *_beside(summary[part], find(name, teacher, student) if name else None)))
    notes = [f"Ours is of the last epoch of {resolved['epochs']}, never chosen by test accuracy."]
    if recipe and recipe != method:
        notes.append(f"What is published of {method} has its authors' settings, not these.")
    changed = changes(resolved)
    if changed:
        notes.append(f"This run is not the recipe {recipe!r}, which it changes: {'; '.join(changed)}.")
    return "\n".join([aligned(rows, left=2), *notes])


def _beside(ours: Mapping[str, Any], theirs: Published | None) -> tuple[str, str, str, str]:
    accuracy, deviation = 100 * ours["test_accuracy"], ours.get("std", {}).get("test_accuracy")
    told = f"{accuracy:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")
    if theirs is None:
        return "nothing is known", told, "-", "-"
    where = f"{theirs.source}, {_EPOCHS[theirs.epoch]} of {theirs.epochs}"
    return where, told, f"{theirs.accuracy:.2f}", f"{accuracy - theirs.accuracy:+.2f}"
