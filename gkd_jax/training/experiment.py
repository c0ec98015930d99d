"""A whole run: the teacher, the student alone, the student distilled, and what they are worth."""

import functools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gkd_jax import config, data, hosts, identity, objective
from gkd_jax.data import AnyDataset
from gkd_jax.data.stream import Streamed
from gkd_jax.errors import UserError
from gkd_jax.models.simkd import Reused
from gkd_jax.outputs import Model, Setup
from gkd_jax.reporting.files import write_json
from gkd_jax.reporting.messages import say
from gkd_jax.training import checkpoint, finished, pretrained, summary, teacher
from gkd_jax.training.loop import Trained, train
from gkd_jax.training.program import Job
from gkd_jax.training.recall import unheld
from gkd_jax.training.sharing import check_shared
from gkd_jax.training.state import Networks, init_state
from gkd_jax.training.stop import Interrupted, Stop, Together, together
from gkd_jax.training.teacher import Teacher
from gkd_jax.training.workdir import alone_in, check, claim, same_images, same_run, shared


def load_data(resolved: Mapping[str, Any], *, test: bool = True) -> AnyDataset:
    """Returns the data set that a configuration names, with or without its test split."""
    return data.open_data(**resolved["data"], test=test)


def of_teacher(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration of the run that trains the teacher: its recipe, and cross-entropy alone."""
    return _with_objective(as_teacher(resolved))


def as_teacher(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what resolves to `of_teacher`, of a configuration that may be resolved or not."""
    teacher = given["teacher"]
    return _as_alone(given) | {
        "seed": teacher["seed"],
        "seeds": [],
        "seeds_share_batches": False,
        "batch_seed": None,
        "epochs": teacher["epochs"],
        "batch_size": teacher["batch_size"],
        "optimizer": teacher["optimizer"],
        "student": {"model": teacher["model"], "reuse_classifier": False},
        "ema": 0.0,
    }


def _alone(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the same run without a teacher: cross-entropy with its options, at weight 1 throughout."""
    return _with_objective(_as_alone(resolved))


def _as_alone(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what resolves to `_alone`."""
    ce = {**given["objective"]["ce"], "weight": 1.0, "every": 1, "schedule": {"name": "constant"}}
    return {
        **given,
        "compare_alone": False,
        "student": {**given["student"], "reuse_classifier": False},
        "objective": {**given["objective"], "mode": "sum", "ce": ce, "terms": {}},
        "teacher": {**given["teacher"], "model": config.NO_TEACHER, "checkpoint": None, "cache": config.NO_CACHE},
    }


def _with_objective(given: Mapping[str, Any]) -> dict[str, Any]:
    return {**given, "objective": objective.resolve(given["objective"])}


def run(
    resolved: Mapping[str, Any], workdir: pathlib.Path, stop: Stop | None = None, *, test: bool = True
) -> dict[str, Any]:
    """Does a run from wherever it stands to its end, and returns its summary.

    Args:
      resolved: the configuration.
      workdir: where everything is left, and found again.
      stop: asked at every step.
      test: whether to read the test split once all is trained. Without it the run ends with validation figures alone,
        those on test images are None, and its directory does not become that of a run with it.

    Raises:
      Interrupted: if `stop` was requested; everything is saved.
      UserError: if something given cannot work.
    """
    file = workdir / summary.SUMMARY
    _same_everywhere(resolved, workdir)
    _check_all_shared(resolved)
    dataset = hosts.in_turn(lambda: load_data(resolved, test=test))
    hosts.same({f"the digest of {dataset.name}'s images": dataset.digest})
    check_against(resolved, dataset)
    hosts.first_does(lambda: check(workdir, resolved, dataset))
    done = hosts.first_does(lambda: finished.read(file) if file.exists() else None)
    if done is not None:
        return done
    stopped = together(stop)
    distilled = resolved["teacher"]["model"] != config.NO_TEACHER
    folders = _Folders(
        student=workdir,
        teacher=(pretrained.located(resolved["teacher"]) or workdir / "teacher") if distilled else None,
        alone=workdir / "alone" if resolved["compare_alone"] and distilled else None,
    )
    # Before anything is written: what does not fit must not leave a directory that only it could continue
    master = None
    if folders.teacher and resolved["teacher"]["checkpoint"]:
        master = _prepared(resolved, folders.teacher, dataset)
    for folder, own in _trained_before(resolved, folders, master).items():
        hosts.first_does(functools.partial(check, folder, own, dataset))
    _say_unheld(resolved, dataset)
    known = checkpoint.sha256(master.finished.variables["params"]) if master else None
    final = _reused_final(resolved, dataset, master)
    hosts.first_does(lambda: claim(workdir, resolved, dataset, known, final))
    shared(workdir)
    with alone_in(workdir):
        if folders.teacher and master is None:
            hosts.first_does(functools.partial(claim, folders.teacher, of_teacher(resolved), dataset))
            _train(Job("teacher", of_teacher(resolved), folders.teacher, dataset), stopped)
            master = _prepared(resolved, folders.teacher, dataset)
        warning = teacher.leak(dataset, master.finished) if master else None
        if warning and hosts.first():
            sys.stderr.write(f"warning: {warning}\n")
        if folders.alone:
            hosts.first_does(functools.partial(claim, folders.alone, _alone(resolved), dataset))
            _train(Job("student alone", _alone(resolved), folders.alone, dataset), stopped)
        job = Job("student" if distilled else resolved["student"]["model"], resolved, workdir, dataset, master)
        trained = _train(job, stopped)
        found = _summarised(resolved, dataset, folders, warning)
        if trained.cache:
            found["teacher_cache"] = trained.cache
        if hosts.first():
            if resolved["plots"]:
                summary.draw(job, found)
            write_json(file, found)
    return hosts.first_does(lambda: finished.read(file))


def _same_everywhere(resolved: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Raises `UserError` unless all processes of the run have the same configuration, software and kind of device."""
    if not hosts.several():
        if jax.process_count() > 1:  # on the hosts of a TPU slice, which see each other's devices in any case
            raise UserError(f"JAX finds {jax.process_count()} hosts here; give --coordinator=auto on all of them")
        return
    fields = dict(config.leaves(identity.to_json(resolved)))
    for path in _OF_A_HOST:
        fields.pop(path, None)
    hosts.same(
        {**fields, "--workdir": str(workdir.absolute()), "the device": jax.default_backend(), **summary.versions()}
    )


def _check_all_shared(resolved: Mapping[str, Any]) -> None:
    """Raises `UserError` unless student and teacher can be shared among the devices as they must be."""
    check_shared(resolved)
    if resolved["teacher"]["model"] != config.NO_TEACHER and not resolved["teacher"]["checkpoint"]:
        try:
            check_shared(of_teacher(resolved))
        except UserError as error:
            raise UserError(f"teacher.{error}") from error


# Paths, which each host may have of its own
_OF_A_HOST = ("data.workers", "compilation_cache", "data.data_dir", "teacher.cache_dir")


class _Folders(NamedTuple):
    """Where the networks of a run are; None for those that it has not."""

    student: pathlib.Path
    teacher: pathlib.Path | None
    alone: pathlib.Path | None


def _trained_before(
    resolved: Mapping[str, Any], folders: _Folders, master: Teacher | None
) -> dict[pathlib.Path, dict[str, Any]]:
    """Returns the configurations of what the run trains before its student, by directory."""
    found = {}
    if folders.teacher and master is None:
        found[folders.teacher] = of_teacher(resolved)
    if folders.alone:
        found[folders.alone] = _alone(resolved)
    return found


def _prepared(resolved: Mapping[str, Any], folder: pathlib.Path, dataset: AnyDataset) -> Teacher:
    found = teacher.prepare(folder, resolved["teacher"]["model"], dataset, resolved["dtype"])
    seeds = found.finished.config.get("seeds")
    if seeds:
        held = ", ".join(map(str, seeds))
        say(f"teacher.checkpoint: {folder} holds networks of the seeds {held}; the teacher is that of {seeds[0]}")
    return found


def _reused_final(
    resolved: Mapping[str, Any], dataset: AnyDataset, master: Teacher | None
) -> tuple[int, int, int] | None:
    """Returns the shape of the teacher's final map where the student reuses its classifier, trained or not."""
    if not finished.reuses(resolved):
        return None
    if master is not None:
        return master.reused(dataset.image_shape).final
    model = finished.network(of_teacher(resolved), dataset.num_classes)
    return teacher.final_shape(model, dataset.image_shape)


def _say_unheld(resolved: Mapping[str, Any], dataset: AnyDataset) -> None:
    """Says what the student's objective needs of the teacher and the chosen cache does not hold."""
    cache = resolved["teacher"]["cache"]
    if cache == config.NO_CACHE:
        return
    missing = unheld(cache, Job("student", resolved, pathlib.Path(), dataset).lines())
    if missing:
        say(
            f"teacher.cache = {cache!r} is of no use here, the teacher runs at every step: the objective needs "
            f"{' and '.join(missing)}, which it does not hold"
        )


def _summarised(
    resolved: Mapping[str, Any], dataset: AnyDataset, folders: _Folders, warning: str | None
) -> dict[str, Any]:
    """Reads the test split, now that all training is done, and returns the summary."""
    master = summary.measured(dataset, folders.teacher, first=True) if folders.teacher else None  # as `teacher.prepare`
    predicted = master.predictions if master else None
    student = functools.partial(summary.measured, dataset, folders.student, teacher=predicted)
    found = {
        "teacher": master.report if master else None,
        "student": student().report,
        "student_alone": summary.report(dataset, folders.alone) if folders.alone else None,
    }
    if resolved["ema"]:
        found["student_raw"] = student(averaged=False).report
    if warning and found["teacher"]:
        found["teacher"]["warning"] = warning
    # What is read from the records of all epochs is for the process that writes the summary
    return found | (summary.circumstances(resolved, folders.student) if hosts.first() else {})


def check_against(resolved: Mapping[str, Any], dataset: AnyDataset) -> None:
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
    labels = None if isinstance(dataset, Streamed) else jnp.asarray(dataset.train_labels)
    if labels is None and resolved["seeds"] and not resolved["seeds_share_batches"]:
        raise UserError("images that are streamed come in one order: several seeds need seeds_share_batches = true")

    def begin(key: Any) -> Any:
        master = _network_of_teacher(resolved, dataset)
        variables = master.init(key, jnp.zeros(shape.shape, shape.dtype))
        kernel, bias = master.classifier(variables)
        reused = None
        if finished.reuses(resolved):
            reused = Reused(teacher.final_shape(master, dataset.image_shape, variables), kernel, bias)
        student = finished.network(resolved, dataset.num_classes, reused=reused)
        norms = master.norms(variables) if master.norms is not None else None
        setup = Setup(dataset.num_classes, dataset.sizes.train, job.steps_per_epoch, labels, kernel, bias, norms)
        objective.constants(lines, setup)
        networks = Networks(student, master, variables)
        return init_state(key, networks, lines, optax.identity(), shape, setup, epochs=1, ema=False)

    try:
        jax.eval_shape(begin, jax.random.key(0))
    except ValueError as error:  # a term that these networks' features do not suit
        raise UserError(f"objective: {error}") from error


def _network_of_teacher(resolved: Mapping[str, Any], dataset: AnyDataset) -> Model:
    """Returns the teacher's network, also where it is itself a student with the classifier of its own teacher."""
    given = {**resolved, "student": {"model": resolved["teacher"]["model"]}}
    file = pathlib.Path(resolved["teacher"]["checkpoint"] or "") / finished.DATA
    record = finished.read(file) if resolved["teacher"]["checkpoint"] and file.exists() else {}
    given["student"]["reuse_classifier"] = finished.REUSED in record
    return finished.rebuilt(given, record, dataset.num_classes)


def _train(job: Job, stop: Stop | Together | None) -> Trained:
    """Trains a job in a directory that is claimed for it."""
    trained = train(job, stop)
    number = None if stop is None else stop.at_end()
    if number is not None:  # at its last step; the next job would first compile
        raise Interrupted(number, job.name, job.total_steps)
    return trained


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
    _same_everywhere(resolved, workdir)
    if hosts.several():
        _check_all_shared(resolved)
    same_run(workdir, {**resolved, "dtype": network.config["dtype"]}, network.config)
    dataset = hosts.in_turn(lambda: load_data(resolved))
    same_images(workdir, dataset, network.record["digest"])
    report = summary.report(dataset, workdir)
    lines = [f"{summary.title(report)} on {dataset.name}, {network.step} steps, {report['params']:,} parameters"]
    if report["val_accuracy"] is not None:
        lines.append(f"validation accuracy  {_percent(report, 'val_accuracy')}  ({dataset.sizes.val} images)")
    lines.append(f"test accuracy        {_percent(report, 'test_accuracy')}  ({dataset.sizes.test} images)")
    return "\n".join(lines)


def _percent(report: Mapping[str, Any], name: str) -> str:
    if "seeds" not in report:
        return f"{100 * report[name]:6.2f} %"
    return f"{100 * report[name]:6.2f} ± {100 * report['std'][name]:.2f} % over {len(report['seeds'])} seeds"
