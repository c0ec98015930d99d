"""`--mode=export` on finished runs of two seconds: what is written, what is refused, and what is left then."""

import dataclasses
import json
import re
import shutil

import helpers
import jax
import numpy as np
import pytest
from absl import flags

import gkd_jax
from gkd_jax import export
from gkd_jax.errors import UserError
from gkd_jax.export import files, options
from gkd_jax.interop import answer, weights
from gkd_jax.training import finished

RUN = ["--config.ema=0.9", "--config.seeds=3,4"]
SIMKD = """
    c.objective.terms.simkd = objective.block("simkd", weight=1.0)
    c.student.reuse_classifier = True
"""
WEIGHTS = ["--mode=export", "--format=safetensors"]


@pytest.fixture(scope="module", autouse=True)
def _registrations():
    with helpers.registrations():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two averaged students, and its configuration."""
    file = helpers.write_config(tmp_path_factory.mktemp("export"))
    told = helpers.run("--config", file, "--workdir", file.parent / "run", *RUN)
    assert told.status == 0, told.err
    return file, file.parent / "run"


@pytest.fixture
def again(trained, tmp_path):
    """A copy of that run, and a function that exports it."""
    file, workdir = trained
    shutil.copytree(workdir, tmp_path / "run")

    def exported(*flags, more=RUN):
        return helpers.run("--config", file, "--workdir", tmp_path / "run", *more, *flags)

    return tmp_path / "run", exported


def refused(found, pattern):
    assert found.status == 2
    assert found.out == ""
    assert re.search(pattern, found.err), found.err
    assert "Traceback" not in found.err


def test_weights_and_their_record(again):
    workdir, exported = again
    found = exported(*WEIGHTS)
    assert found.status == 0, found.err
    folder = workdir / "export"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "classes.json",
        "export.json",
        "weights.safetensors",
    ]
    record, network = export.read(workdir), finished.load(workdir)
    teacher, student, row = record["rows"]
    summary = json.loads((workdir / "summary.json").read_text())
    # The teacher's row first; the first seed's student, averaged, in float32 as it was trained
    assert (teacher["kind"], student["kind"]) == ("teacher (speck_wide)", "student (speck)")
    assert teacher["test_accuracy"] == summary["teacher"]["test_accuracy"]
    assert teacher["milliseconds"] > 0
    assert student["test_accuracy"] == summary["student"]["seeds"]["3"]["test_accuracy"] == row["test_accuracy"]
    assert student["bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(network.variables))
    assert (record["seed"], record["test_images"], row["file"]) == (3, 24, "weights.safetensors")
    assert row["bytes"] == (folder / row["file"]).stat().st_size
    assert row["difference"] <= 1e-6
    read = weights.load(folder / row["file"])
    jax.tree.map(np.testing.assert_array_equal, read.variables, network.variables)
    assert read.class_names == network.class_names == tuple(json.loads((folder / "classes.json").read_text()))
    lines = found.out.splitlines()
    assert lines[2].startswith("teacher (speck_wide)")
    assert f"{100 * row['test_accuracy']:.2f}" in lines[4]
    assert lines[-1] == f"everything is in {folder}"


def test_another_of_several_students(again):
    workdir, exported = again
    assert exported(*WEIGHTS, "--export_seed=4").status == 0
    found = weights.load(workdir / "export" / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found.variables, finished.load(workdir, seed=4).variables)
    before = helpers.contents(workdir)
    refused(exported(*WEIGHTS), r"export is the export of other weights \(seed 4, .*move it away, or remove it")
    refused(exported(*WEIGHTS, "--export_seed=5"), "has no student of seed 5; it has: 3, 4")
    assert helpers.contents(workdir) == before


def test_what_was_exported_before_stays(again):
    workdir, exported = again
    assert exported(*WEIGHTS).status == 0
    folder = workdir / "export"
    record = export.read(workdir)
    record["rows"].append({**record["rows"][-1], "kind": "onnx", "file": "model.onnx"})
    shutil.copy(folder / "weights.safetensors", folder / "model.onnx")
    (folder / "export.json").write_text(json.dumps(record))
    assert exported(*WEIGHTS).status == 0
    assert [row["kind"] for row in export.read(workdir)["rows"][2:]] == ["safetensors", "onnx"]
    assert (folder / "model.onnx").exists()
    (folder / "model.onnx").write_bytes(b"something else")
    found = exported(*WEIGHTS)
    assert re.search("model.onnx is not what was exported, and is left out", found.err)
    assert [row["kind"] for row in export.read(workdir)["rows"][2:]] == ["safetensors"]
    assert not (folder / "model.onnx").exists()


def test_a_folder_of_something_else(again):
    workdir, exported = again
    (workdir / "export").mkdir()
    assert exported(*WEIGHTS).status == 0
    shutil.rmtree(workdir / "export")
    (workdir / "export").mkdir()
    (workdir / "export" / "mine.txt").write_text("mine")
    refused(exported(*WEIGHTS), "is no export of gkd_jax: it has no export.json; move it away")
    assert (workdir / "export" / "mine.txt").read_text() == "mine"


def test_a_file_that_says_something_else(again, monkeypatch):
    """What is not as good as the run's own network never gets its final name; what was there before stays."""
    workdir, exported = again
    assert exported(*WEIGHTS).status == 0
    before = helpers.contents(workdir)
    write = weights.write

    def otherwise(served, variables, path, **more):
        write(served, jax.tree.map(lambda leaf: leaf * 1.01, variables), path, **more)

    monkeypatch.setattr(weights, "write", otherwise)
    pattern = r"weights.safetensors: its logits are up to .* from the run's own \(test image \d+\), and may be 1e-06 "
    refused(exported(*WEIGHTS), pattern + r"with a tolerance of 1e-06 \(--tolerance\); nothing was exported")
    assert helpers.contents(workdir) == before
    assert exported(*WEIGHTS, "--tolerance=0.9").status == 0


