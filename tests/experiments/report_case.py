"""A grid's folder as `python -m experiments.grid` leaves it, written by hand, and its report."""

import functools
import html.parser
import json
import math

from experiments.report import __main__ as command
from gkd_jax import config, identity, objective, recipes
from gkd_jax.reporting.spread import over_seeds
from gkd_jax.training.resolve import resolve

TITLE = "Weights <b>compared</b> & more, 5,000 images | 6 epochs"
EPOCHS, STEPS = 6, 10
PAIRS = {"first": ("resnet56 to resnet20", "cifar100"), "second": ("wide & deep to <small>", "cifar10")}
CELLS = {  # name: (method, schedule, seeds, what its accuracy is above the baseline's, by seed)
    "kd": ("kd", "constant", (0, 1, 2), (0.0, 0.0, 0.0)),
    "kd-gompertz": ("kd", "gompertz", (0, 1, 2), (0.011, 0.007, 0.009)),
    "kd-adaptive": ("kd", "gompertz_adaptive", (0, 1, 2), (-0.002, 0.003, 0.001)),
    "alone": ("alone", "<none> & nothing", (0,), (-0.05,)),
}
TEACHER = "resnet56-cifar100-1a2b"
BASE = (0.681, 0.689, 0.676)


def _config(dataset, method, schedule, seeds):
    recipe = f"{method}+gompertz" if schedule.startswith("gompertz") else method
    c = recipes.standard("resnet56", "resnet20", dataset, recipe)
    if method == "alone":
        c.teacher.model = config.NO_TEACHER
    else:
        c.teacher.checkpoint = f"runs/before/teachers/{TEACHER}"  # where the folder was then
    if schedule == "gompertz_adaptive":
        c.objective.terms.kd.schedule = config.schedule(schedule)
        c.objective.terms.wasserstein = objective.block("wasserstein", schedule=config.schedule("gompertz"))
    c.epochs, c.seeds, c.dtype = EPOCHS, seeds, "float32"
    return identity.to_json(resolve(c))


def _epoch(epoch, resolved, accuracy, seed):
    t = (epoch * STEPS - 1) / (EPOCHS * STEPS)
    terms = {"ce": {"value": 1.0, "weight": resolved["objective"]["ce"]["weight"]}}
    for name, line in resolved["objective"]["terms"].items():
        terms[name] = {"value": 0.5, "weight": line["weight"]}
        if line["schedule"]["name"].startswith("gompertz"):
            grown = math.exp(-math.exp(-10 * (t - 0.3 - 0.01 * seed)))
            stage = "growth" if t < 0.2 else "rapid" if t < 0.4 + 0.01 * seed else "saturation"
            terms[name] = {"value": 0.5, "weight": line["weight"] * grown, "stage": stage}
    reached = accuracy * (1 - math.exp(-epoch))
    if epoch == 4:
        reached = accuracy + 0.004  # better on validation than the last
    return {"loss": 2.0 / epoch, "terms": terms, "train_accuracy": reached + 0.05, "val_accuracy": reached}


def _write_run(folder, resolved, seeds, accuracies):
    folder.mkdir(parents=True)
    students = {}
    with (folder / "metrics.jsonl").open("w") as file:
        for epoch in range(1, EPOCHS + 1):
            each = {str(s): _epoch(epoch, resolved, a, s) for s, a in zip(seeds, accuracies, strict=True)}
            record = over_seeds(each) if len(seeds) > 1 else next(iter(each.values()))
            head = {"epoch": epoch, "step": epoch * STEPS, "learning_rate": 0.05}
            head |= {"images_per_second": 900.0 + epoch, "seconds": 130.0}
            if folder.name == "first-kd-gompertz":  # the others are from before these were recorded apart
                head |= {"seconds_cache": 40.0 if epoch == 1 else 2.0, "seconds_compile": 30.0 if epoch == 1 else 0.0}
            file.write(json.dumps({**head, **record}) + "\n")
            students = each
    measured = {
        str(s): {
            "test_accuracy": a,
            "val_accuracy": students[str(s)]["val_accuracy"],
            "test_top5": a + 0.1,
            "test_ece": 0.031 + 0.001 * s,
            "test_nll": 1.2 + 0.01 * s,
            **({"teacher_agreement": 0.77 + 0.01 * s} if resolved["teacher"]["model"] != "none" else {}),
        }
        for s, a in zip(seeds, accuracies, strict=True)
    }
    student = over_seeds(measured) if len(seeds) > 1 else next(iter(measured.values()))
    summary = {
        "teacher": {"model": "resnet56", "test_accuracy": 0.7234} if "teacher_agreement" in student else None,
        "student": {"model": "resnet20", **student, "params": 278324, "seconds": 780.0},
        "images_per_second": 903.5,
        "versions": {"gkd_jax": "0.1.0", "jax": "0.10.2"},
        "device": {"platform": "gpu", "kind": "Accelerator <9000>", "count": 1},
        "config_hash": identity.config_hash(resolved),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.json").write_text(json.dumps(resolved))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "weights").write_bytes(bytes(100))


def write(folder):
    cells = []
    for number, (group, (pair, dataset)) in enumerate(PAIRS.items()):
        for name, (method, schedule, seeds, gains) in CELLS.items():
            cell = f"{group}-{name}"
            cells.append(
                {
                    "name": cell,
                    "labels": {"pair": pair, "dataset": dataset, "method": method, "schedule": schedule},
                }
            )
            accuracies = [BASE[s] + gain + 0.2 * number for s, gain in zip(seeds, gains, strict=True)]
            if name == "kd-adaptive" and group == "second":
                continue  # it fails
            _write_run(folder / "runs" / cell, _config(dataset, method, schedule, seeds), seeds, accuracies)
    cells.append({"name": "late", "labels": {"pair": PAIRS["first"][0], "dataset": "cifar100", "method": "dkd"}})
    (folder / "failed").mkdir()
    failure = {"error": "its loss <became> NaN & stopped", "log": ["line one", "line <two>"], "date": "2026-01-01"}
    (folder / "failed" / "second-kd-adaptive.json").write_text(json.dumps({"name": "second-kd-adaptive", **failure}))
    for name in (TEACHER, "of-no-run"):
        _write_run(folder / "teachers" / name, _config("cifar100", "alone", "none", (0,)), (0,), (0.7234,))
    grid = {
        "title": TITLE,
        "grid": "experiments/grids/example.py",
        "commands": ["python -m experiments.grid --grid experiments/grids/example.py --out <here>"],
        "baseline": {"method": "kd", "schedule": "constant"},
        "within": ["pair", "dataset"],
        "cells": cells,
    }
    (folder / "grid.json").write_text(json.dumps(grid))


@functools.cache
def written(base):
    """Returns a grid's folder below `base`, without a report, and not to be changed."""
    folder = base / "report-written"
    folder.mkdir()
    write(folder)
    return folder


@functools.cache
def reported(base):
    """Returns such a folder with its report, and the folder that this is published to."""
    folder, published = base / "report-folder", base / "report-published"
    folder.mkdir()
    write(folder)
    assert command.main([str(folder), "--publish", str(published)]) == 0
    return folder, published


class Page(html.parser.HTMLParser):
    """Tables, links and images of a page."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.links, self.images, self.tags, self.text = [], [], [], [], ""
        self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""
        elif tag == "a":
            self.links.append(attrs["href"])
        elif tag == "img":
            self.images.append(attrs)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join(self._cell.split()))
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell += data


def change(file, by):
    found = json.loads(file.read_text())
    by(found)
    file.write_text(json.dumps(found))
