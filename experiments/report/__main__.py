"""What a grid found, as tables and figures.

    python -m experiments.report DIR [--baseline method=alone] [--publish FOLDER]

DIR is the --out folder of python -m experiments.grid, however much of it is finished. Written there: report.md,
report.html (one file with everything in it) and figures/. Exit status: 0, or 2 for a mistake.

  --baseline  compare with the cells of these labels, LABEL=VALUE[,LABEL=VALUE], instead of the grid's own baseline
  --publish   copy the report, and of each run config.json, summary.json and metrics.jsonl, to a folder to be committed
"""

import argparse
import datetime
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

import jax

from experiments.report import markdown, page
from experiments.report.collect import collect
from experiments.report.publish import MARKDOWN, PAGE, check, publish
from experiments.report.report import compose
from gkd_jax.arguments import Parser, status
from gkd_jax.errors import UserError
from gkd_jax.reporting.files import write_bytes


def main(argv: Sequence[str]) -> int:
    """Writes a report; the arguments begin behind the program's name. Returns the exit status."""
    parser = Parser(
        prog="python -m experiments.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--baseline", metavar="LABEL=VALUE")
    parser.add_argument("--publish", type=pathlib.Path, metavar="FOLDER")
    jax.config.update("jax_platforms", "cpu")  # an accelerator has better to do than drawing curves
    command = shlex.join(["python", "-m", "experiments.report", *argv])

    def told() -> str:
        given = parser.parse_args(argv)
        try:
            return write(given.folder, given.publish, command, _labels(given.baseline))
        except ModuleNotFoundError as error:
            raise UserError(f"a report needs {error.name}: pip install 'gkd_jax[experiments]'") from error

    return status(told)


def _labels(given: str | None) -> dict[str, str] | None:
    """Returns LABEL=VALUE,LABEL=VALUE as a mapping."""
    if given is None:
        return None
    pairs = [part.partition("=") for part in given.split(",")]
    if not all(label and sign for label, sign, _ in pairs):
        raise UserError(f"--baseline is LABEL=VALUE, as in method=alone, not {given!r}")
    return {label: value for label, _, value in pairs}


def write(
    folder: pathlib.Path, target: pathlib.Path | None, command: str, baseline: Mapping[str, str] | None = None
) -> str:
    """Writes the report of the grid in `folder`, publishes it to `target` if that is given, and returns what was done.

    Args:
      folder: of the grid.
      target: to publish to.
      command: that asked for it.
      baseline: see `collect`.

    Raises:
      UserError: if something given cannot work.
    """
    found = collect(folder, baseline)
    if target is not None:
        check(found, target)
    report = compose(found, command, datetime.datetime.now(datetime.UTC))
    write_bytes(folder / MARKDOWN, markdown.render(report).encode())
    write_bytes(folder / PAGE, page.render(report).encode())
    done = f"{len(found.runs)} of {len(found.grid['cells'])} cells: {folder / MARKDOWN}, {folder / PAGE}"
    if target is not None:
        pictures = [picture.file for section in report.sections for picture in section.pictures]
        publish(found, pictures, target)
        done += f"; published to {target}"
    return done


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
