"""Which cells share a teacher, which shard has which, and the grids that are here."""

import functools
import json
import pathlib

import pytest
from ml_collections import ConfigDict

from experiments.grid import build, cells, plan
from experiments.grid.cells import Cell
from gkd_jax import config, identity, models, recipes
from gkd_jax.errors import UserError
from gkd_jax.models import count
from gkd_jax.recipes import published
from gkd_jax.training import experiment
from gkd_jax.training.resolve import resolve

GRIDS = pathlib.Path(__file__).parents[2] / "experiments" / "grids"


def cell(name, method="kd", pair=("resnet20", "resnet8"), **more):
    c = recipes.standard(*pair, "digits", method)
    for field, value in more.items():
        place = c
        *path, last = field.split("__")
        for part in path:
            place = place[part]
        place[last] = value
    return Cell(name, c, {"method": method})


def test_cells_share_a_teacher_where_its_run_is_the_same(tmp_path):
    given = [
        cell("alone", "alone"),
        cell("kd", seeds=(0, 1)),
        cell("other_method", "gompertz_cnn", seeds=(2, 3), epochs=7, ema=0.9, optimizer__learning_rate=0.3),
        cell("other_student", pair=("resnet20", "resnet32"), teacher__cache="logits", compare_alone=True),
        cell("longer", teacher__epochs=241),
        cell("smoothed", objective__ce__label_smoothing=0.1),
        cell("held_out", data__val_fraction=0.1),
        cell("given", teacher__checkpoint="elsewhere"),
    ]
    found = {task.name: task for task in plan.plan(given, "grid.py:x", tmp_path)}
    needs = {each.name: found[f"runs/{each.name}"].needs for each in given}
    (shared,) = needs["kd"]
    assert needs == {
        **dict.fromkeys(("kd", "other_method", "other_student"), (shared,)),
        **{name: needs[name] for name in ("longer", "smoothed", "held_out")},
        **dict.fromkeys(("alone", "given"), ()),
    }
    teachers = {name for name in found if name.startswith("teachers/resnet20-digits-")}
    assert teachers == {need for each in needs.values() for need in each}
    assert len(teachers) == 4
    assert [*found][:3] == ["runs/alone", shared, "runs/kd"]
    for each in given:
        task = found[f"runs/{each.name}"]
        before, after = resolve(each.config), resolve(ConfigDict(task.config))
        checkpoint = str(tmp_path / task.needs[0]) if task.needs else before["teacher"]["checkpoint"]
        assert after["teacher"].pop("checkpoint") == checkpoint
        assert after["teacher"]["cache_dir"] == str(tmp_path / "teacher_cache")
        assert identity.identity(after) == {
            k: v for k, v in identity.identity(before).items() if k != "teacher.checkpoint"
        }
        for need in task.needs:  # the very run that this cell would have trained for itself
            its = resolve(ConfigDict(found[need].config))
            assert identity.differences(its, experiment.of_teacher(before)) == []


def test_a_teacher_of_a_convex_objective_without_a_pair_of_networks_in_common(tmp_path):
    """Whatever a student's objective is, its teacher's run resolves."""
    convex = cell("convex", objective__mode="convex", objective__ce__weight=1.0, student__reuse_classifier=True)
    found = {task.name: task for task in plan.plan([convex], "grid.py", tmp_path)}
    (need,) = found["runs/convex"].needs
    assert (
        identity.differences(resolve(ConfigDict(found[need].config)), experiment.of_teacher(resolve(convex.config)))
        == []
    )


def test_cross_entropy_on_a_second_view_is_under_no_schedule():
    c = recipes.standard("resnet20", "resnet8", "digits", "mlkd")
    assert set(recipes.distilling(c)) == {"mlkd_weak", "mlkd_weak_rest", "mlkd_strong"}
    before = c.objective.terms.ce_strong.schedule.to_dict()
    build.under(c, recipes.gompertz())
    assert c.objective.terms.ce_strong.schedule.to_dict() == before
    assert {line.schedule.name for line in recipes.distilling(c).values()} == {"gompertz"}
    assert build.schedule_of(c) == "gompertz"


def test_a_cache_folder_of_the_users_own_is_left(tmp_path):
    (task,) = plan.plan([cell("kd", teacher__cache_dir="off", teacher__checkpoint="t")], "grid.py", tmp_path)
    assert task.config["teacher"]["cache_dir"] == "off"


def test_one_folder_has_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan.place(tmp_path / "runs" / "x") == plan.place(pathlib.Path("runs/../runs/x")) == pathlib.Path("runs/x")
    assert plan.place(pathlib.Path("../x")) == tmp_path.parent / "x"


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_out_all_cells(count):
    given = [cell(f"c{i}", seeds=(i,)) for i in range(5)]
    dealt = [[c.name for c in plan.choose(given, shard=(i + 1, count))] for i in range(count)]
    assert sorted(name for shard in dealt for name in shard) == [c.name for c in given]
    sizes = [len(shard) for shard in dealt]
    assert max(sizes) - min(sizes) <= 1
    if count == 2:
        assert [c.name for c in plan.choose(given, only="[1-4]", shard=(2, 2))] == ["c2", "c4"]