def test_a_write_that_fails(again, monkeypatch):
    workdir, exported = again
    before = helpers.contents(workdir)

    def full(*given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "write", full)
    refused(exported(*WEIGHTS), "cannot write .*export.weights.safetensors: No space left on device")
    assert helpers.contents(workdir).keys() - {".lock"} == before.keys() - {".lock"}
    monkeypatch.undo()
    # Killed between the two renames, and at work on the files
    assert exported(*WEIGHTS).status == 0
    (workdir / "export").rename(workdir / ".export.old")
    (workdir / ".export.tmp").mkdir()
    assert exported(*WEIGHTS, "--tolerance=0.5").status == 0
    assert not list(workdir.glob(".export.*"))


def test_a_run_that_cannot_be_exported(again, trained, tmp_path):
    workdir, exported = again
    refused(exported(*WEIGHTS, more=["--config.seeds=3,4"]), "belongs to a run of another configuration .ema: ")
    refused(exported(*WEIGHTS, "--workdir", tmp_path / "none"), "no such file; is .* the directory of a run")
    shutil.rmtree(workdir / "checkpoints")
    refused(exported(*WEIGHTS), "no checkpoint here; start the run again to train")
    (workdir / "data.json").unlink()
    refused(exported(*WEIGHTS), "data.json: no such file")
    assert not (workdir / "export").exists()


def test_a_run_that_was_stopped(trained, tmp_path):
    file, _ = trained
    from gkd_jax import command
    from gkd_jax.training import experiment
    from gkd_jax.training.resolve import resolve
    from gkd_jax.training.stop import Interrupted

    flags = ["--config.teacher.model=none", "--config.objective.terms.kd.weight=0"]
    given = resolve(command.parse(["gkd_jax", f"--config={file}", *flags]).config)
    with pytest.raises(Interrupted):
        experiment.run(given, tmp_path, helpers.StopAt(5))
    found = helpers.run("--config", file, "--workdir", tmp_path, *flags, *WEIGHTS)
    refused(found, "has not finished, it is at step . of 8; start its run again")
    experiment.run(given, tmp_path)
    found = helpers.run("--config", file, "--workdir", tmp_path, *flags, *WEIGHTS)
    assert found.status == 0, found.err
    assert [row["kind"] for row in export.read(tmp_path)["rows"]] == ["student (speck)", "safetensors"]


def test_no_test_images(again, monkeypatch):
    workdir, exported = again
    from gkd_jax.training import experiment

    load = experiment.load_data
    monkeypatch.setattr(experiment, "load_data", lambda resolved: load(resolved, test=False))
    refused(exported(*WEIGHTS), "has no test images, and an export is verified on them")
    assert not (workdir / "export").exists()


