"""What a grid file returns: the runs to compare, named and labelled."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from gkd_jax import pyfile
from gkd_jax.errors import UserError

_EXAMPLE = 'experiments.grid.cells.Grid("Two methods", cells=(Cell("kd", config, {"method": "kd"}),))'
_FOLDER = re.compile(r"[\w+-][\w.+-]*")


class Cell(NamedTuple):
    """One configuration with all its seeds: one row of the report.

    Attributes:
      name: unique in its grid, and a folder's name: letters, digits, `_`, `+`, `-`, and `.` but not first.
      config: as a configuration file would return it; `seeds` set.
      labels: what sets it apart, such as {"pair": "resnet20 to resnet8", "method": "kd", "schedule": "gompertz"}.
    """

    name: str
    config: ConfigDict
    labels: Mapping[str, str]


class Grid(NamedTuple):
    """What is compared.

    Attributes:
      title: what is compared, at what size: the first line of the report.
      cells: in the order in which they are started and shown.
      baseline: labels that mark the cell which others are compared with, such as {"method": "kd"}.
      within: labels that must agree between a cell and its baseline, such as ("pair", "dataset").
    """

    title: str
    cells: tuple[Cell, ...]
    baseline: Mapping[str, str] = {}
    within: tuple[str, ...] = ()


def load(name: str) -> Grid:
    """Returns the grid that a file describes by `get_grid()` or `get_grid(argument)`.

    The file is run in this process, and so registers its networks, data sets and terms here.

    Args:
      name: FILE.py or FILE.py:ARGUMENT.

    Raises:
      UserError: if the file does not work, or its grid is none.
    """
    grid = pyfile.call("--grid", name, "get_grid", Grid, _EXAMPLE)
    try:
        _check(grid)
    except UserError as error:
        raise UserError(f"--grid: {pyfile.split(name)[0]}: {error}") from error
    return grid


def _check(grid: Grid) -> None:
    if not grid.cells:
        raise UserError("the grid has no cells")
    for cell in grid.cells:
        if not isinstance(cell, Cell) or not isinstance(cell.config, ConfigDict):
            raise UserError(f"each of the cells must be an experiments.grid.cells.Cell with a ConfigDict, not {cell!r}")
        if not _FOLDER.fullmatch(cell.name):
            raise UserError(f"a cell is called {cell.name!r}; a name has letters, digits and any of _ . + - alone")
        wrong = [value for pair in cell.labels.items() for value in pair if not isinstance(value, str)]
        if wrong:
            raise UserError(f"the cell {cell.name}: labels are text, not {wrong[0]!r}")
    # Folders that a case-insensitive disk takes for one are one
    twice = [name for name, count in Counter(cell.name.lower() for cell in grid.cells).items() if count > 1]
    if twice:
        raise UserError(f"two cells are called {twice[0]!r}")