def test_cells_that_are_one_run_are_run_once():
    given = [cell("a"), cell("b", seeds=(3,)), cell("same", tensorboard=False), cell("c", seeds=(4,)), cell("again")]
    assert plan.shared(given) == {"a": "a", "b": "b", "same": "a", "c": "c", "again": "a"}
    assert [c.name for c in plan.choose(given)] == ["a", "b", "c"]
    assert [c.name for c in plan.choose(given, only="again|b|same")] == ["a", "b"]
    dealt = [[c.name for c in plan.choose(given, shard=(i, 2))] for i in (1, 2)]
    assert dealt == [["a", "c"], ["b"]]
    wrong = [cell("a", batch_size=-1), cell("b", batch_size=-1)]
    assert plan.shared(wrong) == {"a": "a", "b": "b"}


# --------------------------------------------------------------------------------------------- the grids here


ARGUMENTS = {
    "smoke": ("", ":cut"),
    "schedules": (
        ":resnet56,resnet20,cifar100", ":resnet20,resnet8,cifar10,kd,cpu"
    ),
    "ablation": (":resnet20,resnet8,cifar100,cpu", ":resnet56,resnet20,cifar10"),
    "pairs": (":resnet50,mobilenetv2", ""),
    "weak_stem": ("",),
}  # fmt: skip


def test_every_grid_is_tested():
    assert {file.stem for file in GRIDS.glob("*.py")} == set(ARGUMENTS)


@functools.cache
def load(which):
    return cells.load(str(GRIDS / which))


@pytest.mark.parametrize("which", [f"{name}.py{argument}" for name, given in ARGUMENTS.items() for argument in given])
def test_a_grid_expands_and_all_its_cells_resolve(which, tmp_path):
    grid = load(which)
    found = plan.plan(grid.cells, which, tmp_path)  # resolves each
    labels = [dict(each.labels) for each in grid.cells]
    assert all(labels.count(each) == 1 for each in labels)
    assert {tuple(each) for each in map(sorted, labels)} == {tuple(sorted(labels[0]))}
    for each in labels:  # each has one cell to be compared with
        alike = [
            other
            for other in labels
            if all(other[k] == v for k, v in grid.baseline.items()) and all(other[k] == each[k] for k in grid.within)
        ]
        assert len(alike) == 1 or each["method"] == "alone"
    assert all(len(each.config.seeds) >= 2 for each in grid.cells)
    assert all(len(task.needs) == 1 for task in found if task.name.startswith("runs/") and "alone" not in task.name)


