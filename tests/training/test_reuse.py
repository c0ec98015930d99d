"""Students that reuse their teacher's classifier, and students that teach: whole runs."""

import re
import shutil

import helpers
import jax
import numpy as np
import pytest

from gkd_jax import command
from gkd_jax.errors import UserError
from gkd_jax.training import experiment, finished, summary
from gkd_jax.training.resolve import resolve
from gkd_jax.training.stop import Interrupted

MORE = """
    c.objective.terms.simkd = objective.block("simkd", weight=0.0)
"""
SIMKD = ["--config.objective.terms.kd.weight=0", "--config.objective.terms.simkd.weight=1"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return helpers.write_config(tmp_path_factory.mktemp("reuse"), MORE)


@pytest.fixture(scope="module")
def resolved(file):
    """Returns a function that gives the configuration of a run; with `reuse`, of a student with a projector."""

    def make(*flags, reuse=False):
        chosen = [*flags, f"--config.student.reuse_classifier={reuse}"]
        return resolve(command.parse(["gkd_jax", f"--config={file}", *map(str, chosen)]).config)

    return make


@pytest.fixture(scope="module")
def done(resolved, tmp_path_factory):
    """A finished SimKD run, whose teacher is then taken away, with its configuration, its teacher and its summary."""
    workdir = tmp_path_factory.mktemp("done") / "run"
    given = resolved(
        *SIMKD, "--config.objective.ce.weight=0", "--config.ema=0.9", "--config.compare_alone=true", reuse=True
    )
    # Stopped in the middle of the student, and gone on with
    with pytest.raises(Interrupted):
        experiment.run(given, workdir, helpers.StopAt(17))
    assert not (workdir / "summary.json").exists()
    found = experiment.run(given, workdir)
    master = finished.load(workdir / "teacher")
    shutil.move(workdir / "teacher", workdir.with_name("teacher"))
    return given, workdir, master, found


def test_the_student_speaks_through_its_teachers_classifier(done):
    given, workdir, master, _ = done
    student = finished.load(workdir)
    kernel, bias = student.model.classifier(student.variables)
    expected_kernel, expected_bias = master.model.classifier(master.variables)
    np.testing.assert_array_equal(kernel, expected_kernel)
    np.testing.assert_array_equal(bias, expected_bias)
    dataset = experiment.load_data(given)
    probabilities = student.predict(dataset.test_images)
    assert probabilities.shape == (24, 4)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    images = np.asarray((dataset.test_images / 255.0 - dataset.mean) / dataset.std, np.float32)
    outputs, _ = jax.jit(lambda v, x: student.model.apply(v, x, train=False))(student.variables, images)
    assert outputs.final.shape == (24, 1, 1, 160)  # the teacher's
    np.testing.assert_allclose(
        jax.nn.softmax(outputs.final.mean((1, 2)) @ expected_kernel + expected_bias[None]), probabilities, atol=1e-5
    )


def test_what_the_summary_says(done):
    given, workdir, _, found = done
    assert found["student"]["test_accuracy"] == finished.read(workdir / "summary.json")["student"]["test_accuracy"]
    parts = found["student"]["params_of"]
    assert set(parts) == {"student", "projector"}
    assert found["student"]["params"] == sum(parts.values())
    # 1x1 from 96 to 80, 3x3, 1x1 to 160, with a scale and a bias each
    assert parts["projector"] == 96 * 80 + 9 * 80 * 80 + 80 * 160 + 2 * (80 + 80 + 160)
    assert "speck + projector" in summary.table(found)
    # The student alone has none
    assert found["student_alone"]["params"] == parts["student"]
    assert "params_of" not in found["student_alone"]
    assert set(finished.load(workdir / "alone").variables) == {"params", "batch_stats"}
    records = (workdir / "metrics.jsonl").read_text()
    assert '"simkd"' in records
    assert '"ce"' not in records


def test_it_is_evaluated_without_its_teacher(done):
    given, workdir, _, found = done
    for configuration in (given, None):
        told = experiment.evaluate(workdir, configuration)
        assert told.startswith("speck + projector on npz")
        assert f"{100 * found['student']['test_accuracy']:.2f} %" in told


def test_a_run_that_was_not_stopped_ends_alike(done, tmp_path):
    given, _, _, found = done
    straight = experiment.run(given, tmp_path / "run")
    for part in ("student", "student_raw", "student_alone"):
        assert straight[part]["params_sha256"] == found[part]["params_sha256"]


@pytest.mark.slow
def test_several_seeds(done, resolved, tmp_path):
    """Of a teacher from elsewhere; each student is that of its own run."""
    _, workdir, master, _ = done
    taught = f"--config.teacher.checkpoint={workdir.with_name('teacher')}"
    together = experiment.run(resolved(*SIMKD, taught, "--config.seeds=0,1", reuse=True), tmp_path / "together")
    assert together["student"]["params_of"]["projector"] > 0
    alone = experiment.run(resolved(*SIMKD, taught, "--config.seed=1", reuse=True), tmp_path / "alone")
    mine, expected = finished.load(tmp_path / "together", seed=1), finished.load(tmp_path / "alone")
    for a, b in zip(jax.tree.leaves(mine.variables), jax.tree.leaves(expected.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    accuracy = together["student"]["seeds"]["1"]["test_accuracy"]
    assert accuracy == alone["student"]["test_accuracy"]
    assert "over 2 seeds" in experiment.evaluate(tmp_path / "together")


def test_it_needs_a_teacher(resolved):
    flags = ["--config.teacher.model=none", *(f"--config.objective.terms.{name}.weight=0" for name in ("kd", "simkd"))]
    with pytest.raises(UserError, match=r"student.reuse_classifier is true, but teacher.model is 'none'"):
        resolved(*flags, reuse=True)


def test_the_term_without_a_projector(resolved, tmp_path):
    """Is told before anything is trained."""
    with pytest.raises(UserError, match=r"objective.terms.simkd: the student's final map has 96 channels"):
        experiment.run(resolved(*SIMKD), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shapes_show_the_projector(file):
    flags = ["--config", file, "--mode=shapes", *SIMKD]
    plain, reusing = (helpers.run(*flags, f"--config.student.reuse_classifier={reuse}") for reuse in (False, True))
    assert (reusing.status, reusing.err) == (0, "")
    assert "student   speck: " in plain.out
    (parameters,) = re.findall(r"student   speck \+ projector: ([\d,]+) parameters.*, embedding 160\n", reusing.out)
    # speck: 3x3x3 to 6 and BatchNorm, 96 to 4 classes; the projector: 96 to 80, 3x3 of 80, 80 to 160, and BatchNorm
    speck = 27 * 6 + 2 * 6 + 96 * 4 + 4
    assert int(parameters.replace(",", "")) == speck + 96 * 80 + 9 * 80 * 80 + 80 * 160 + 2 * (80 + 80 + 160)
    assert f"speck: {speck} parameters" in plain.out


# ------------------------------------------------------------------------------------------- who teaches whom


@pytest.mark.parametrize("reuse", [False, True], ids=["kd", "simkd"])
def test_a_student_with_a_projector_teaches(done, resolved, tmp_path, reuse):
    """A teacher's assistant (Mirzadeh et al., 2020, arXiv 1902.03393): its final map is the projected one."""
    _, workdir, _, _ = done
    flags = [*(SIMKD if reuse else ()), f"--config.teacher.checkpoint={workdir}", "--config.teacher.model=speck"]
    given = resolved(*flags, reuse=reuse)
    found = experiment.run(given, tmp_path / "run")
    assert found["teacher"]["params_of"]
    student, assistant = finished.load(tmp_path / "run"), finished.load(workdir)
    if reuse:
        assert student.record[finished.REUSED] == [1, 1, 160]
        kernels = (network.model.classifier(network.variables)[0] for network in (student, assistant))
        np.testing.assert_array_equal(*kernels)


def test_a_chain_of_students_of_several_seeds(done, resolved, tmp_path, capsys):
    """The teacher, an assistant it taught, of two seeds, and a student of the first one of these."""
    _, workdir, _, _ = done
    first = f"--config.teacher.checkpoint={workdir.with_name('teacher')}"
    experiment.run(resolved(first, "--config.seeds=4,2", "--config.epochs=1"), tmp_path / "assistant")
    second = [f"--config.teacher.checkpoint={tmp_path / 'assistant'}", "--config.teacher.model=speck"]
    capsys.readouterr()
    found = experiment.run(resolved(*second, "--config.epochs=1"), tmp_path / "student")
    assert "holds networks of the seeds 4, 2; the teacher is that of 4" in capsys.readouterr().err
    assistant = finished.load(tmp_path / "assistant", seed=4)
    dataset = experiment.load_data(resolved())
    right = assistant.predict(dataset.test_images).argmax(-1) == dataset.test_labels
    assert found["teacher"]["test_accuracy"] == pytest.approx(right.mean())
    assert found["student"]["steps"] == 4
    # Its teacher has a teacher of its own, which the student never sees
    assert finished.load(tmp_path / "student").config["teacher"]["checkpoint"] == str(tmp_path / "assistant")


def test_the_assistants_parameters_are_what_the_run_is_of(done, resolved, tmp_path):
    """With another assistant in the same place, the run is not gone on with."""
    _, workdir, _, _ = done
    copy = tmp_path / "assistant"
    shutil.copytree(workdir, copy)
    given = resolved(f"--config.teacher.checkpoint={copy}", "--config.teacher.model=speck", "--config.epochs=1")
    with pytest.raises(Interrupted):
        experiment.run(given, tmp_path / "run", helpers.StopAt(1))
    known = finished.read(tmp_path / "run" / finished.DATA)["teacher_sha256"]
    assert known == finished.read(workdir / "summary.json")["student"]["params_sha256"]
    shutil.rmtree(copy / "frozen")
    with pytest.raises(UserError, match="frozen: no checkpoint here"):
        experiment.run(given, tmp_path / "run")