def test_a_student_with_its_teachers_classifier(tmp_path):
    """SimKD: the teacher may be gone, and its classifier travels with the student."""
    file = helpers.write_config(tmp_path, SIMKD)
    flags = ["--config.objective.terms.kd.weight=0"]
    assert helpers.run("--config", file, "--workdir", tmp_path / "run", *flags).status == 0
    shutil.move(tmp_path / "run" / "teacher", tmp_path / "teacher")
    found = helpers.run("--config", file, "--workdir", tmp_path / "run", *flags, *WEIGHTS)
    assert found.status == 0, found.err
    assert "teacher (speck_wide)" in found.out
    teacher, student, row = export.read(tmp_path / "run")["rows"]
    assert "milliseconds" not in teacher
    assert student["kind"] == "student (speck + projector)"
    read = weights.load(tmp_path / "run" / "export" / row["file"])
    jax.tree.map(np.testing.assert_array_equal, read.variables, finished.load(tmp_path / "run").variables)
    images = helpers.images()["x_test"]
    expected = gkd_jax.load(tmp_path / "run").predict(images).argmax(-1)
    np.testing.assert_array_equal(read.logits(images).argmax(-1), expected)


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (["--mode=export"], "--format is missing, for example --format onnx; known: stablehlo, safetensors, onnx, li"),
        (["--mode=export", "--format=onx"], r"--format: unknown format 'onx' \(did you mean 'onnx'\?\); known: "),
        ([*WEIGHTS, "--quantize=int8"], "--quantize=int8 is for litert, which --format=safetensors leaves out"),
        (["--mode=export", "--format=litert", "--quantize=int4"], "--quantize: unknown quantisation 'int4'"),
        ([*WEIGHTS, "--max_drop=0.1"], "--max_drop stands with --quantize=int8"),
        (["--mode=export", "--format=litert", "--quantize=int8", "--max_drop=2"], "--max_drop is 2.0; it is a share"),
        ([*WEIGHTS, "--tolerance=-1"], "--tolerance is -1.0; it must be 0 or more"),
        ([*WEIGHTS, "--tolerance=some"], "--tolerance"),
        (["--format=onnx"], "--format stands with --mode=export, not with --mode=train"),
        (["--mode=eval", "--export_seed=1"], "--export_seed stands with --mode=export, not with --mode=eval"),
        ([*WEIGHTS, "--compare"], "--compare stands with --mode=train or --mode=eval"),
    ],
)
def test_flags(flags, pattern, trained, tmp_path):
    refused(helpers.run("--config", trained[0], "--workdir", tmp_path / "run", *flags), re.escape(pattern[:30]))
    found = helpers.run("--config", trained[0], "--workdir", tmp_path / "run", *flags)
    refused(found, pattern)
    assert not (tmp_path / "run").exists()


def test_formats_in_their_order_once():
    values = flags.FlagValues()
    options.define(values)
    values(["gkd_jax", "--format=onnx, stablehlo,onnx"])
    assert options.given(values, "export") == options.Options(("stablehlo", "onnx"))


def judged(kind, tolerance, logits, max_drop=0.0, names=None, found=None):
    """Judges a file whose runtime gives `logits`; the run's own are `OWN`, and always right."""
    file = files.File(kind, "model.x", tolerance, lambda path: None, lambda path: None, names)
    return files.judge(file, answer.Answer(logits, 1.0, "nobody's", found), OWN, OWN.argmax(-1), max_drop)


OWN = np.array([[3.0, 0.0], [0.0, 20.0], [1.0, 0.0], [2.0, 1.0]], np.float32)


def test_logits_within_the_tolerance():
    found = judged("onnx", 1e-4, OWN + 0.0019)  # of a largest logit of 20
    assert found.difference == pytest.approx(0.0019, rel=1e-2)
    assert found.accuracy == 1
    with pytest.raises(UserError, match=r"model.x: its logits are up to 0.0025 .* and may be 0.002 with .* of 0.0001"):
        judged("onnx", 1e-4, OWN + 0.0025)
    with pytest.raises(UserError, match=r"up to nan from the run's own \(test image 0\)"):
        judged("onnx", 1e-4, np.full_like(OWN, np.nan))
    with pytest.raises(UserError, match=r"gives logits of shape \(4, 1\), and should give \(4, 2\)"):
        judged("onnx", 1e-4, OWN[:, :1])


@pytest.mark.parametrize(
    ("found", "said"), [(("cat", "dog"), r"\['cat', 'dog'\]"), (("dog",), r"\['dog'\]"), (None, r"\[\]")]
)
def test_other_class_names(found, said):
    assert judged("onnx", 1e-4, OWN, names=("dog", "cat"), found=("dog", "cat")).difference == 0
    pattern = rf"^model.x names the classes {said}, and should name them \['dog', 'cat'\]; nothing was exported$"
    with pytest.raises(UserError, match=pattern):
        judged("onnx", 1e-4, OWN, names=("dog", "cat"), found=found)


def test_a_file_with_other_class_names(again, monkeypatch):
    workdir, exported = again
    write = weights.write

    def otherwise(served, *given, **more):
        write(dataclasses.replace(served, class_names=served.class_names[::-1]), *given, **more)

    monkeypatch.setattr(weights, "write", otherwise)
    refused(exported(*WEIGHTS), r"weights.safetensors names the classes \['3', '2', '1', '0'\], and should name them")
    assert not (workdir / "export").exists()


def test_what_quantisation_may_lose():
    coarse = OWN.copy()
    coarse[2] = [0, 1]  # one of four
    assert judged(files.INT8, None, coarse, 0.25).accuracy == 0.75
    assert judged(files.INT8, None, OWN + 50, 0.0).difference == 50  # of logits nothing is asked
    pattern = r"test accuracy is 75.00 %, 25.00 points below the run's own, and --max_drop=0.2 allows 20; nothing was"
    with pytest.raises(UserError, match=pattern):
        judged(files.INT8, None, coarse, 0.2)
