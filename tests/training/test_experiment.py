"""Whole runs: what their jobs learn, whose directories they take, and stopping in any of them."""

import json
import pathlib
import signal

import helpers
import jax
import pytest

from gkd_jax import command, config
from gkd_jax.errors import UserError
from gkd_jax.training import experiment, finished
from gkd_jax.training.checkpoint import Checkpoints
from gkd_jax.training.resolve import resolve
from gkd_jax.training.stop import Interrupted
from gkd_jax.training.workdir import alone_in, claim

NETWORKS = ("teacher", "student_alone", "student")


@pytest.fixture(scope="module")
def resolved(tmp_path_factory):
    """Returns a function that gives the configuration of a run of 4 steps for the teacher and 8 for each student."""
    file = helpers.write_config(tmp_path_factory.mktemp("small"))

    def make(*flags):
        return resolve(command.parse(["gkd_jax", f"--config={file}", *flags]).config)

    return make


def stopped(resolved, workdir, polls):
    """Returns the job and the step at which a run says that it was stopped."""
    with pytest.raises(Interrupted) as caught:
        experiment.run(resolved, workdir, helpers.StopAt(polls))
    assert caught.value.signal == signal.SIGTERM
    assert not (workdir / "summary.json").exists()
    return str(caught.value).split(":")[0], caught.value.step


# ------------------------------------------------------------------------------------------------ the student alone


@pytest.mark.parametrize("mode", ["sum", "convex"])
def test_the_student_alone_keeps_the_options_of_its_cross_entropy(resolved, mode):
    flags = ["--config.objective.ce.label_smoothing=0.2", f"--config.objective.mode={mode}"]
    if mode == "sum":  # in the mode "convex" these two are 1 and constant already
        flags += ["--config.objective.ce.weight=0.5", "--config.objective.ce.schedule.name=linear"]
    else:
        flags += [
            f"--config.objective.terms.{name}.schedule.name=constant" for name in ("kd", "wasserstein", "gradient")
        ]
    distilled = resolved(*flags)
    alone = experiment._alone(distilled)
    assert alone["objective"] == {
        "mode": "sum",
        "ce": {
            "term": "ce",
            "weight": 1.0,
            "every": 1,
            "view": "weak",
            "balance": False,
            "schedule": {"name": "constant", "value": 1.0},
            "label_smoothing": 0.2,
        },
        "terms": {},
    }
    assert (alone["teacher"]["model"], alone["teacher"]["checkpoint"]) == (config.NO_TEACHER, None)
    others = set(distilled) - {"objective", "teacher", "compare_alone"}
    assert {name: alone[name] for name in others} == {name: distilled[name] for name in others}
    # The teacher learns from the same targets
    assert experiment.of_teacher(distilled)["objective"] == alone["objective"]


def test_what_the_other_networks_keep_of_several_seeds(resolved):
    """The student alone has them all, with the same batches; the teacher is one, with a seed of its own."""
    distilled = resolved(
        *("--config.seeds=4,2", "--config.seeds_share_batches=true", "--config.batch_seed=9"),
        *("--config.teacher.seed=7", "--config.compare_alone=true"),
    )
    names = ("seed", "seeds", "seeds_share_batches", "batch_seed")
    assert [experiment._alone(distilled)[name] for name in names] == [4, [4, 2], True, 9]
    assert [experiment.of_teacher(distilled)[name] for name in names] == [7, [], False, None]
    # Its directory is found again, whatever the students' seeds
    assert experiment.of_teacher(distilled) == experiment.of_teacher(resolved("--config.teacher.seed=7"))


