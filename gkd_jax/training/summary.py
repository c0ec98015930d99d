"""What a run leaves at its end: how good its networks are on the test split, the summary, the closing table, plots."""

import importlib.metadata
import pathlib
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gkd_jax import __version__, hosts, identity, models, objective
from gkd_jax.data import AnyDataset
from gkd_jax.models import count
from gkd_jax.processor import processor
from gkd_jax.reporting import plots
from gkd_jax.reporting.records import read_records
from gkd_jax.reporting.spread import over_seeds
from gkd_jax.reporting.table import Row, closing_table
from gkd_jax.training import checkpoint, finished, quality
from gkd_jax.training.evaluate import of_split
from gkd_jax.training.loop import METRICS
from gkd_jax.training.program import Job

SUMMARY = "summary.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ott-jax", "numpy")


class Measured(NamedTuple):
    """A network after it was measured on the test split.

    Attributes:
      report: what the summary says of it.
      predictions: the class it takes each test image to be of, [n]; of the first of several seeds. None without images.
    """

    report: dict[str, Any]
    predictions: np.ndarray | None


def report(dataset: AnyDataset, workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what the summary says of the network in `workdir`; see `measured`."""
    return measured(dataset, workdir).report


def measured(
    dataset: AnyDataset,
    workdir: pathlib.Path,
    *,
    averaged: bool = True,
    first: bool = False,
    teacher: np.ndarray | None = None,
) -> Measured:
    """Returns what a network is worth on the test split; the one place that opens it.

    Of several seeds it gives the mean of the numbers, their deviations under "std", and each under "seeds". What is
    measured on a split without images is None.

    Args:
      dataset: the run's.
      workdir: of a finished run.
      averaged: whether to take the averages of the parameters, where there are any.
      first: whether to take the first of several seeds alone.
      teacher: `Measured.predictions` of the network's teacher, to tell how often they agree.

    Raises:
      UserError: as `finished.load`.
    """
    students = finished.load_seeds(workdir, averaged=averaged)
    if first:
        students = dict(list(students.items())[:1])
    network = next(iter(students.values()))

    devices, workers = jax.devices(), network.config["data"].get("workers", 0)
    on_test, on_val = (of_split(network.model, dataset, split, devices, workers) for split in ("test", "val"))
    each, predictions = {}, []
    for seed, student in students.items():
        logits = on_test.logits(student.variables) if on_test else None
        rated = quality.rate(logits, on_test.labels if on_test else np.zeros(0, np.int32))
        predictions.append(None if logits is None else quality.classes(logits))
        each[str(seed)] = {
            "test_accuracy": rated.pop("accuracy"),
            "val_accuracy": on_val(student.variables) if on_val else None,
            **{f"test_{name}": value for name, value in rated.items()},
            **_agreement(predictions[-1], teacher),
            "params_sha256": checkpoint.sha256(student.variables["params"]),
        }
    found = {
        "model": network.config["student"]["model"],
        **(_over_seeds(each) if len(each) > 1 else next(iter(each.values()))),
        "params": count.parameters(network.variables),
        **_parts(network),
        "steps": network.step,
        "seconds": seconds(workdir),
        "workdir": str(workdir),
    }
    return Measured(found, predictions[0])


def _agreement(ours: np.ndarray | None, teachers: np.ndarray | None) -> dict[str, float]:
    if ours is None or teachers is None:
        return {}
    return {"teacher_agreement": quality.agreement(ours, teachers)}


def _parts(network: finished.Finished) -> dict[str, Any]:
    """Returns what `params` is the sum of, where a student reuses its teacher's classifier, which is in neither."""
    if not finished.reuses(network.config):
        return {}
    parts = {name: count.parameters({"params": tree}) for name, tree in network.variables["params"].items()}
    return {"params_of": parts}


def title(part: Mapping[str, Any]) -> str:
    """Returns what a report calls its network: "resnet8x4 + projector" for one with a projector."""
    return " + ".join([part["model"], *(name for name in part.get("params_of", ()) if name != "student")])


def _over_seeds(each: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    joined = over_seeds(each)
    del joined["params_sha256"]  # that of the first
    return joined


def circumstances(resolved: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
    """Returns how long the parts of a run in `workdir` took, and under what they were computed."""
    rates = [record["images_per_second"] for record in read_records(workdir / METRICS)]
    return {
        "seconds": sum(seconds(folder) for folder in (workdir, workdir / "teacher", workdir / "alone")),
        "images_per_second": float(np.median(rates)) if rates else None,
        "versions": versions(),
        "device": device(),
        "config_hash": identity.config_hash(resolved),
    }


def seconds(workdir: pathlib.Path) -> float:
    """Returns how long the epochs that are recorded in `workdir` took, without what was lost by being killed."""
    file = workdir / METRICS
    return sum(record["seconds"] for record in read_records(file)) if file.exists() else 0.0


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide about results."""
    found = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {"gkd_jax": __version__, "python": platform.python_version(), **found}


def device() -> dict[str, Any]:
    """Returns what the run was computed on."""
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processor": processor(),
        "convolutions": models.conv_form(devices[0].platform),
        **({"processes": hosts.count()} if hosts.several() else {}),
    }


def table(summary: Mapping[str, Any]) -> str:
    """Returns the closing table of a run."""
    distilled = summary["teacher"] is not None
    named = {
        "teacher": "teacher",
        "student_alone": "student alone",
        "student": "student distilled" if distilled else "student",
        "student_raw": "student, not averaged",
    }
    rows = [
        Row(f"{name} ({title(part)})", part["test_accuracy"], part["params"], part["seconds"], _deviation(part))
        for key, name in named.items()
        if (part := summary.get(key))
    ]
    return closing_table(rows)


def _deviation(part: Mapping[str, Any]) -> float | None:
    deviation: float | None = part.get("std", {}).get("test_accuracy")
    return deviation


def draw(job: Job, summary: Mapping[str, Any] | None = None) -> None:
    """Draws the plots of a run into its directory, from what its records hold so far."""
    records = read_records(job.workdir / METRICS)
    if not records:
        return
    folder = job.workdir / "plots"
    t = np.linspace(0.0, 1.0, min(job.total_steps, 500) + 1)
    lines = job.lines()
    weights = {k: np.asarray(v) for k, v in objective.weights_along(lines, list(t), job.total_steps).items()}
    fitted = [name for name, line in lines.items() if jax.tree.leaves(line.weight.init)]
    for name in fitted:  # as it was, not as it began
        steps, found = zip(*((record["step"], record["terms"][name]["weight"]) for record in records), strict=True)
        weights[name] = np.interp(t * job.total_steps, steps, found)
    rate = job.learning_rate()
    bounds = {name: line.weight.bounds(line.weight.init) for name, line in lines.items() if name not in fitted}
    stages = {name: both for name, both in bounds.items() if both is not None}
    plots.plot_schedule(
        folder / "schedule.png",
        t,
        weights,
        np.asarray([float(rate(round(x * job.total_steps))) for x in t]),
        stages=stages,
        inflections={name: sum(bounds) / 2 for name, bounds in stages.items()},
        total_epochs=job.config["epochs"],
    )
    plots.plot_losses(folder / "losses.png", records)
    others: dict[str, Any] = {}
    if summary and summary.get("teacher") and summary["teacher"]["test_accuracy"] is not None:
        others["teacher"] = summary["teacher"]["test_accuracy"]
    if summary and summary.get("student_alone"):
        others["student alone"] = read_records(job.workdir / "alone" / METRICS)
    plots.plot_accuracies(folder / "accuracies.png", records, others)