def test_the_grids_have_what_they_promise():
    def named(which):
        return {each.name: each for each in load(which).cells}

    pairs = named("pairs.py")
    assert len(pairs) == 2 * 13 * 4
    assert {each.labels["pair"] for each in pairs.values()} == {f"{a} to {b}" for a, b in published.pairs()}
    run_as = plan.shared([*pairs.values()])
    alone = {(c.labels["dataset"], c.config.student.model): n for n, c in reversed(pairs.items()) if "-alone" in n}
    assert {name for name, run in run_as.items() if name == run} == {
        *alone.values(), *(name for name in pairs if "-alone" not in name)
    }  # fmt: skip
    assert len(alone) == 18
    first = list(dict.fromkeys(each.labels["pair"] for each in pairs.values()))[:3]
    assert first == ["resnet56 to resnet20", "resnet50 to mobilenetv2_half", "resnet32x4 to resnet8x4"]
    dkd = pairs["cifar10-vgg13-vgg8-dkd"].config
    expected = recipes.standard("vgg13", "vgg8", "cifar10", "dkd")
    changed = {k for k, v in config.leaves(dkd) if dict(config.leaves(expected)).get(k) != v}
    assert changed == {"seeds", "tensorboard", "teacher.cache"}
    assert {name.split("-")[-1]: each.config.teacher.cache for name, each in pairs.items()} == {
        "alone": "none", "kd": "logits", "dkd": "logits", "gompertz_cnn": "none"
    }  # fmt: skip

    schedules = named("schedules.py:resnet56,resnet20,cifar100")
    assert len(schedules) == 11
    assert {each.config.teacher.cache for each in schedules.values()} == {"embedding"}
    curves = {}
    for each in schedules.values():
        lines = resolve(each.config)["objective"]
        assert lines["ce"]["schedule"] == {"name": "constant", "value": 1.0}
        assert {name: line["weight"] for name, line in lines["terms"].items()} == {
            "kd": 0.9, "wasserstein": 1.0, "gradient": 1.0
        }  # fmt: skip
        assert len({json.dumps(line["schedule"]) for line in lines["terms"].values()}) == 1
        curves[each.labels["schedule"]] = lines["terms"]["kd"]["schedule"]
    assert curves == {
        "constant": {"name": "constant", "value": 1.0},
        "linear": {"name": "linear", "init_value": 0.0, "end_value": 1.0, "begin": "0%", "end": "100%"},
        "cosine": {"name": "cosine", "init_value": 0.0, "end_value": 1.0, "begin": "0%", "end": "100%"},
        "logistic": {"name": "logistic", "peak_value": 1.0, "inflection": 0.3, "rate": 10.0},
        "step": {"name": "step", "init_value": 0.0, "end_value": 1.0, "begin": "30%"},
        "rise_then_decay": {
            "name": "rise_then_decay", "peak_value": 1.0, "end_value": 0.0, "peak": "30%", "end": "100%",
        },
        "gompertz t*=0.1": {"name": "gompertz", "peak_value": 1.0, "inflection": 0.1, "rate": 10.0},
        "gompertz t*=0.2": {"name": "gompertz", "peak_value": 1.0, "inflection": 0.2, "rate": 10.0},
        "gompertz t*=0.3": {"name": "gompertz", "peak_value": 1.0, "inflection": 0.3, "rate": 10.0},
        "gompertz t*=0.4": {"name": "gompertz", "peak_value": 1.0, "inflection": 0.4, "rate": 10.0},
        "gompertz_adaptive": {
            "name": "gompertz_adaptive", "peak_value": 1.0, "inflection": 0.3, "rate": 10.0, "min_inflection": 0.1,
        },
    }  # fmt: skip

    ablation = named(small := "ablation.py:resnet20,resnet8,cifar100,cpu")
    assert "5,000 training images, 10 % of the images for validation, 20 epochs, 4 seeds" in load(small).title
    terms = {name: set(each.config.objective.terms) for name, each in ablation.items()}
    both = {"kd", "wasserstein", "gradient"}
    for schedule in ("constant", "gompertz"):
        assert terms.pop(f"kd-{schedule}") == {"kd"}
        assert terms.pop(f"kd+w-{schedule}") == {"kd", "wasserstein"}
        assert terms.pop(f"kd+gm-{schedule}") == {"kd", "gradient"}
        assert terms.pop(f"kd+w+gm-{schedule}") == both
    assert terms.pop("kd+w+gm-gompertz_adaptive") == both
    assert terms == {"alone": set(), "kd+w+gm_input-gompertz": both}
    caches = {name: each.config.teacher.cache for name, each in ablation.items()}
    assert caches.pop("kd+w+gm_input-gompertz") == caches.pop("alone") == "none"
    assert set(caches.values()) == {"embedding"}
    assert {each.config.data.num_train for each in ablation.values()} == {5000}


def test_weak_stems_stand_beside_strong_ones():
    """ImageNet's stems on images of 32x32, with what they are compared with: the same networks with CIFAR's stems."""
    grid = load("weak_stem.py")
    weak, found = "_imagenet_stem", {}
    for each in grid.cells:
        c, labels = each.config, each.labels
        assert (c.data.source, c.recipe) == (labels["dataset"], labels["method"])
        assert (c.epochs, c.seeds) == (240, (0, 1, 2))
        place = found.setdefault((labels["dataset"], labels["stem"], labels["method"]), set())
        place.add((c.teacher.model, c.student.model))
    resnet, students = "resnet50", ("mobilenetv2", "resnet18")
    pairs = {
        "strong": {(resnet, student) for student in students},
        "weak": {(f"{resnet}{weak}", f"{student}{weak}") for student in students},
        "weak student": {(resnet, f"{student}{weak}") for student in students},
    }
    alone = {"strong": {("none", student) for student in students}}
    alone["weak"] = {("none", f"{student}{weak}") for student in students}  # of either teacher
    datasets = ("cifar100", "cifar10")
    assert found == {
        **{(d, stem, method): pairs[stem] for d in datasets for stem in pairs for method in ("kd", "gompertz_cnn")},
        **{(d, stem, "alone"): alone[stem] for d in datasets for stem in alone},
    }
    assert grid.within == ("pair", "dataset", "stem")  # a gain is over the same student with the same stem
    # The sides of the map behind the stem, as published: strides of 4 in all on ImageNet, 1 and 2 on CIFAR
    sides = {"resnet50": 32, "resnet18": 32, "mobilenetv2": 16}
    for name, side in sides.items():
        for stem, expected in (("", side), (weak, 8)):
            shapes = count.feature_shapes(models.create(f"{name}{stem}", num_classes=100), (32, 32, 3))
            assert shapes[1][:2] == (expected, expected), f"{name}{stem}"


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("schedules.py:resnet56,resnet20", "TEACHER,STUDENT,DATASET,METHOD,SIZE stands behind the colon (the first 3 "),
        ("schedules.py:resnet56,resnet20,cifar100,alone", "'alone' has nothing but cross-entropy"),
        ("ablation.py:resnet56,resnet20,cifar100,huge", "the size must be one of full, cpu, not 'huge'"),
        ("ablation.py", "it needs an argument"),
        ("smoke.py:tiny", "the size must be 'whole' or 'cut', not 'tiny'"),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_a_grid(which, said):
    with pytest.raises(UserError, match="^--grid: ") as error:
        cells.load(str(GRIDS / which))
    assert said in str(error.value)
