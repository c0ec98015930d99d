"""A whole run: the teacher, the student alone, the student distilled, and what they are worth."""

import importlib.metadata
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gkd_jax import __version__, config, data, objective
from gkd_jax.data import Dataset
from gkd_jax.errors import UserError
from gkd_jax.models import count
from gkd_jax.outputs import Setup
from gkd_jax.reporting import plots
from gkd_jax.reporting.files import write_json
from gkd_jax.reporting.records import read_records
from gkd_jax.reporting.table import Row, closing_table
from gkd_jax.training import checkpoint, finished, teacher
from gkd_jax.training.evaluate import Evaluator
from gkd_jax.training.finished import Finished
from gkd_jax.training.loop import METRICS, train
from gkd_jax.training.program import Job
from gkd_jax.training.state import Networks, init_state
from gkd_jax.training.stop import Stop

SUMMARY = "summary.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ott-jax", "numpy")


def load_data(resolved: Mapping[str, Any]) -> Dataset:
    """Returns the data set that a configuration names."""
    fields = resolved["data"]
    return data.load(
        fields["source"],
        val_fraction=fields["val_fraction"],
        split_seed=fields["split_seed"],
        pad=fields["pad"],
        flip=fields["flip"],
        num_classes=fields["num_classes"],
        data_dir=fields["data_dir"],
    )


def claim(workdir: pathlib.Path, resolved: Mapping[str, Any], dataset: Dataset) -> None:
    """Makes a directory the one of a run, or makes sure that it is already.

    Raises:
      UserError: if it belongs to a run of another configuration or other data, or cannot be written.
    """
    if _check_claim(workdir, resolved, dataset):
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be made a directory ({error.strerror})") from error
    write_json(workdir / finished.CONFIG, resolved)
    write_json(workdir / finished.DATA, finished.facts(dataset))


def _check_claim(workdir: pathlib.Path, resolved: Mapping[str, Any], dataset: Dataset) -> bool:
    """Returns whether a directory is the one of this run already; raises `UserError` if it is that of another."""
    file = workdir / finished.CONFIG
    if file.exists():
        _same_run(workdir, resolved, finished.read(file))
        known = workdir / finished.DATA
        if known.exists() and finished.read(known)["digest"] != dataset.digest:
            raise UserError(
                f"{workdir} belongs to a run on other images than those of {dataset.name} now; choose another --workdir"
            )
        return known.exists()
    return False


def _same_run(workdir: pathlib.Path, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    changed = config.differences(here, there)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{workdir} belongs to a run of another configuration ({'; '.join(changed[:3])}{more}); "
            "choose another --workdir, or remove this one"
        )


