"""The same losses under every schedule: does the curve matter, and does it have to be Gompertz's?

  python -m experiments.grid --grid experiments/grids/schedules.py:TEACHER,STUDENT,DATASET --out DIR
  python -m experiments.grid --grid experiments/grids/schedules.py:TEACHER,STUDENT,DATASET,METHOD,SIZE --out DIR
  python -m experiments.grid --grid experiments/grids/schedules.py:resnet56,resnet20,cifar100 --out runs/schedules

METHOD is any recipe with a teacher, gompertz_cnn if it is left out, whose gradients are then those in the classifier:
logits and embeddings are all that it asks of the teacher, and these come from the cache. SIZE is full (default: 240
epochs, seeds 0 to 2) or cpu, see `experiments.grid.build.standard`. All schedules go to the same weight, 1, where they
rise; the recipe's weights and cross-entropy are left as they are.
"""

from experiments.grid import build
from experiments.grid.cells import Grid
from gkd_jax import config
from gkd_jax.errors import UserError

SCHEDULES = {
    "constant": config.schedule("constant"),
    "linear": config.schedule("linear"),
    "cosine": config.schedule("cosine"),
    "logistic": config.schedule("logistic", inflection=0.3, rate=10.0),
    "step": config.schedule("step", begin="30%"),
    "rise_then_decay": config.schedule("rise_then_decay", peak="30%", end="100%"),
    **{f"gompertz t*={at}": config.schedule("gompertz", inflection=at, rate=10.0) for at in (0.1, 0.2, 0.3, 0.4)},
    "gompertz_adaptive": config.schedule("gompertz_adaptive"),
}


def get_grid(argument):
    """Returns the grid."""
    given = build.split(argument, "TEACHER,STUDENT,DATASET,METHOD,SIZE")
    *pair, dataset, method, size = [*given, *("gompertz_cnn", "full")[len(given) - 3 :]]
    cells = []
    for name, schedule in SCHEDULES.items():
        c = build.standard(pair, dataset, method, size)
        if not c.objective.terms:
            raise UserError(f"the method {method!r} has nothing but cross-entropy, which takes no schedule")
        if method == "gompertz_cnn":
            c.objective.terms.gradient.wrt = "classifier"
        build.under(c, schedule)
        labels = {"pair": " to ".join(pair), "dataset": dataset, "method": method, "schedule": name}
        cells.append(build.cell(name.replace(" t*=", "-"), c, **labels))
    title = f"Schedules of {method}'s weights: {' to '.join(pair)} on {dataset}, {build.said(cells[0].config)}"
    return Grid(title, tuple(cells), {"schedule": "constant"}, ("pair", "dataset", "method"))
