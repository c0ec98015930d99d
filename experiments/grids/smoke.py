"""Four methods on scikit-learn's handwritten digits: that a grid works from its teacher to its report.

  python -m experiments.grid --grid experiments/grids/smoke.py --out runs/smoke
  python -m experiments.grid --grid experiments/grids/smoke.py:cut --out runs/smoke-cut

`cut` is two epochs of two methods with two seeds, for continuous integration.
"""

from experiments.grid import build
from experiments.grid.cells import Grid
from gkd_jax.errors import UserError

PAIR = ("resnet8", "resnet8_eighth")
METHODS = ("alone", "kd", "kd+gompertz", "gompertz_cnn")


def get_grid(size="whole"):
    """Returns the grid."""
    if size not in ("whole", "cut"):
        raise UserError(f"the size must be 'whole' or 'cut', not {size!r}")
    cells = []
    for method in METHODS if size == "whole" else METHODS[1:3]:
        c = build.standard(PAIR, "digits", method)
        c.data.val_fraction, c.data.pad, c.data.flip = 0.1, 1, False  # a mirrored digit is another sign
        c.epochs, c.teacher.epochs = (8, 10) if size == "whole" else (2, 2)
        c.seeds = (0, 1, 2) if size == "whole" else (0, 1)
        labels = {"pair": " to ".join(PAIR), "dataset": "digits", "method": method.partition("+")[0]}
        cells.append(build.cell(method.replace("+", "-"), c, **labels))
    title = f"Smoke test: {' to '.join(PAIR)} on digits, {build.said(cells[0].config)}"
    return Grid(title, tuple(cells), {"method": "kd", "schedule": "constant"}, ("pair", "dataset"))
