"""Whole runs with a teacher that is remembered: on the command line, stopped and gone on with."""

import json

import helpers
import pytest

from gkd_jax import command
from gkd_jax.training import experiment, finished, recall
from gkd_jax.training.resolve import resolve
from gkd_jax.training.stop import Interrupted

pytestmark = pytest.mark.usefixtures("in_large_batches")

VIEWS = 64 * 9

# Of the objective of each level: everything that it serves
FLAGS = {
    "logits": [],
    "embedding": [
        "--config.objective.terms.wasserstein.weight=0.5",
        "--config.objective.terms.gradient.weight=0.5",
        "--config.objective.terms.gradient.wrt=classifier",
    ],
    "gradients": ["--config.objective.terms.gradient.weight=0.5"],
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The configuration file, and the directory of the teacher that its runs read."""
    folder = tmp_path_factory.mktemp("given")
    file = helpers.write_config(folder)
    taught = experiment.of_teacher(resolve(command.parse(["gkd_jax", f"--config={file}"]).config))
    experiment.run(taught, folder / "teacher")
    return file, folder / "teacher"


@pytest.fixture
def flags(given, tmp_path):
    """Returns a function that gives the flags of a run with a cache of some level, in a folder of this test."""

    def make(level, *more, folder="teachers"):
        file, teacher = given
        cache = [
            f"--config.teacher.cache={level}",
            f"--config.teacher.cache_dir={tmp_path / folder if folder else 'off'}",
        ]
        return [f"--config={file}", f"--config.teacher.checkpoint={teacher}", *cache, *FLAGS[level], *more]

    return make


@pytest.mark.parametrize("level", FLAGS)
def test_the_second_run_asks_the_teacher_nothing(flags, tmp_path, level):
    first = helpers.run(*flags(level), "--workdir", tmp_path / "first")
    assert first.status == 0, first.err
    # All views are one batch, and so are those of each of the two epochs
    assert f" 0 views of them from {tmp_path / 'teachers'}, where all of them take" in first.err
    assert (
        "the cache is filled up front: 576 forwards for the 576 views that are missing, against 1,152 expected for "
        "those that 2 epochs of 64 look up" in first.err
    )
    used = finished.read(tmp_path / "first" / "summary.json")["teacher_cache"]
    assert (used["level"], used["tier"], used["filled"]) == (level, "host", "up front")
    assert (used["from_disk"], used["computed"]) == (0, VIEWS)
    assert used["seconds"] > 0
    second = helpers.run(*flags(level, "--config.seed=5"), "--workdir", tmp_path / "second")
    assert second.status == 0, second.err
    assert f"576 views of them from {tmp_path / 'teachers'}" in second.err
    assert "all 576 views are held" in second.err
    used = finished.read(tmp_path / "second" / "summary.json")["teacher_cache"]
    assert (used["from_disk"], used["computed"], used["seconds"]) == (VIEWS, 0, 0.0)


def test_tokens_are_not_remembered(flags, tmp_path):
    tokens = [
        "--config.objective.terms.wasserstein.weight=0.5",
        "--config.objective.terms.wasserstein.kind=sinkhorn_tokens",
        "--config.epochs=1",
    ]
    found = helpers.run(*flags("embedding"), *tokens, "--workdir", tmp_path / "run")
    assert found.status == 0, found.err
    assert (
        "teacher.cache = 'embedding' is of no use here, the teacher runs at every step: the objective needs "
        "teacher.features, which it does not hold" in found.err
    )
    summary = finished.read(tmp_path / "run" / "summary.json")
    assert "teacher_cache" not in summary
    assert not (tmp_path / "teachers").exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["terms"]["wasserstein"]["value"] > 0


def test_a_finished_run_whose_summary_was_lost_opens_no_cache(flags, tmp_path, monkeypatch):
    once = flags("logits", "--config.epochs=1")
    assert helpers.run(*once, "--workdir", tmp_path / "run").status == 0
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(recall, "Cache", pytest.fail)
    again = helpers.run(*once, "--workdir", tmp_path / "run")
    assert (again.status, again.err) == (0, "")


# ------------------------------------------------------------------------------------------------ stopping

# How a run is filled, the batch that makes it so, whether there is a folder, and how often each start may poll before
# it is stopped, with the step at which it then is. It polls before it reads the folder and after each file there, then
# before each batch that it computes, and after each step.
STOPS = {
    "up front, folder": ("up front", 288, True, [(2, 0), (5, 3), (5, 6)]),
    "up front, off": ("up front", 288, False, [(1, 0), (4, 3), (4, 6)]),
    "by epoch, folder": ("by epoch", 16, True, [(2, 0), (7, 3), (5, 4), (9, 7)]),
    "by epoch, off": ("by epoch", 16, False, [(1, 0), (6, 3), (6, 4), (6, 7)]),
}


def run(arguments, workdir, stop=None):
    """Does a run and returns its summary."""
    return experiment.run(resolve(command.parse(["gkd_jax", *map(str, arguments)]).config), workdir, stop)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Returns a function that gives the student's hash of a run that was filled in some way and never stopped."""
    known = {}

    def find(how, arguments):
        if how not in known:
            summary = run(arguments, tmp_path_factory.mktemp("straight") / "run")
            assert summary["teacher_cache"]["filled"] == how
            known[how] = summary["student"]["params_sha256"]
        return known[how]

    return find


@pytest.mark.parametrize(("how", "batch", "kept", "stops"), STOPS.values(), ids=list(STOPS))
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    flags, straight, tmp_path, monkeypatch, how, batch, kept, stops
):
    """In its fill, in an epoch, in the fill of the next one; without a folder, what was computed is lost each time."""
    monkeypatch.setattr(recall, "views_at_once", lambda _: batch)
    expected = straight(how, flags("logits", folder="others"))
    arguments = flags("logits", folder="teachers" if kept else None)
    for polls, step in stops:
        with pytest.raises(Interrupted) as caught:
            run(arguments, tmp_path / "run", helpers.StopAt(polls))
        assert caught.value.step == step
    ended = run(arguments, tmp_path / "run")
    assert ended["student"]["params_sha256"] == expected
    assert ended["student"]["steps"] == 8
