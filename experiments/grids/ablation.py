"""What each loss brings, and what the Gompertz weight brings to it.

  python -m experiments.grid --grid experiments/grids/ablation.py:TEACHER,STUDENT,DATASET --out DIR
  python -m experiments.grid --grid experiments/grids/ablation.py:resnet20,resnet8,cifar100,cpu --out runs/ablation-100
  python -m experiments.grid --grid experiments/grids/ablation.py:resnet20,resnet8,cifar10,cpu --out runs/ablation-10

The student alone; then KD, KD + Wasserstein, KD + gradient matching, and all three, each with constant and with
Gompertz weights, and all three with the adaptive one. They are gompertz_cnn's losses and weights with some left out,
cross-entropy at weight 1 throughout, so that two cells differ in one thing (RepDistiller's kd, whose cross-entropy has
0.1, is in the grid `pairs`). Gradients are those in the classifier, so that all comes from the teacher's cache; one
more cell has input gradients, without a cache. The last argument is the size, see `experiments.grid.build.standard`:
full (default) or cpu.
"""

from experiments.grid import build
from experiments.grid.cells import Grid
from gkd_jax import config

TERMS = {"kd": "kd", "w": "wasserstein", "gm": "gradient"}
METHODS = ("kd", "kd+w", "kd+gm", "kd+w+gm")


def get_grid(argument):
    """Returns the grid."""
    given = build.split(argument, "TEACHER,STUDENT,DATASET,SIZE")
    *pair, dataset, size = [*given, "full"][:4]
    labels = {"pair": " to ".join(pair), "dataset": dataset}

    def losses(method, schedule, wrt="classifier"):
        c = build.standard(pair, dataset, "gompertz_cnn", size)
        for part in {*TERMS} - {*method.split("+")}:
            del c.objective.terms[TERMS[part]]
        if "gradient" in c.objective.terms:
            c.objective.terms.gradient.wrt = wrt
        build.under(c, schedule)
        return c

    schedules = (config.schedule("constant"), config.schedule("gompertz", inflection=0.3, rate=10.0))
    alone = build.standard(pair, dataset, "alone", size)
    cells = [build.cell("alone", alone, **labels, method="alone")]
    for method in METHODS:
        for schedule in schedules:
            c = losses(method, schedule)
            cells.append(build.cell(f"{method}-{schedule.name}", c, **labels, method=method))
    c = losses("kd+w+gm", config.schedule("gompertz_adaptive"))
    cells.append(build.cell("kd+w+gm-gompertz_adaptive", c, **labels, method="kd+w+gm"))
    c = losses("kd+w+gm", schedules[1], wrt="input")
    cells.append(build.cell("kd+w+gm_input-gompertz", c, **labels, method="kd+w+gm (input)"))
    for each in cells:
        if each.config.teacher.cache == "logits":  # one fill for all: with embeddings they would be computed again
            each.config.teacher.cache = "embedding"
    title = f"Ablation of gompertz_cnn: {labels['pair']} on {dataset}, {build.said(alone)}"
    return Grid(title, tuple(cells), {"method": "kd", "schedule": "constant"}, ("pair", "dataset"))
