"""What was published, and how a run is set beside it."""

import pytest

from gkd_jax import recipes
from gkd_jax.recipes import published
from gkd_jax.training import resolve as training

RESOLVED = training.resolve(recipes.standard("resnet56", "resnet20", "cifar100", "kd"))
SUMMARY = {"teacher": {"test_accuracy": 0.7234}, "student_alone": None, "student": {"test_accuracy": 0.71}}


def _cells(text):
    """Returns the cells of each row under the table's rule."""
    rows = text.splitlines()[2:]
    return [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows]


def test_the_thirteen_pairs():
    assert len(published.pairs()) == 13
    for teacher, student in published.pairs():
        both = [published.find(name, teacher, student) for name in ("teacher", "alone", "kd")]
        assert all(row is not None and row.epoch == "last" and row.epochs == 240 for row in both)


def test_numbers_are_percentages_with_a_source():
    for row in published.table():
        assert 50 < row.accuracy < 85
        assert row.epoch in ("last", "best", "unknown")
        assert row.source.endswith("README")
    assert len({row[:3] for row in published.table()}) == len(published.table())


# Read in the READMEs again, independently of the table
@pytest.mark.parametrize(
    ("method", "teacher", "student", "accuracy", "epoch"),
    [
        ("kd", "resnet56", "resnet20", 70.66, "last"),
        ("crd", "resnet32x4", "resnet8x4", 75.51, "last"),
        ("dkd", "resnet50", "mobilenetv2_half", 70.35, "best"),
        ("mlkd_ls", "resnet32x4", "shufflenetv2", 78.76, "best"),
        ("dist", "vgg13", "vgg8", 73.89, "unknown"),
    ],
)
def test_some_numbers(method, teacher, student, accuracy, epoch):
    found = published.find(method, teacher, student)
    assert (found.accuracy, found.epoch) == (accuracy, epoch)
    assert found.epochs == (480 if method.startswith("mlkd") else 240)


def test_a_run_beside_them():
    teacher, student, *notes = _cells(published.compare(SUMMARY, RESOLVED))
    assert teacher == ["teacher (resnet56)", "RepDistiller README, the last epoch of 240", "72.34", "72.34", "+0.00"]
    assert student == ["student, kd", "RepDistiller README, the last epoch of 240", "71.00", "70.66", "+0.34"]
    assert notes == [["Ours is of the last epoch of 240, never chosen by test accuracy."]]


def test_several_seeds_and_a_schedule_of_our_own():
    summary = {**SUMMARY, "student": {"test_accuracy": 0.70, "std": {"test_accuracy": 0.0021}}}
    resolved = training.resolve(recipes.standard("resnet56", "resnet20", "cifar100", "dkd+gompertz"))
    text = published.compare(summary, resolved)
    assert _cells(text)[1] == [
        "student, dkd+gompertz",
        "mdistiller README, the best test epoch of 240",
        "70.00 ± 0.21",
        "71.97",
        "-1.97",
    ]
    assert "What is published of dkd has its authors' settings, not these." in text


def test_a_student_alone_is_the_same_beside_any_teacher():
    resolved = training.resolve(recipes.standard("none", "shufflenetv1", "cifar100", "alone"))
    (row, _) = _cells(published.compare({"teacher": None, "student": {"test_accuracy": 0.705}}, resolved))
    assert row[2:] == ["70.50", "70.50", "+0.00"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": {"source": "cifar10"}}, "Nothing published is known of cifar10"),
        ({"student": {"model": "resnet8"}}, "Nothing published is known of resnet56 to resnet8"),
        ({"recipe": None}, "student, no recipe"),
        ({"recipe": "gompertz_cnn"}, "nothing is known"),
    ],
)
def test_what_is_not_known_is_said(changed, message):
    assert message in published.compare(SUMMARY, {**RESOLVED, **changed})


def _changed(**fields):
    c = recipes.standard("resnet32x4", "resnet8x4", "cifar100", "kd")
    c.update_from_flattened_dict(fields)
    return published.compare(SUMMARY, training.resolve(c)).splitlines()[-1]


def test_what_a_flag_changed_of_the_recipe_is_said():
    assert _changed(**{"optimizer.learning_rate": 0.1, "objective.terms.kd.temperature": 2.0}) == (
        "This run is not the recipe 'kd', which it changes: objective.terms.kd.temperature: 4.0 -> 2.0; "
        "optimizer.learning_rate: 0.05 -> 0.1."
    )
    assert "epochs: 240 -> 10" in _changed(epochs=10)
    assert "data.flip: True -> False" in _changed(**{"data.flip": False})
    assert "data.num_train: None -> 500" in _changed(**{"data.num_train": 500})


@pytest.mark.parametrize("field", ["seed", "seeds", "data.val_fraction", "teacher.epochs", "teacher.checkpoint"])
def test_what_is_no_part_of_the_recipe_may_differ(field):
    value = {"seeds": (1, 2), "data.val_fraction": 0.1, "teacher.checkpoint": "there"}.get(field, 3)
    assert _changed(**{field: value}) == "Ours is of the last epoch of 240, never chosen by test accuracy."
