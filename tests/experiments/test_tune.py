"""The search for hyper-parameters: resumable, on validation images alone, and what it chose is found again."""

import contextlib
import io
import json
import pathlib
import sqlite3
import zipfile
from typing import NamedTuple

import helpers
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("optuna")

from experiments.tune import __main__ as tune  # noqa: E402
from experiments.tune import record as records  # noqa: E402
from experiments.tune.space import fields, space  # noqa: E402
from gkd_jax import command, config, data, identity, losses, objective, recipes  # noqa: E402
from gkd_jax.data import sources  # noqa: E402
from gkd_jax.errors import UserError  # noqa: E402
from gkd_jax.recipes import tuned  # noqa: E402
from gkd_jax.training import experiment, finished  # noqa: E402
from gkd_jax.training.resolve import resolve  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
SHORT = (
    *("--config.epochs=1", "--config.teacher.epochs=1", "--config.batch_size=16", "--config.teacher.batch_size=16"),
    *("--config.data.val_fraction=0.2", "--config.cpu_devices=1"),
)
NAMES = ["weight.kd", "inflection", "rate", "temperature"]


class Done(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str
    folder: pathlib.Path

    @property
    def record(self):
        return json.loads((self.folder / "study.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def _registrations():
    known = dict(sources._REGISTERED)
    with helpers.registrations():
        yield
    sources._REGISTERED.clear()
    sources._REGISTERED.update(known)


def run(file, folder, *arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = tune.main([f"--config={file}", "--out", str(folder), *map(str, arguments)])
    return Done(status, out.getvalue(), err.getvalue(), folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A configuration on images whose test arrays cannot be read."""
    folder = tmp_path_factory.mktemp("small")
    # With nothing but the teacher to learn from, and enough images for accuracies to differ
    more = "c.objective.ce.weight = 0.0"
    file = helpers.write_config(folder, more, **helpers.images(train=160))
    with zipfile.ZipFile(folder / "images.npz") as good, zipfile.ZipFile(folder / "spoilt.npz", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, b"no array" if "test" in name else good.read(name))
    (folder / "spoilt.npz").replace(folder / "images.npz")
    return file


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    """A study of three trials."""
    return run(small, tmp_path_factory.mktemp("tune") / "study", "--trials=3", *SHORT)


def trials(study):
    """What must not depend on how often a study was stopped."""
    return [{**trial, "seeds": sorted(trial["seeds"])} for trial in study.record["trials"]]


@pytest.mark.slow
def test_a_study_never_reads_the_test_split(done, small):
    assert done.status == 0, done.err
    with pytest.raises(UserError, match="damaged"):
        data.load(f"npz:{small.parent / 'images.npz'}")
    for workdir in (done.folder / "teacher", *sorted((done.folder / "trials").iterdir())):
        student = finished.read(workdir / "summary.json")["student"]
        assert student["val_accuracy"] is not None
        assert all(value is None for name, value in student.items() if name.startswith("test_"))


def test_what_a_study_leaves(done):
    record = done.record
    assert [trial["number"] for trial in record["trials"]] == [0, 1, 2]
    assert [p["name"] for p in record["space"]] == NAMES
    first, *others = record["trials"]
    assert first["values"] == {"weight.kd": 0.5, "inflection": 0.3, "rate": 10.0, "temperature": 4.0}
    bounds = {p["name"]: (p["low"], p["high"]) for p in record["space"]}
    assert bounds == {"weight.kd": (0.05, 5), "inflection": (0.05, 0.4), "rate": (4, 20), "temperature": (1, 8)}
    for trial in others:
        assert all(low <= trial["values"][name] <= high for name, (low, high) in bounds.items())
    assert len({tuple(trial["values"].values()) for trial in record["trials"]}) == 3
    best = max(record["trials"], key=lambda trial: trial["val_accuracy"])
    assert record["best"] == best
    assert f"the best is number {best['number']}" in done.out
    assert record["versions"]["optuna"]
    assert "--trials=3" in record["command"]
    assert len({trial["val_accuracy"] for trial in record["trials"]}) > 1
    with contextlib.closing(sqlite3.connect(done.folder / "study.db")) as database:
        assert database.execute("select count(*) from trials where state = 'COMPLETE'").fetchone() == (3,)


def test_a_trial_is_a_run_of_its_values_with_the_shared_teacher(done):
    for trial in done.record["trials"]:
        workdir = done.folder / "trials" / f"{trial['number']:04}"
        resolved, values = finished.read(workdir / "config.json"), trial["values"]
        line = resolved["objective"]["terms"]["kd"]
        assert (line["weight"], line["temperature"]) == (values["weight.kd"], values["temperature"])
        assert line["schedule"]["inflection"] == values["inflection"]
        assert line["schedule"]["rate"] == values["rate"]
        assert resolved["teacher"]["checkpoint"] == str(done.folder / "teacher")
        assert not (workdir / "teacher").exists()
        last = (workdir / "metrics.jsonl").read_text().splitlines()[-1]
        assert trial["val_accuracy"] == json.loads(last)["val_accuracy"]


def test_a_finished_study_does_nothing_more(done, small):
    before = helpers.contents(done.folder / "trials")
    again = run(small, done.folder, "--trials=3", *SHORT)
    assert again.out == done.out
    assert helpers.contents(done.folder / "trials") == before


class Killed(BaseException):
    """As if the process had ended."""


def test_a_study_that_is_stopped_goes_on_as_it_would_have(done, small, tmp_path, monkeypatch):
    folder, given = tmp_path / "study", experiment.run
    # Asked at every step, of which the teacher has eight, the trials too
    with monkeypatch.context() as patched:
        patched.setattr(tune, "Stop", lambda: contextlib.nullcontext(helpers.StopAt(12)))
        stopped = run(small, folder, "--trials=3", *SHORT)
    assert stopped.status == 128 + 15
    assert "stopped by SIGTERM after step" in stopped.err
    assert (folder / "trials" / "0000" / "checkpoints").is_dir()

    def run_and_be_killed(resolved, workdir, *more, **options):
        found = given(resolved, workdir, *more, **options)
        if workdir.name == "0001":
            raise Killed
        return found

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "run", run_and_be_killed)
        with pytest.raises(Killed):
            run(small, folder, "--trials=3", *SHORT)
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as database:
        states = [state for (state,) in database.execute("select state from trials order by number")]
    assert states == ["COMPLETE", "RUNNING"]
    last = run(small, folder, "--trials=3", *SHORT)
    assert last.status == 0, last.err
    assert trials(last) == trials(done)
    assert last.out.replace(str(folder), "DIR") == done.out.replace(str(done.folder), "DIR")


class Watched(dict):
    """Arrays that tell which of them were looked at."""

    seen: set[str] = set()  # noqa: RUF012

    def __getitem__(self, name):
        self.seen.add(name)
        return super().__getitem__(name)


def taught(done):
    """The teacher that was trained already, on the same images."""
    return f"--config.teacher.checkpoint={done.folder / 'teacher'}"


def test_of_a_registered_source_no_test_array_is_looked_at(done, small, tmp_path):
    data.register("watched")(lambda data_dir: Watched(helpers.images(train=160)))
    flags = ("--trials=1", "--space=weights", *SHORT, "--config.seeds=(3, 4)", "--config.data.source=watched")
    found = run(small, tmp_path / "study", *flags, taught(done))
    assert found.status == 0, found.err
    assert not (tmp_path / "study" / "teacher").exists()
    assert "warning" not in found.err  # the teacher's training images are known, and that it saw no other
    assert Watched.seen == {"x_train", "y_train"}
    (trial,) = found.record["trials"]
    assert set(trial["seeds"]) == {"3", "4"}
    assert trial["val_accuracy"] == pytest.approx(np.mean(list(trial["seeds"].values())))
    assert "the mean of 2 seeds" in found.out


FRAGILE = "c.objective.terms.kd = objective.block('fragile', weight=0.5)"


@pytest.fixture
def fragile():
    @losses.register("fragile", needs={"teacher.logits"})
    def loss(student, teacher, *, temperature: float = 1.5):
        # Below two degrees all is well
        return jnp.mean(student.logits) * jnp.sqrt(2.0 - temperature)


@pytest.mark.usefixtures("fragile")
def test_a_trial_that_fails_is_written_down_and_the_others_go_on(done, tmp_path):
    file = helpers.write_config(tmp_path / "fragile", FRAGILE, **helpers.images(train=160))
    flags = ("--trials=2", "--space=temperature", *SHORT, taught(done))
    found = run(file, tmp_path / "study", *flags)
    assert found.status == 0, found.err
    good, bad = found.record["trials"]
    assert (good["values"]["temperature"], good["error"]) == (1.5, None)
    assert bad["values"]["temperature"] > 2
    assert "the term 'kd' became NaN or infinite at step 0" in bad["error"]
    assert bad["val_accuracy"] is None
    assert found.record["best"] == good
    assert "2 trials, of which 1 failed" in found.out
    before = helpers.contents(tmp_path / "study" / "trials")
    assert run(file, tmp_path / "study", *flags).out == found.out
    assert helpers.contents(tmp_path / "study" / "trials") == before
    with pytest.raises(UserError, match="all 1 trials failed, the last one so: student: the term 'kd' became NaN"):
        records.table({**found.record, "trials": [bad], "best": None})


@pytest.mark.usefixtures("fragile")
def test_what_is_no_fault_of_the_values_ends_the_study(done, tmp_path, monkeypatch):
    def full(*given, **options):
        raise UserError("cannot write metrics.jsonl: No space left on device")

    monkeypatch.setattr(experiment, "run", full)
    file = helpers.write_config(tmp_path / "fragile", FRAGILE)
    found = run(file, tmp_path / "study", "--trials=2", "--space=temperature", *SHORT, taught(done))
    assert found.status == 2
    assert found.err.endswith("experiments.tune: cannot write metrics.jsonl: No space left on device\n")
    assert found.record["trials"] == []


def test_what_was_found_is_kept_and_applied(done, small, tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "FILE", tmp_path / "tuned.json")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    tuned.FILE.write_text("{}")
    pair = f"speck_wide,speck,npz:{small.parent / 'images.npz'}"
    file = f"{ROOT / 'configs' / 'cifar.py'}:{pair},gompertz_kd"
    flags = ("--config.data.pad=1", "--config.data.flip=false", taught(done), *SHORT)
    found = run(file, tmp_path / "study", "--trials=2", "--space=weights,inflection", "--keep=specks", *flags)
    assert found.status == 0, found.err
    entry = tuned.entries()[f"{pair},gompertz_kd"]
    assert entry["study"] == "experiments/results/tuning/specks.json"
    study = json.loads((tmp_path / entry["study"]).read_text())
    assert study == found.record
    best = study["best"]["values"]
    kd = "objective.terms.kd"
    assert entry["values"] == {f"{kd}.weight": best["weight.kd"], f"{kd}.schedule.inflection": best["inflection"]}
    assert (entry["trials"], entry["val_accuracy"]) == (2, study["best"]["val_accuracy"])
    assert "epochs: 240 -> 1" in entry["changes"]

    c = command.parse(["gkd_jax", f"--config={file}@tuned"]).config
    assert (c.objective.terms.kd.weight, c.objective.terms.kd.schedule.inflection) == (
        best["weight.kd"],
        best["inflection"],
    )
    assert recipes.changes(resolve(c)) == []

    # Another study may not take the name of a record, and starts none
    other = run(file, tmp_path / "other", "--trials=1", "--keep=specks", *flags, "--config.epochs=2")
    assert other.status == 2
    assert "specks.json is the record of another study; choose another name" in other.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials=2", "--config.data.val_fraction=0"], "a search needs validation images"),
        (["--trials=0"], "--trials is the number of trials in the end, 1 or above, not 0"),
        (["--trials=few"], "argument --trials: invalid int value: 'few'"),
        ([], "the following arguments are required: --trials"),
        (["--trials=2", "--space=weight"], "unknown kind of --space 'weight' (did you mean 'weights'?)"),
        (["--trials=2", "--workdir=x"], "unknown flag '--workdir=x'"),
        (["--trials=2", "--keep=a/b"], "--keep takes the name of a record"),
        (["--trials=2", "--keep=a"], "--keep needs a method on a pair"),
        (["--trials=2", "--config.epoch=2"], "unknown configuration field 'epoch'"),
        (["--trials=2", "--space=rate", "--config.objective.terms.kd.schedule.name=linear"], "of the kind 'rate'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(small, tmp_path, arguments, message):
    found = run(small, tmp_path / "study", *arguments)
    assert found.status == 2
    assert message in found.err
    assert len(found.err.splitlines()) == 1
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--config.epochs=2", "holds a study of another configuration (epochs: 1 -> 2)"),
        ("--space=weights", "holds a study of another space"),
    ],
)
def test_a_folder_holds_one_study(done, small, more, message):
    before = helpers.contents(done.folder)
    found = run(small, done.folder, "--trials=4", *SHORT, more)
    assert (found.status, helpers.contents(done.folder)) == (2, before)
    assert message in found.err


def test_help(capsys):
    assert tune.main(["--help"]) == 0
    assert "--space" in capsys.readouterr().out


def of(c, kinds=None):
    return {p.name: p for p in space(c, kinds)}


def test_the_space_of_a_method():
    found = of(recipes.standard("resnet56", "resnet20", "cifar100", "gompertz_cnn"))
    assert list(found) == ["weight.gradient", "weight.kd", "weight.wasserstein", "inflection", "rate", "temperature"]
    assert found["weight.kd"][1:5] == (pytest.approx(0.09), 9.0, True, 0.9)
    labels = ("gradient", "kd", "wasserstein")
    assert found["inflection"].fields == tuple(f"objective.terms.{label}.schedule.inflection" for label in labels)
    assert found["temperature"].fields == ("objective.terms.kd.temperature",)
    assert [p.log for p in found.values()] == [True] * 3 + [False] * 3


def test_what_is_not_searched():
    assert list(of(recipes.standard("vgg13", "vgg8", "cifar100", "crd"))) == ["weight.crd"]  # a temperature of 0.07
    c = recipes.standard("vgg13", "vgg8", "cifar100", "gompertz_kd")
    c.objective.terms.kd.schedule = config.schedule("gompertz", displacement=20.0)
    c.objective.terms.at = objective.block("at", weight=0.0)
    assert list(of(c)) == ["weight.kd", "rate", "temperature"]
    c.objective.terms.kd.temperature = 1.0
    assert list(of(c)) == ["weight.kd", "rate"]
    with pytest.raises(UserError, match="nothing of the kind 'inflection'"):
        of(c, ["inflection"])
    with pytest.raises(UserError, match="the objective has nothing to search"):
        of(recipes.standard("vgg13", "vgg8", "cifar100", "alone"))


def test_the_common_schedule_of_a_convex_sum():
    c = recipes.standard("vgg13", "vgg8", "cifar100", "gompertz_kd")
    c.objective.mode = "convex"
    found = of(c)
    assert found["inflection"].fields == ("objective.schedule.inflection",)
    assert (found["inflection"].given, found["rate"].given) == (0.3, 10.0)


def test_the_space_of_an_adaptive_schedule():
    c = recipes.standard("vgg13", "vgg8", "cifar100", "gompertz_kd")
    c.objective.terms.kd.schedule = config.schedule("gompertz_adaptive")
    found = of(c)
    assert list(found) == ["weight.kd", "inflection", "min_inflection", "rate", "temperature"]
    schedule = "objective.terms.kd.schedule"
    bounds = {name: (p.low, p.high, p.given, p.fields) for name, p in found.items() if name not in ("weight.kd",)}
    assert bounds == {
        "inflection": (0.15, 0.4, 0.3, (f"{schedule}.inflection",)),
        "min_inflection": (0.02, 0.15, 0.1, (f"{schedule}.min_inflection",)),
        "rate": (4.0, 20.0, 10.0, (f"{schedule}.rate",)),
        "temperature": (1.0, 8.0, 4.0, ("objective.terms.kd.temperature",)),
    }
    assert list(of(c, ["min_inflection"])) == ["min_inflection"]
    with pytest.raises(UserError, match="nothing of the kind 'min_inflection'"):
        of(recipes.standard("vgg13", "vgg8", "cifar100", "gompertz_kd"), ["min_inflection"])


@pytest.mark.parametrize(
    ("inflection", "least", "parting"),
    [(0.3, 0.1, 0.15), (0.12, 0.1, 0.12), (0.3, 0.2, 0.2), (0.3, 0.01, 0.15), (0.6, 0.5, 0.5)],
)
def test_every_draw_for_an_adaptive_schedule_is_allowed(inflection, least, parting):
    """The least fitted inflection is never above the expected one, which the schedule would refuse."""
    c = recipes.standard("vgg13", "vgg8", "cifar100", "gompertz_kd")
    given = {"inflection": inflection, "min_inflection": least}
    c.objective.terms.kd.schedule = config.schedule("gompertz_adaptive", **given)
    found = of(c, ["inflection", "min_inflection"])
    assert (found["inflection"].low, found["min_inflection"].high) == (parting, parting)
    assert {name: p.given for name, p in found.items()} == given
    assert all(p.low <= p.given <= p.high for p in found.values())
    for first in found["inflection"][1:3]:
        for second in found["min_inflection"][1:3]:
            tuned.put(c, fields([*found.values()], {"inflection": first, "min_inflection": second}))
            resolved = resolve(c)["objective"]["terms"]["kd"]["schedule"]
            assert (resolved["inflection"], resolved["min_inflection"]) == (first, second)


def test_schedules_of_both_kinds_share_what_both_allow():
    c = recipes.standard("vgg13", "vgg8", "cifar100", "gompertz_cnn")
    c.objective.terms.kd.schedule = config.schedule("gompertz_adaptive", min_inflection=0.2)
    found = of(c, ["inflection", "min_inflection", "rate"])
    assert [(name, len(p.fields)) for name, p in found.items()] == [
        ("inflection", 3), ("min_inflection", 1), ("rate", 3)
    ]  # fmt: skip
    assert (found["inflection"].low, found["inflection"].high) == (0.2, 0.4)


def test_fields_of_different_values_are_not_searched_together():
    c = recipes.standard("vgg13", "vgg8", "cifar100", "mlkd+gompertz")
    found = of(c)
    assert "weight.ce_strong" not in found
    both, rest = "temperature.mlkd_strong+mlkd_weak", "temperature.mlkd_weak_rest"
    assert [name for name in found if name.startswith("temperature")] == [both, rest]
    assert (found[both].given, found[rest].given) == (4.0, 2.0)
    labels = ("mlkd_strong", "mlkd_weak")
    assert found[both].fields == tuple(f"objective.terms.{label}.temperature" for label in labels)
    assert len(found["inflection"].fields) == 3
    c.objective.terms.mlkd_weak.schedule.inflection = 0.2
    assert [p.given for name, p in of(c).items() if name.startswith("inflection.")] == [0.3, 0.2]
    before = resolve(c)
    tuned.put(c, fields(space(c), {p.name: p.given for p in space(c)}))
    assert identity.differences(resolve(c), before) == []


def test_bounds_include_what_the_configuration_has():
    c = recipes.standard("vgg13", "vgg8", "cifar100", "gompertz_kd")
    c.objective.terms.kd.temperature = 10.0
    c.objective.terms.kd.schedule.inflection = 0.01
    found = of(c)
    assert (found["temperature"].low, found["temperature"].high, found["temperature"].given) == (1.0, 10.0, 10.0)
    assert (found["inflection"].low, found["inflection"].high) == (0.01, 0.4)