def of_teacher(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration of the run that trains the teacher: its recipe, and cross-entropy alone."""
    given = resolved["teacher"]
    return _alone(resolved) | {
        "seed": given["seed"],
        "epochs": given["epochs"],
        "batch_size": given["batch_size"],
        "optimizer": given["optimizer"],
        "student": {"model": given["model"]},
        "ema": 0.0,
    }


def _alone(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the same run without a teacher."""
    ce = objective.resolve({"mode": "sum", "ce": {}, "terms": {}})
    return {
        **resolved,
        "compare_alone": False,
        "objective": ce,
        "teacher": {**resolved["teacher"], "model": config.NO_TEACHER, "checkpoint": None},
    }


def run(resolved: Mapping[str, Any], workdir: pathlib.Path, stop: Stop | None = None) -> dict[str, Any]:
    """Does a run from wherever it stands to its end, and returns its summary.

    Args:
      resolved: the configuration.
      workdir: where everything is left, and found again.
      stop: asked at every step.

    Raises:
      Interrupted: if `stop` was requested; everything is saved.
      UserError: if something given cannot work.
    """
    file = workdir / SUMMARY
    dataset = load_data(resolved)
    check_against(resolved, dataset)
    _check_claim(workdir, resolved, dataset)
    if file.exists():
        return finished.read(file)
    distilled = resolved["teacher"]["model"] != config.NO_TEACHER
    elsewhere = resolved["teacher"]["checkpoint"]
    taught_in = pathlib.Path(elsewhere) if elsewhere else workdir / "teacher"
    master, warning = None, None
    # Before anything is written: a teacher that does not fit must not leave a directory that only it could continue
    if elsewhere:
        master = teacher.prepare(taught_in, resolved["teacher"]["model"], dataset)
    claim(workdir, resolved, dataset)
    if distilled and master is None:
        _train(Job("teacher", of_teacher(resolved), taught_in, dataset), stop)
        master = teacher.prepare(taught_in, resolved["teacher"]["model"], dataset)
    if master:
        warning = teacher.leak(dataset, master.finished)
        if warning:
            sys.stderr.write(f"warning: {warning}\n")
    if resolved["compare_alone"] and distilled:
        _train(Job("student alone", _alone(resolved), workdir / "alone", dataset), stop)
    job = Job("student" if distilled else resolved["student"]["model"], resolved, workdir, dataset, master)
    _train(job, stop)

    tester = _Tester(dataset)
    summary: dict[str, Any] = {
        "teacher": tester.report(taught_in, master.finished) if master else None,
        "student": tester.report(workdir, finished.load(workdir)),
        "student_alone": tester.report(workdir / "alone") if resolved["compare_alone"] and distilled else None,
    }
    if resolved["ema"]:
        summary["student_raw"] = tester.report(workdir, finished.load(workdir, averaged=False))
    if warning and summary["teacher"]:
        summary["teacher"]["warning"] = warning
    own = [workdir, workdir / "teacher", workdir / "alone"]
    summary |= {
        "seconds": sum(_seconds(folder) for folder in own),
        "images_per_second": _throughput(workdir),
        "versions": versions(),
        "device": device(),
        "config_hash": config.config_hash(resolved),
    }
    if resolved["plots"]:
        draw(job, summary)
    write_json(file, summary)
    return finished.read(file)


def check_against(resolved: Mapping[str, Any], dataset: Dataset) -> None:
    """Raises `UserError` where a configuration does not fit its data, before hours are spent on its first part."""
    given, teaches = resolved["teacher"], resolved["teacher"]["model"] != config.NO_TEACHER
    if teaches and not given["checkpoint"]:
        try:
            Job("teacher", of_teacher(resolved), pathlib.Path(), dataset).learning_rate()
        except UserError as error:
            raise UserError(f"teacher.{error}") from error
    job = Job("student", resolved, pathlib.Path(), dataset)
    job.learning_rate()
    lines = job.lines()
    if not teaches:
        return
    shape = jax.ShapeDtypeStruct((resolved["batch_size"], *dataset.image_shape), np.float32)
    labels = jnp.asarray(dataset.train_labels)

    def begin(key: Any) -> Any:
        master = finished.network({**resolved, "student": {"model": given["model"]}}, dataset.num_classes)
        student = finished.network(resolved, dataset.num_classes)
        variables = master.init(key, jnp.zeros(shape.shape, shape.dtype))
        setup = Setup(dataset.num_classes, len(labels), job.steps_per_epoch, labels, *master.classifier(variables))
        networks = Networks(student, master, variables)
        return init_state(key, networks, lines, optax.identity(), shape, setup, epochs=1, ema=False)

    try:
        jax.eval_shape(begin, jax.random.key(0))
    except ValueError as error:  # a term that these networks' features do not suit
        raise UserError(f"objective: {error}") from error


def _train(job: Job, stop: Stop | None) -> None:
    claim(job.workdir, job.config, job.dataset)
    train(job, stop)


class _Tester:
    """Opens the test split, once, when all training is done."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def report(self, workdir: pathlib.Path, network: Finished | None = None) -> dict[str, Any]:
        """Returns what the summary says of the network in `workdir`."""
        network = finished.load(workdir) if network is None else network
        d = self._dataset
        test = Evaluator(network.model, d.test_images, d.test_labels, d.mean, d.std, jax.devices())
        validation = None
        if len(d.val_images):
            validate = Evaluator(network.model, d.val_images, d.val_labels, d.mean, d.std, jax.devices())
            validation = validate(network.variables)
        return {
            "model": network.config["student"]["model"],
            "test_accuracy": test(network.variables),
            "val_accuracy": validation,
            "params": count.parameters(network.variables),
            "params_sha256": checkpoint.sha256(network.variables["params"]),
            "steps": network.step,
            "seconds": _seconds(workdir),
            "workdir": str(workdir),
        }


def evaluate(workdir: pathlib.Path, resolved: Mapping[str, Any] | None = None) -> str:
    """Returns the accuracy of a finished run's student on its validation and test images, as text.

    Args:
      workdir: of the run.
      resolved: the configuration that the run is believed to have; its own if None. Another compute type is no other
        run here, since a network may be evaluated on another machine.

    Raises:
      UserError: if the directory holds no such run, or one of another configuration, or its data are gone.
    """
    network = finished.load(workdir)
    if resolved is None:
        resolved = network.config
    _same_run(workdir, {**resolved, "dtype": network.config["dtype"]}, network.config)
    dataset = load_data(resolved)
    if dataset.digest != network.record["digest"]:
        raise UserError(f"{workdir} holds a run on other images than those of {dataset.name} now")
    report = _Tester(dataset).report(workdir, network)
    lines = [f"{report['model']} on {dataset.name}, {network.step} steps, {report['params']:,} parameters"]
    if report["val_accuracy"] is not None:
        lines.append(f"validation accuracy  {100 * report['val_accuracy']:6.2f} %  ({len(dataset.val_images)} images)")
    lines.append(f"test accuracy        {100 * report['test_accuracy']:6.2f} %  ({len(dataset.test_images)} images)")
    return "\n".join(lines)


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
        Row(f"{name} ({part['model']})", part["test_accuracy"], part["params"], part["seconds"])
        for key, name in named.items()
        if (part := summary.get(key))
    ]
    return closing_table(rows)


def draw(job: Job, summary: Mapping[str, Any] | None = None, stream: TextIO | None = None) -> None:
    """Draws the plots of a run into its directory, from what its records hold so far."""
    records = read_records(job.workdir / METRICS)
    if not records:
        return
    folder = job.workdir / "plots"
    t = np.linspace(0.0, 1.0, 501)
    lines = job.lines()
    weights = {k: np.asarray(v) for k, v in objective.weights_along(lines, list(t), job.total_steps).items()}
    rate = job.learning_rate()
    plots.plot_schedule(
        folder / "schedule.png",
        t,
        weights,
        np.asarray([float(rate(round(x * job.total_steps))) for x in t]),
        stages={name: line.bounds for name, line in lines.items() if line.bounds is not None},
        total_epochs=job.config["epochs"],
    )
    plots.plot_losses(folder / "losses.png", records)
    others: dict[str, Any] = {}
    if summary and summary.get("teacher"):
        others["teacher"] = summary["teacher"]["test_accuracy"]
    if summary and summary.get("student_alone"):
        others["student alone"] = read_records(job.workdir / "alone" / METRICS)
    plots.plot_accuracies(folder / "accuracies.png", records, others)


def _seconds(workdir: pathlib.Path) -> float:
    file = workdir / METRICS
    return sum(record["seconds"] for record in read_records(file)) if file.exists() else 0.0


def _throughput(workdir: pathlib.Path) -> float | None:
    rates = [record["images_per_second"] for record in read_records(workdir / METRICS)]
    return float(np.median(rates)) if rates else None


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide about results."""
    found = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {"gkd_jax": __version__, "python": platform.python_version(), **found}


def device() -> dict[str, Any]:
    """Returns what the run was computed on."""
    devices = jax.devices()
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}
