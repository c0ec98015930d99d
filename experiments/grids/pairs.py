"""The thirteen standard pairs by four methods on CIFAR-100 and CIFAR-10, by the standard recipe.

  python -m experiments.grid --grid experiments/grids/pairs.py --out runs/pairs
  python -m experiments.grid --grid experiments/grids/pairs.py --out runs/pairs --only '^cifar100-resnet56-resnet20-'
  python -m experiments.grid --grid experiments/grids/pairs.py:resnet50,mobilenetv2 --out runs/claim

TEACHER,STUDENT behind the colon is one pair instead, which need not be a standard one. All 50,000 images are trained
on, for 240 epochs, with the seeds 0 to 2; nothing is held out, as in the published numbers. gompertz_cnn asks its
teacher at every step, for gradients in the images; kd and dkd have the cache of its logits.
"""

from experiments.grid import build
from experiments.grid.cells import Grid
from gkd_jax.recipes import published

METHODS = ("alone", "kd", "dkd", "gompertz_cnn")
FIRST = (("resnet56", "resnet20"), ("resnet50", "mobilenetv2_half"), ("resnet32x4", "resnet8x4"))


def get_grid(pair=None):
    """Returns the grid."""
    pairs = tuple(dict.fromkeys((*FIRST, *published.pairs())))
    if pair is not None:
        pairs = (tuple(build.split(pair, "TEACHER,STUDENT", least=2)),)
    cells = []
    for dataset in ("cifar100", "cifar10"):
        for teacher, student in pairs:
            for method in METHODS:
                c = build.standard((teacher, student), dataset, method)
                labels = {"pair": f"{teacher} to {student}", "dataset": dataset, "method": method}
                cells.append(build.cell(f"{dataset}-{teacher}-{student}-{method}", c, **labels))
    which = "the standard pairs" if pair is None else " to ".join(pairs[0])
    title = f"Methods on {which}, both CIFARs, {build.said(cells[0].config)}"
    return Grid(title, tuple(cells), {"method": "kd"}, ("pair", "dataset"))
