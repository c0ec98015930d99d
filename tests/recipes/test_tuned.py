"""Settings that were tuned: kept with their study, applied where they are asked for, and no others."""

import json
import pathlib

import pytest

from gkd_jax import command, recipes
from gkd_jax.config import default, override_error
from gkd_jax.errors import UserError
from gkd_jax.recipes import tuned
from gkd_jax.training.resolve import resolve

ROOT = pathlib.Path(__file__).parents[2]
PAIR = ("resnet56", "resnet20", "cifar100")
VALUES = {"objective.terms.kd.weight": 1.5, "objective.terms.kd.schedule.inflection": 0.2}
ENTRY = {
    "values": VALUES,
    "study": "experiments/results/tuning/x.json",
    "val_accuracy": 0.7,
    "trials": 3,
    "changes": [],
}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A file with settings of gompertz_kd on one pair."""
    monkeypatch.setattr(tuned, "FILE", tmp_path / "tuned.json")
    tuned.FILE.write_text("{}")
    tuned.keep(tuned.key(*PAIR, "gompertz_kd"), ENTRY)


def _faults(root):
    """Returns what is wrong with the settings that are kept, whose studies lie under `root`."""
    found = []
    for name, entry in tuned.entries().items():
        teacher, student, dataset, method = name.split(",")
        if set(entry) != set(ENTRY):
            found.append(f"{name}: fields")
        elif not (root / entry["study"]).is_file():
            found.append(f"{name}: no study")
        elif json.loads((root / entry["study"]).read_text())["best"]["val_accuracy"] != entry["val_accuracy"]:
            found.append(f"{name}: another study")
        try:
            recipes.standard(teacher, student, dataset, f"{method}@tuned")
        except UserError as error:
            found.append(f"{name}: {error}")
    return found


def test_what_is_kept_is_of_a_method_and_has_its_study():
    assert _faults(ROOT) == []


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("method", "changed", "faults"),
    [
        ("gompertz_kd", {}, []),
        ("kdd", {}, ["unknown method 'kdd'"]),
        ("kd", {"values": {"objective.terms.kd2.weight": 1.0}}, ["unknown configuration field"]),
        ("kd", {"val_accuracy": 0.71}, ["another study"]),
        ("kd", {"study": "experiments/results/tuning/y.json"}, ["no study"]),
        ("kd", {"best": 1}, ["fields"]),
    ],
)
def test_what_is_kept_wrongly_is_found(tmp_path, method, changed, faults):
    """By the same rule, on made-up studies."""
    study = tmp_path / ENTRY["study"]
    study.parent.mkdir(parents=True)
    study.write_text(json.dumps({"best": {"val_accuracy": 0.7}}))
    name = tuned.key(*PAIR, method)
    tuned.keep(name, {**ENTRY, "values": {"objective.terms.kd.weight": 1.5}, **changed})
    found = _faults(tmp_path)
    assert len(found) == len(faults)
    for fault, expected in zip(found, faults, strict=True):
        assert fault.startswith(f"{name}: {expected}")


@pytest.mark.usefixtures("kept")
def test_tuned_settings_are_those_of_the_recipe_but_for_what_was_tuned():
    plain, c = (resolve(recipes.standard(*PAIR, method)) for method in ("gompertz_kd", "gompertz_kd@tuned"))
    assert c["recipe"] == "gompertz_kd@tuned"
    line = c["objective"]["terms"]["kd"]
    assert (line["weight"], line["schedule"]["inflection"], line["schedule"]["rate"]) == (1.5, 0.2, 10.0)
    line["weight"], line["schedule"]["inflection"], c["recipe"] = 0.9, 0.3, "gompertz_kd"
    assert c == plain


@pytest.mark.usefixtures("kept")
def test_from_the_command_line():
    given = command.parse(["gkd_jax", f"--config={ROOT / 'configs/cifar.py'}:{','.join(PAIR)},gompertz_kd@tuned"])
    assert given.config.objective.terms.kd.weight == 1.5


@pytest.mark.usefixtures("kept")
def test_changes_are_told_from_the_tuned_recipe():
    c = recipes.standard(*PAIR, "gompertz_kd@tuned")
    assert recipes.changes(resolve(c)) == []
    c.objective.terms.kd.weight = 0.9
    c.epochs = 20
    assert recipes.changes(resolve(c)) == ["epochs: 240 -> 20", "objective.terms.kd.weight: 1.5 -> 0.9"]
    c.recipe = "gompertz_kd"
    assert recipes.changes(resolve(c))[1:] == ["objective.terms.kd.schedule.inflection: 0.3 -> 0.2"]


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("pair", "method", "message"),
    [
        (PAIR, "kd@tuned", "nothing was tuned for 'resnet56,resnet20,cifar100,kd' .did you mean '.*,gompertz_kd'"),
        (PAIR, "gompertz_kd@best", "behind the @ of a method stands 'tuned', not 'best'"),
        (PAIR, "kdd@tuned", "unknown method 'kdd'"),
        (("vgg13", "vgg8", "cifar100"), "gompertz_kd@tuned", "nothing was tuned for 'vgg13,vgg8,cifar100,gompertz_kd'"),
        (PAIR, "kd+gompertz@tuned", "nothing was tuned for 'resnet56,resnet20,cifar100,kd.gompertz'"),
        (PAIR, "alone@tuned", "nothing was tuned for 'resnet56,resnet20,cifar100,alone'"),
    ],
)
def test_mistakes_are_named(pair, method, message):
    with pytest.raises(UserError, match=message):
        recipes.standard(*pair, method)


@pytest.mark.usefixtures("kept")
def test_settings_of_a_field_that_the_recipe_lost():
    name = tuned.key(*PAIR, "kd")
    tuned.keep(name, {**ENTRY, "values": {"objective.terms.kd2.weight": 1.0}})
    with pytest.raises(UserError, match="unknown configuration field 'objective.terms.kd2.weight'"):
        recipes.standard(*PAIR, "kd@tuned")
    assert override_error(default(), "epochs") is None  # and it says nothing of those it has


@pytest.mark.usefixtures("kept")
def test_a_later_study_takes_the_place_of_an_earlier_one():
    name = tuned.key(*PAIR, "gompertz_kd")
    tuned.keep(tuned.key(*PAIR, "dkd"), ENTRY)
    tuned.keep(name, {**ENTRY, "trials": 40})
    assert list(tuned.entries()) == sorted([tuned.key(*PAIR, "dkd"), name])
    assert tuned.entries()[name]["trials"] == 40


@pytest.mark.parametrize(
    ("method", "name"), [("kd", "kd"), ("kd+gompertz", "kd"), ("kd@tuned", "kd"), ("kd+gompertz@tuned", "kd")]
)
def test_the_recipe_in_a_method(method, name):
    assert recipes.bare(method) == name


def test_changes_of_settings_that_are_not_kept_any_more_are_no_error():
    resolved = resolve(recipes.standard("resnet32x4", "resnet8x4", "cifar100", "kd"))
    (said,) = recipes.changes({**resolved, "recipe": "kd@tuned"})
    assert said.startswith("nothing was tuned for")
