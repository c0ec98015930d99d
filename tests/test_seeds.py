"""A run of several seeds from the command line to its last file."""

import json
import re

import helpers
import jax
import numpy as np
import pytest

import gkd_jax
from gkd_jax.errors import UserError
from gkd_jax.training import finished
from gkd_jax.training.checkpoint import sha256

SEEDS = (0, 1, 2)
SINGLE = (1, 2)  # which of them are also trained alone
RUN = ["--config.ema=0.9", "--config.optimizer.learning_rate=0.01"]
TOGETHER = [*RUN, "--config.seeds=0,1,2", "--config.compare_alone=true", "--config.plots", "--config.tensorboard"]


@pytest.fixture(scope="module", autouse=True)
def _registrations():
    with helpers.registrations():
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return helpers.write_config(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def done(file):
    """A finished run of three seeds with all there is, and what it said."""
    workdir = file.parent / "run"
    found = helpers.run("--config", file, "--workdir", workdir, *TOGETHER)
    assert found.status == 0, found.err
    return workdir, found


@pytest.fixture(scope="module")
def singles(file, done):
    """Students each in a run of its own, by the same teacher."""
    found = {}
    for seed in SINGLE:
        workdir, taught = file.parent / f"single-{seed}", f"--config.teacher.checkpoint={done[0] / 'teacher'}"
        told = helpers.run("--config", file, "--workdir", workdir, *RUN, taught, f"--config.seed={seed}")
        assert told.status == 0, told.err
        found[seed] = workdir
    return found


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


@pytest.mark.slow
def test_each_student_is_that_of_its_own_run(done, singles):
    """Up to the last bit, in which the compiler may round sums another way."""
    for averaged in (True, False):
        together = finished.load_seeds(done[0], averaged=averaged)
        assert tuple(together) == SEEDS
        for seed, workdir in singles.items():
            alone = finished.load(workdir, averaged=averaged).variables
            for a, b in zip(jax.tree.leaves(together[seed].variables), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    first, second = (jax.tree.leaves(together[seed].variables["params"]) for seed in SINGLE)
    assert max(np.abs(a - b).max() for a, b in zip(first, second, strict=True)) > 1e-2


def test_the_record_of_each_epoch(done, singles):
    together, own = records(done[0]), {seed: records(workdir) for seed, workdir in singles.items()}
    assert [record["epoch"] for record in together] == [1, 2]
    for epoch, record in enumerate(together):
        assert set(record) == {
            *("epoch", "step", "learning_rate", "images_per_second", "seconds", "seconds_cache", "seconds_compile"),
            *("loss", "terms", "train_accuracy", "val_accuracy", "std", "seeds"),
        }
        assert list(record["seeds"]) == ["0", "1", "2"]
        for seed in SINGLE:
            mine, alone = record["seeds"][str(seed)], own[seed][epoch]
            assert set(mine) == {"loss", "terms", "train_accuracy", "val_accuracy"}
            for name in ("loss", "train_accuracy", "val_accuracy"):
                assert mine[name] == pytest.approx(alone[name], rel=1e-5), (seed, name)
            for name, line in alone["terms"].items():
                assert {**mine["terms"][name], "value": pytest.approx(line["value"], rel=1e-5)} == line
        for name in ("loss", "train_accuracy", "val_accuracy"):
            values = [record["seeds"][str(seed)][name] for seed in SEEDS]
            assert record[name] == pytest.approx(np.mean(values))
            assert record["std"][name] == pytest.approx(np.std(values, ddof=1))
        assert record["std"]["loss"] > 0
        assert record["std"]["terms"]["kd"]["weight"] == 0
        assert record["terms"]["kd"]["stage"] == record["seeds"]["1"]["terms"]["kd"]["stage"]


def test_the_summary(done, singles):
    found = summary(done[0])
    for part in ("student", "student_raw"):
        several = found[part]
        assert "params_sha256" not in several  # of which?
        for name in ("test_accuracy", "val_accuracy"):
            values = [several["seeds"][str(seed)][name] for seed in SEEDS]
            assert values[1:] == [summary(singles[seed])[part][name] for seed in SINGLE]
            assert several[name] == pytest.approx(np.mean(values))
            assert several["std"][name] == pytest.approx(np.std(values, ddof=1))
        assert several["params"] == summary(singles[1])[part]["params"]  # of one
        assert several["steps"] == 8
    assert list(found["student_alone"]["seeds"]) == ["0", "1", "2"]
    parts = (found[part]["seeds"] for part in ("student", "student_raw", "student_alone"))
    assert len({report["params_sha256"] for part in parts for report in part.values()}) == 9
    assert "seeds" not in found["teacher"]
    # The average is what is validated
    for part, folder in ("student", done[0]), ("student_alone", done[0] / "alone"):
        last = records(folder)[-1]["seeds"]
        assert {seed: record["val_accuracy"] for seed, record in last.items()} == {
            seed: report["val_accuracy"] for seed, report in found[part]["seeds"].items()
        }


def percent(part, name):
    return f"{100 * part[name]:.2f} ± {100 * part['std'][name]:.2f}"


def test_what_the_terminal_shows(done):
    workdir, told = done
    found = summary(workdir)
    for row, part in {
        "student alone (speck)": "student_alone",
        "student distilled (speck)": "student",
        "student, not averaged (speck)": "student_raw",
    }.items():
        line = next(line for line in told.out.splitlines() if line.startswith(row))
        assert f" {percent(found[part], 'test_accuracy')}  " in line
    assert "±" not in next(line for line in told.out.splitlines() if line.startswith("teacher"))
    lines = [line for line in told.err.splitlines() if line.startswith("student  epoch")]
    for line, record in zip(lines, records(workdir), strict=True):
        assert f"val {100 * record['val_accuracy']:6.2f}% ± {100 * record['std']['val_accuracy']:.2f}%" in line
    assert "devices" not in told.err  # all are used


def test_the_files_of_a_run(done):
    workdir, _ = done
    plots = {path.name for path in (workdir / "plots").iterdir()}
    assert plots == {"schedule.png", "losses.png", "accuracies.png"}
    (events,) = (workdir / "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in (b"val_accuracy", b"std/val_accuracy", b"seeds/2/terms/kd/value"):
        assert content.count(b"\n%c%s" % (len(tag), tag)) == 2, tag  # a field of this length, at each epoch


def test_eval_reads_the_accuracies_again(file, done):
    workdir, _ = done
    before = helpers.contents(workdir)
    found = helpers.run("--config", file, "--workdir", workdir, *TOGETHER, "--mode=eval")
    assert (found.status, found.err) == (0, "")
    student = summary(workdir)["student"]
    for name, images in (("val", 16), ("test", 24)):
        words = re.escape(percent(student, f"{name}_accuracy"))
        assert re.search(rf"{name}\w* accuracy +{words} % over 3 seeds  \({images} images\)", found.out)
    assert helpers.contents(workdir) == before


def test_a_student_by_its_seed(done):
    workdir, _ = done
    shas = summary(workdir)["student"]["seeds"]
    for given, seed in ({}, "0"), ({"seed": 0}, "0"), ({"seed": 1}, "1"):
        student = gkd_jax.load(workdir, **given)
        assert sha256(student.variables["params"]) == shas[seed]["params_sha256"]
        assert student.predict(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 4)
    with pytest.raises(UserError, match=f"^{workdir} has no student of seed 7; it has: 0, 1, 2$"):
        gkd_jax.load(workdir, seed=7)


def test_a_student_of_one_by_its_seed(singles):
    assert sha256(gkd_jax.load(singles[2], seed=2).variables["params"])
    with pytest.raises(UserError, match="has no student of seed 0; it has: 2$"):
        gkd_jax.load(singles[2], seed=0)


def test_a_finished_run_is_not_trained_again(file, done):
    workdir, first = done
    before = helpers.contents(workdir)
    found = helpers.run("--config", file, "--workdir", workdir, *TOGETHER, "--config.seed_strategy=vmap")
    assert (found.status, found.out, found.err) == (0, first.out, "")
    assert helpers.contents(workdir) == before


def test_the_first_of_several_students_is_a_teacher(file, done, tmp_path):
    """And it is told, in words and in the summary, that it is this one."""
    taught = [f"--config.teacher.checkpoint={done[0]}", "--config.teacher.model=speck", "--config.epochs=1"]
    found = helpers.run("--config", file, "--workdir", tmp_path / "run", *taught)
    assert found.status == 0, found.err
    told = f"gkd_jax: teacher.checkpoint: {done[0]} holds networks of the seeds 0, 1, 2; the teacher is that of 0\n"
    assert found.err.count(told) == found.err.count("teacher.checkpoint") == 1
    teacher, first = summary(tmp_path / "run")["teacher"], summary(done[0])["student"]["seeds"]["0"]
    assert 0 < first.pop("teacher_agreement") <= 1  # with the one it had itself
    assert {name: teacher[name] for name in first} == first
    assert "seeds" not in teacher