def test_a_cache_that_does_not_hold_enough_is_told_at_the_start(resolved, tmp_path, capsys):
    given = resolved(
        *("--config.teacher.cache=logits", "--config.teacher.cache_dir=off", "--config.epochs=1"),
        "--config.objective.terms.wasserstein.weight=1",
    )
    experiment.run(given, tmp_path)
    said = capsys.readouterr().err
    told = (
        "gkd_jax: teacher.cache = 'logits' is of no use here, the teacher runs at every step: the objective needs "
        "teacher.embedding, which it does not hold\n"
    )
    assert said.startswith(told)
    assert "teacher  epoch 1/1" in said
    assert said.count("teacher.cache") == 1


# ------------------------------------------------------------------------------------------------ whose directory


def test_a_teacher_whose_parameters_changed_under_the_run(resolved, tmp_path):
    taught_in, workdir = tmp_path / "teacher", tmp_path / "run"
    experiment.run(experiment.of_teacher(resolved()), taught_in)
    given = resolved(f"--config.teacher.checkpoint={taught_in}")
    assert stopped(given, workdir, 1) == ("student", 2)
    before = helpers.contents(workdir)

    def replace(variables):
        store = Checkpoints(taught_in / finished.CHECKPOINTS)
        store.save(4, variables)
        store.close()

    variables = finished.load(taught_in).variables
    replace({**variables, "params": jax.tree.map(lambda x: x * 1.5, variables["params"])})
    message = (
        f"^{workdir} belongs to a run whose teacher had other parameters than the one in {taught_in} has now; choose "
        "another --workdir$"
    )
    with pytest.raises(UserError, match=message):
        experiment.run(given, workdir)
    assert helpers.contents(workdir) == before

    replace(variables)
    assert experiment.run(given, workdir)["student"]["steps"] == 8


@pytest.mark.parametrize("part", ["teacher", "alone"])
def test_a_part_that_belongs_to_another_run(resolved, tmp_path, part):
    given, other = (
        resolved("--config.compare_alone=true", f"--config.student.model={name}") for name in ("speck", "resnet8")
    )
    other["teacher"]["model"] = "speck"
    of = {"teacher": experiment.of_teacher, "alone": experiment._alone}[part]
    claim(tmp_path / part, of(other), experiment.load_data(other))
    before = helpers.contents(tmp_path)
    message = rf"^{tmp_path / part} belongs to a run of another configuration \(student.model: '.*' -> '.*'\); choose"
    with pytest.raises(UserError, match=message):
        experiment.run(given, tmp_path)
    assert helpers.contents(tmp_path) == before
    assert not (tmp_path / finished.CONFIG).exists()


# ------------------------------------------------------------------------------------------------ stopping


def test_a_run_that_was_stopped_in_each_of_its_jobs_ends_as_one_that_was_not(resolved, tmp_path):
    given = resolved("--config.compare_alone=true", "--config.ema=0.9")
    workdir = tmp_path / "stopped"
    # A job asks after each of its steps but the last, and once more when it is over
    assert stopped(given, workdir, 1) == ("teacher", 2)
    assert stopped(given, workdir, 1) == ("teacher", 4)
    assert not (workdir / "alone").exists()
    assert stopped(given, workdir, 3) == ("student alone", 3)
    assert not (workdir / "metrics.jsonl").exists()
    assert stopped(given, workdir, 5) == ("student alone", 8)
    assert not (workdir / "metrics.jsonl").exists()
    ended = experiment.run(given, workdir)
    straight = experiment.run(given, tmp_path / "straight")
    found, expected = ({name: run[name]["params_sha256"] for name in NETWORKS} for run in (ended, straight))
    assert found == expected
    assert len(set(expected.values())) == 3
    for folder in (pathlib.Path(), pathlib.Path("teacher"), pathlib.Path("alone")):
        lines = (workdir / folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == ([1] if folder.name == "teacher" else [1, 2])


def test_one_process_at_a_time_works_in_a_directory(tmp_path):
    with (
        alone_in(tmp_path),
        pytest.raises(UserError, match="another process is at work on this run"),
        alone_in(tmp_path),
    ):
        raise AssertionError("two are in")
    with alone_in(tmp_path):
        pass
