"""The table of an export: the teacher, the student, and each file."""

from collections.abc import Mapping
from typing import Any

from gkd_jax.reporting.table import aligned

_HEAD = ("", "file", "test accuracy (%)", "largest difference", "kB", "ms an image")


def cells(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the heads and rows of what `gkd_jax.export.read` returned, as text.

    "kB" is of the file, and of a network in JAX of its variables; "ms an image" the median time of one image at a time
    on the machine of the export; "largest difference" that of a logit to the student's own.
    """
    return [_HEAD, *(_cells(row) for row in record["rows"])]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    accuracy, difference, took, size = (
        row.get(name) for name in ("test_accuracy", "difference", "milliseconds", "bytes")
    )
    return (
        row["kind"],
        row.get("file") or "-",
        "-" if accuracy is None else f"{100 * accuracy:.2f}",
        "-" if difference is None else f"{difference:.2g}",
        "-" if size is None else f"{size / 1000:,.0f}",
        "-" if took is None else f"{took:.3f}",
    )


def table(record: Mapping[str, Any]) -> str:
    """Returns the table as aligned columns."""
    return aligned(cells(record), left=2)


def markdown(record: Mapping[str, Any]) -> str:
    """Returns the table in Markdown."""
    head, *rows = cells(record)
    rule = ["---", "---", *("---:" for _ in head[2:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))
