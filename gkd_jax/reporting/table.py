"""The table that closes a run: what distillation brought, and what it cost."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, SupportsFloat


class Row(NamedTuple):
    """One network of the closing table; what is None was not measured.

    Attributes:
      name: "teacher", "student alone", "student distilled".
      test_accuracy: as a fraction.
      parameters: how many numbers are trained.
      seconds: of training.
      deviation: standard deviation of the accuracy over seeds, whose mean it then is; None for one seed.
    """

    name: str
    test_accuracy: SupportsFloat | None = None
    parameters: int | None = None
    seconds: SupportsFloat | None = None
    deviation: SupportsFloat | None = None


def closing_table(rows: Iterable[Row]) -> str:
    """Returns `rows` as aligned plain-text columns, in ASCII but for names and ±, without a line end at the end.

    >>> print(closing_table([Row("teacher", 0.9512, 23520842, 1800), Row("student alone", 0.912, 2236682)]))
    network        test accuracy (%)  parameters  training (s)
    -------------  -----------------  ----------  ------------
    teacher                    95.12  23,520,842        1800.0
    student alone              91.20   2,236,682             -
    """
    cells: list[tuple[str, ...]] = [("network", "test accuracy (%)", "parameters", "training (s)")]
    for name, accuracy, parameters, seconds, deviation in rows:
        spread = "" if deviation is None else f" ± {100 * float(deviation):.2f}"
        cells.append(
            (
                name,
                "-" if accuracy is None else f"{100 * float(accuracy):.2f}{spread}",
                "-" if parameters is None else f"{parameters:,}",
                "-" if seconds is None else f"{float(seconds):.1f}",
            )
        )
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]], left: int = 1) -> str:
    """Returns rows of text as columns, the first row as their heads over a rule.

    Args:
      cells: equally long rows.
      left: how many columns are aligned to the left, the others being numbers.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (cells[0], rule, *cells[1:])
    )
