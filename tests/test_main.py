import json
import pathlib
import re
import struct
import subprocess
import sys
import zlib

import helpers
import numpy as np
import pytest

import gkd_jax
from gkd_jax import command as command_line
from gkd_jax import data, identity
from gkd_jax.export import files
from gkd_jax.export import options as export
from gkd_jax.recipes import published
from gkd_jax.training import finished
from gkd_jax.training.checkpoint import Checkpoints, sha256

DIGITS = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"
NETWORKS = ["--config.teacher.model=resnet20", "--config.student.model=resnet8"]
SMALL = [
    *("--config.student.model=speck", "--config.teacher.model=speck_wide"),
    *("--config.epochs=2", "--config.teacher.epochs=1", "--config.optimizer.learning_rate=0.1"),
    "--config.objective.terms.wasserstein.solver=unrolled",
]


@pytest.fixture(scope="module", autouse=True)
def _registrations():
    with helpers.registrations():
        yield


# ------------------------------------------------------------------------------------------------ print


def _printed(*arguments):
    found = helpers.run("--config", DIGITS, "--mode=print", *arguments)
    assert found.status == 0, found.err
    return json.loads(found.out)


def test_print_touches_neither_workdir_nor_data(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the data were read")

    monkeypatch.setattr(data, "load", never)
    monkeypatch.setattr(data, "describe", never)
    monkeypatch.chdir(tmp_path)
    printed = _printed("--config.data.source=npz:nowhere.npz")
    assert printed["data"]["source"] == "npz:nowhere.npz"
    assert list(printed["student"]) == ["model", "reuse_classifier"]
    assert list(tmp_path.iterdir()) == []


def test_overrides_reach_what_is_printed():
    printed = _printed(
        *NETWORKS,
        "--config.seed=7",
        "--noconfig.compare_alone",
        "--config.data.flip=true",
        "--config.data.num_classes=10",
        "--config.optimizer.drops=('50%', 300, '18ep')",
        "--config.teacher.optimizer.drops=50%",
        "--config.optimizer.warmup=5ep",
        "--config.teacher.optimizer.warmup=40",
        "--config.objective.terms.kd.weight=0.25",
        "--config.objective.terms.kd.every=3",
        "--config.objective.terms.kd.schedule.rate=5",
        "--config.objective.terms.kd.schedule.inflection=None",
        "--config.objective.terms.kd.schedule.displacement=20",
        "--config.objective.terms.gradient.schedule.name=linear",
        "--config.objective.terms.gradient.schedule.begin=10%",
        "--config.objective.terms.gradient.wrt=features",
    )
    assert (printed["seed"], printed["compare_alone"]) == (7, False)
    assert (printed["data"]["flip"], printed["data"]["num_classes"]) == (True, 10)
    assert printed["optimizer"]["drops"] == ["50%", 300, "18ep"]
    assert printed["optimizer"]["warmup"] == "5ep"
    assert printed["teacher"]["optimizer"]["drops"] == ["50%"]
    assert printed["teacher"]["optimizer"]["warmup"] == 40
    kd, gradient = printed["objective"]["terms"]["kd"], printed["objective"]["terms"]["gradient"]
    assert (kd["weight"], kd["every"]) == (0.25, 3)
    assert kd["schedule"] == {"name": "gompertz", "peak_value": 1.0, "rate": 5.0, "displacement": 20.0}
    # The schedule of the file was given to all three terms, and the flags change one of them
    assert printed["objective"]["terms"]["wasserstein"]["schedule"]["inflection"] == 0.3
    assert gradient["schedule"] == {
        "name": "linear",
        "init_value": 0.0,
        "end_value": 1.0,
        "begin": "10%",
        "end": "100%",
    }
    assert gradient["wrt"] == "features"


def test_what_is_printed_is_a_configuration_file_by_value():
    assert identity.config_hash(_printed()) == identity.config_hash(_printed("--config.tensorboard=false"))
    assert identity.config_hash(_printed()) != identity.config_hash(_printed("--config.seed=1"))


def test_an_option_that_was_written_as_a_whole_number(tmp_path):
    printed, hashes = {}, set()
    for name, flags in {"4": [], "4.0": [], "2": ["--config.objective.terms.kd.temperature=2.5"]}.items():
        file = helpers.write_config(
            tmp_path / name, f'c.objective.terms.kd = objective.block("kd", temperature={name})'
        )
        found = helpers.run("--config", file, "--mode=print", "--config.data.source=digits", *flags)
        assert found.status == 0, found.err
        printed[name] = found.out
        hashes.add(identity.config_hash(json.loads(found.out)))
    assert printed["4"] == printed["4.0"]
    assert len(hashes) == 2
    assert json.loads(printed["2"])["objective"]["terms"]["kd"]["temperature"] == 2.5


# ------------------------------------------------------------------------------------------------ shapes


def _weights(report):
    rows = report.split("weight of each line at")[1].splitlines()[1:]
    return {(words := row.split())[0]: [float(word) for word in words[1:6]] for row in rows}


def test_shapes_of_the_digits():
    found = helpers.run("--config", DIGITS, "--mode", "shapes", *NETWORKS, "--config.epochs=20")
    assert (found.status, found.err) == (0, "")
    assert "digits: 8x8x1, 10 classes, 1,294 training, 144 validation, 359 test images, 9 views an image" in found.out
    assert "20 epochs of 20 steps = 400 steps of 64 images; the last 14 images of an epoch are left out" in found.out
    assert re.search(r"teacher +resnet20: [\d,]+ parameters, [\d,.]+ million MACs an image, embedding 64", found.out)
    # 77,754: He et al.'s resnet8 for one channel and ten classes, with RepDistiller's projections
    assert re.search(r"student +resnet8: 77,754 parameters", found.out)
    assert found.out.count("8x8x16  8x8x16  4x4x32  2x2x64") == 2
    weights = _weights(found.out)
    assert weights["ce"] == [1.0] * 5
    grown = [np.exp(-np.exp(-10 * (t - 0.3))) for t in (0, 0.25, 0.5, 0.75, 1)]
    for term in ("kd", "wasserstein", "gradient"):
        np.testing.assert_allclose(weights[term], grown, rtol=1e-3)
    assert "rapid from 20.4% to 39.6%" in found.out


def test_shapes_of_an_npz_read_no_image(tmp_path):
    file = helpers.write_config(tmp_path)
    whole = (tmp_path / "images.npz").stat().st_size
    seen = []
    opened = np.lib.format.read_array

    def watched(member, *arguments, **more):
        array = opened(member, *arguments, **more)
        seen.append(array.shape)
        return array

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.lib.format, "read_array", watched)
        found = helpers.run("--config", file, "--mode=shapes")
    assert found.status == 0, found.err
    assert "8x8x3, 4 classes, 64 training, 16 validation, 24 test images" in found.out
    assert seen == [(80,), (24,)]
    assert whole > 10_000  # so that there was something not to read


def test_shapes_of_cifar_need_no_data(tmp_path):
    found = helpers.run(
        *(
            "--config",
            DIGITS,
            "--mode=shapes",
            *NETWORKS,
            "--config.data.source=cifar100",
            f"--config.data.data_dir={tmp_path}",
        ),
        *("--config.data.pad=4", "--config.data.flip=true", "--config.data.val_fraction=0"),
        *("--config.objective.terms.wasserstein.weight=0", "--config.objective.terms.kd.every=2"),
    )
    assert found.status == 0, found.err
    assert "cifar100: 32x32x3, 100 classes, 50,000 training, 0 validation, 10,000 test images, 162 views" in found.out
    assert re.search(r"teacher +resnet20: 278,324 parameters", found.out)  # published
    assert set(_weights(found.out)) == {"ce", "kd", "gradient"}
    assert "every 2 steps, x 2" in found.out


# ------------------------------------------------------------------------------------------------ the command itself


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("configs/digits.py", "digits"),
        ("configs/cifar.py:resnet56,resnet20,cifar10", "cifar-resnet56-resnet20-cifar10"),
        ("/a/b.c/my.exp-1.py:x y/../z", "my.exp-1-x-y-..-z"),
        ("some.pyproject/digits.py:a:b", "digits-a-b"),
    ],
)
def test_a_run_is_named_after_its_configuration(argument, name):
    assert command_line.run_name(argument) == name


def test_the_default_workdir_and_the_argument(tmp_path):
    file = tmp_path / "grid.py"
    file.write_text(
        "from gkd_jax import config\n\n\ndef get_config(width, *rest):\n    c = config.default()\n"
        "    c.student.model = width\n    return c\n"
    )
    command = command_line.parse(["gkd_jax", f"--config={file}:resnet8", "--config.seed=3"])
    assert (command.workdir, command.mode) == (pathlib.Path("runs/grid-resnet8"), "train")
    assert (command.config.student.model, command.config.seed) == ("resnet8", 3)
    assert command.again == f"python -m gkd_jax.main --config={file}:resnet8 --config.seed=3"
    command = command_line.parse(["gkd_jax", "--config", f"{file}:a", "--workdir", "x y", "--mode=eval"])
    assert (command.workdir, command.mode) == (pathlib.Path("x y"), "eval")
    assert command.again.endswith("--workdir 'x y' --mode=eval")
    # The place of --config among its overrides says nothing
    command = command_line.parse(["gkd_jax", "--config.seed=4", "--config", f"{file}:a"])
    assert command.config.seed == 4


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help(flag):
    found = helpers.run(flag)
    assert found.status == 0
    for word in ("--config FILE.py", "--workdir", "train", "eval", "shapes", "print", "--config.FIELD=VALUE"):
        assert word in found.out


def test_help_says_the_tolerance_of_each_format():
    """Weights that are only read again differ by less than what another runtime computes."""
    (said,) = (line for line in helpers.run("--help").out.splitlines() if line.strip().startswith("--tolerance"))
    (general, of_weights), (own,) = re.findall(r"1e-\d", said), re.findall(r"safetensors (1e-\d)", said)
    assert of_weights == own
    expected = {name: float(own if name == "safetensors" else general) for name in export.FORMATS}
    assert expected == files.TOLERANCE


def test_importing_the_package_does_not_wake_jax():
    code = "import sys, gkd_jax; assert gkd_jax.__version__; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of the full objective, with an average and the student alone."""
    workdir = tmp_path_factory.mktemp("main") / "digits"
    found = helpers.run("--config", DIGITS, "--workdir", workdir, *SMALL, "--config.ema=0.9")
    assert found.status == 0, found.err
    return workdir, found


@pytest.fixture(scope="module")
def summary(done):
    return json.loads((done[0] / "summary.json").read_text())


def _records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_summary(done, summary):
    workdir, _ = done
    assert set(summary) == {
        *("teacher", "student", "student_alone", "student_raw"),
        *("seconds", "images_per_second", "versions", "device", "config_hash"),
    }
    for part, model, steps in (
        ("teacher", "speck_wide", 20),
        ("student", "speck", 40),
        ("student_alone", "speck", 40),
        ("student_raw", "speck", 40),
    ):
        found = summary[part]
        assert set(found) == {
            *("model", "test_accuracy", "val_accuracy", "test_top5", "test_ece", "test_nll", "params", "params_sha256"),
            *("steps", "seconds", "workdir", *(["teacher_agreement"] if part in ("student", "student_raw") else [])),
        }
        assert (found["model"], found["steps"]) == (model, steps)
        assert 0.2 < found["test_accuracy"] <= 1  # it has learnt something
        for name in ("test_accuracy", "test_top5", *({"teacher_agreement"} & set(found))):
            assert (found[name] * 359 + 0.5) % 1 == pytest.approx(0.5, abs=1e-6)
        assert 0 < found["test_ece"] < 1
        assert 0 < found["test_nll"] < 2 * np.log(10)
        assert (found["val_accuracy"] * 144) % 1 == pytest.approx(0, abs=1e-6)
        assert re.fullmatch("[0-9a-f]{64}", found["params_sha256"])
    parts = {summary[part]["params_sha256"] for part in ("teacher", "student", "student_alone", "student_raw")}
    assert len(parts) == 4
    assert summary["config_hash"] == identity.config_hash(json.loads((workdir / "config.json").read_text()))
    assert {"jax", "flax", "optax", "python", "gkd_jax"} <= set(summary["versions"])
    assert summary["device"]["platform"] == "cpu"
    folders = (workdir, workdir / "teacher", workdir / "alone")
    measured = sum(record["seconds"] for folder in folders for record in _records(folder))
    assert summary["seconds"] == pytest.approx(measured)
    assert summary["images_per_second"] > 0


def test_the_record_of_each_epoch(done):
    workdir, _ = done
    records = _records(workdir)
    assert [record["epoch"] for record in records] == [1, 2]
    assert [record["step"] for record in records] == [20, 40]
    for record in records:
        assert {
            *("step", "epoch", "learning_rate", "loss", "terms"),
            *("train_accuracy", "val_accuracy", "images_per_second", "seconds", "seconds_cache", "seconds_compile"),
        } == set(record)
        assert set(record["terms"]) == {"ce", "kd", "wasserstein", "gradient"}
        total = sum(term["value"] * term["weight"] for term in record["terms"].values())
        assert np.isfinite(total)
        assert record["images_per_second"] > 0
    # The weight is that of the epoch's last step, counted from 0
    for record, step, stage in zip(records, (19, 39), ("saturation", "saturation"), strict=True):
        grown = np.exp(-np.exp(-10 * (step / 40 - 0.3)))
        for name in ("kd", "wasserstein", "gradient"):
            assert record["terms"][name]["weight"] == pytest.approx(grown, rel=1e-4)
            assert record["terms"][name]["stage"] == stage
        assert record["terms"]["ce"]["weight"] == 1
        assert "stage" not in record["terms"]["ce"]
    assert records[0]["learning_rate"] == pytest.approx(0.1)
    assert records[1]["learning_rate"] == pytest.approx(0.1 * 0.1**3)  # after the drops at 62.5, 75 and 87.5 %
    assert set(_records(workdir / "teacher")[0]["terms"]) == {"ce"}
    assert [record["epoch"] for record in _records(workdir / "alone")] == [1, 2]


def test_the_last_record_and_the_summary_agree(done, summary):
    # With an average it is the average that is validated
    assert _records(done[0])[-1]["val_accuracy"] == pytest.approx(summary["student"]["val_accuracy"])
    assert _records(done[0] / "teacher")[-1]["val_accuracy"] == pytest.approx(summary["teacher"]["val_accuracy"])


def _png_size(path):
    """Returns width and height of a PNG after checking every chunk."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds = 8, []
    while at < len(content):
        (length,), kind = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        body = content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        kinds.append(kind)
        at += 12 + length
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    return struct.unpack(">II", content[16:24])


def test_the_files_of_a_run(done):
    workdir, found = done
    assert json.loads((workdir / "config.json").read_text())["ema"] == 0.9
    plots = {path.name: _png_size(path) for path in (workdir / "plots").iterdir()}
    assert set(plots) == {"schedule.png", "losses.png", "accuracies.png"}
    assert all(width > 300 and height > 200 for width, height in plots.values())
    (events,) = (workdir / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents")
    assert events.stat().st_size > 500
    checkpoints = Checkpoints(workdir / "checkpoints")
    best = max(_records(workdir), key=lambda record: (record["val_accuracy"], record["step"]))["step"]
    assert checkpoints.latest == 40
    assert checkpoints.best == best
    checkpoints.close()
    steps = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    assert steps == {best, 40}


def test_what_the_terminal_shows(done, summary):
    workdir, found = done
    for row, part in {
        "teacher (speck_wide)": "teacher",
        "student alone (speck)": "student_alone",
        "student distilled (speck)": "student",
        "student, not averaged (speck)": "student_raw",
    }.items():
        cells = found.out.split(row)[1].split()
        assert cells[0] == f"{100 * summary[part]['test_accuracy']:.2f}"
    assert found.out.rstrip().endswith(f"s of training; everything is in {workdir}")
    assert "student  epoch 2/2" in found.err
    assert "ETA" in found.err
    assert "warning" not in found.err.lower()


def test_the_student_is_loaded_and_predicts(done, summary):
    workdir, _ = done
    student = gkd_jax.load(workdir)
    assert isinstance(student, gkd_jax.Finished)
    assert student.class_names == tuple("0123456789")
    assert student.config["student"]["model"] == "speck"
    dataset = data.load("digits", val_fraction=0.1, pad=1)
    probabilities = student.predict(dataset.test_images)
    assert (probabilities.shape, probabilities.dtype) == ((359, 10), np.float32)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-5)
    accuracy = np.mean(probabilities.argmax(1) == dataset.test_labels)
    assert accuracy == pytest.approx(summary["student"]["test_accuracy"])
    assert sha256(student.variables["params"]) == summary["student"]["params_sha256"]
    # One channel may be left out, one image is a batch, and no image is none
    np.testing.assert_array_equal(student.predict(dataset.test_images[..., 0]), probabilities)
    np.testing.assert_allclose(student.predict(dataset.test_images[5:6]), probabilities[5:6], rtol=1e-5)
    assert student.predict(dataset.test_images[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 8, 8, 1), np.float32),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((2, 9, 8, 1), np.uint8),
        np.zeros((8, 8), np.uint8),
    ],
)
def test_images_that_the_student_does_not_take(done, wrong):
    message = re.escape(f"images must be uint8 [n, 8, 8, 1], not {wrong.dtype} {list(wrong.shape)}")
    with pytest.raises(ValueError, match=message):
        gkd_jax.load(done[0]).predict(wrong)


def test_eval_reads_the_accuracy_again(done, summary):
    workdir, _ = done
    before = helpers.contents(workdir)
    found = helpers.run("--config", DIGITS, "--workdir", workdir, *SMALL, "--config.ema=0.9", "--mode=eval")
    assert (found.status, found.err) == (0, "")
    assert "speck on digits, 40 steps" in found.out
    assert f"test accuracy        {100 * summary['student']['test_accuracy']:6.2f} %  (359 images)" in found.out
    assert f"validation accuracy  {100 * summary['student']['val_accuracy']:6.2f} %  (144 images)" in found.out
    assert helpers.contents(workdir) == before


def test_a_finished_run_is_not_trained_again(done):
    workdir, first = done
    before = helpers.contents(workdir)
    # Logging is no part of what a run is
    found = helpers.run(
        *("--config", DIGITS, "--workdir", workdir, *SMALL, "--config.ema=0.9"),
        *("--config.tensorboard=false", "--config.plots=false", "--config.compilation_cache=off"),
    )
    assert (found.status, found.out, found.err) == (0, first.out, "")
    assert helpers.contents(workdir) == before


def test_a_summary_that_was_lost_is_written_again(done, summary):
    workdir, _ = done
    (workdir / "summary.json").unlink()
    found = helpers.run("--config", DIGITS, "--workdir", workdir, *SMALL, "--config.ema=0.9")
    assert (found.status, found.err) == (0, "")
    assert json.loads((workdir / "summary.json").read_text()) == summary


CIFAR = DIGITS.with_name("cifar.py")


def test_compare_sets_the_result_beside_what_was_published(tmp_path, monkeypatch):
    """On a pair and a data set of which made-up numbers were published: after training, and in evaluation."""
    helpers.write_config(tmp_path)
    source = f"npz:{tmp_path / 'images.npz'}"
    monkeypatch.setattr(published, "DATASET", source)
    rows = [("teacher", 50.0, "last", 240), ("kd", 40.0, "best", 30)]
    made_up = [published.Published(n, "speck_wide", "speck", *number, "A table") for n, *number in rows]
    monkeypatch.setattr(published, "table", lambda: tuple(made_up))
    arguments = [
        *("--config", f"{CIFAR}:speck_wide,speck,{source},kd", "--workdir", tmp_path / "run", "--config.epochs=1"),
        *("--config.teacher.epochs=1", "--config.data.pad=1", "--config.plots=false", "--config.tensorboard=false"),
        *("--config.batch_size=16", "--config.teacher.batch_size=16"),
    ]
    trained = helpers.run(*arguments, "--compare")
    assert trained.status == 0, trained.err
    evaluated = helpers.run(*arguments, "--mode=eval", "--compare")
    assert evaluated.status == 0, evaluated.err
    plain = helpers.run(*arguments, "--mode=eval")
    assert "A table" not in plain.out
    assert evaluated.out.startswith(plain.out.rstrip())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    ours = {part: 100 * summary[part]["test_accuracy"] for part in ("teacher", "student")}
    for found in (trained, evaluated):
        *_, table = found.out.partition("CIFAR-100 test accuracy")
        for start, where, part, theirs in (
            ("teacher (speck_wide)", "A table, the last epoch of 240", "teacher", 50),
            ("student, kd", "A table, the best test epoch of 30", "student", 40),
        ):
            (row,) = (line for line in table.splitlines() if line.startswith(start))
            cells = [cell.strip() for cell in re.split(r" {2,}", row)]
            assert cells == [start, where, f"{ours[part]:.2f}", f"{theirs:.2f}", f"{ours[part] - theirs:+.2f}"]
        assert "This run is not the recipe 'kd', which it changes: " in table
        assert "epochs: 240 -> 1" in table


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_another_configuration_in_the_same_workdir(done, mode):
    workdir, _ = done
    before = helpers.contents(workdir)
    found = helpers.run("--config", DIGITS, "--workdir", workdir, *SMALL, "--config.seed=1", f"--mode={mode}")
    assert (found.status, found.out) == (2, "")
    assert f"{workdir} belongs to a run of another configuration (ema: 0.9 -> 0.0; seed: 0 -> 1)" in found.err
    assert "choose another --workdir" in found.err
    assert helpers.contents(workdir) == before


def test_a_teacher_from_elsewhere(done, summary, tmp_path):
    """Convex, without a validation split, by the teacher of the other run."""
    teacher = done[0] / "teacher"
    before = helpers.contents(teacher)
    workdir = tmp_path / "run"
    constant = [f"--config.objective.terms.{name}.schedule.name=constant" for name in ("kd", "wasserstein", "gradient")]
    found = helpers.run(
        *("--config", DIGITS, "--workdir", workdir, *SMALL, *constant, "--config.objective.mode=convex"),
        *("--config.objective.terms.gradient.weight=0", "--config.objective.terms.wasserstein.weight=0"),
        *("--config.data.val_fraction=0", "--noconfig.compare_alone", "--noconfig.plots", "--noconfig.tensorboard"),
        f"--config.teacher.checkpoint={teacher}",
    )
    assert found.status == 0, found.err
    assert helpers.contents(teacher) == before
    assert not (workdir / "teacher").exists()
    assert not (workdir / "alone").exists()
    assert not (workdir / "plots").exists()
    assert not (workdir / "tensorboard").exists()
    ended = json.loads((workdir / "summary.json").read_text())
    assert ended["teacher"]["params_sha256"] == summary["teacher"]["params_sha256"]
    assert ended["teacher"]["test_accuracy"] == summary["teacher"]["test_accuracy"]
    assert ended["student"]["val_accuracy"] is None
    assert ended["student_alone"] is None
    assert "student_raw" not in ended
    last = _records(workdir)[-1]
    assert last["val_accuracy"] is None
    assert set(last["terms"]) == {"ce", "kd"}
    grown = 0.9 * np.exp(-np.exp(-10 * (last["step"] - 1) / last["step"] + 3))
    assert last["terms"]["kd"]["weight"] == pytest.approx(grown, rel=1e-4)
    assert last["terms"]["ce"]["weight"] == pytest.approx(1 - grown, rel=1e-4)
    # Both values and the loss are means over the epoch, the second half of the run. That the curve and the values
    # change together in it adds the product of their deviations at the most: 0.035, and 0.5 between batches.
    ce, kd = (last["terms"][name]["value"] for name in ("ce", "kd"))
    curve = 0.9 * np.exp(-np.exp(-10 * np.arange(last["step"] // 2, last["step"]) / last["step"] + 3))
    assert np.std(curve) < 0.035
    assert last["loss"] == pytest.approx(ce + np.mean(curve) * (kd - ce), abs=0.0175)
    # Nothing of the teacher is in the student's checkpoint
    weights = {path for path in (workdir / "checkpoints").rglob("*") if "teacher" in path.name}
    assert weights == set()


def test_a_teacher_that_saw_the_validation_images_is_told(done, tmp_path):
    workdir = tmp_path / "run"
    found = helpers.run(
        *("--config", DIGITS, "--workdir", workdir, *SMALL, "--config.epochs=1", "--config.data.split_seed=1"),
        *("--config.objective.terms.gradient.weight=0", "--config.objective.terms.wasserstein.weight=0"),
        *("--noconfig.compare_alone", "--noconfig.plots", "--noconfig.tensorboard"),
        f"--config.teacher.checkpoint={done[0] / 'teacher'}",
    )
    assert found.status == 0, found.err
    warned = re.search(r"warning: the teacher was trained on (\d+) of the 144 validation images", found.err)
    assert warned
    assert 100 < int(warned[1]) < 144
    assert int(warned[1]) > 0
    assert (
        warned[0].removeprefix("warning: ") in json.loads((workdir / "summary.json").read_text())["teacher"]["warning"]
    )


OWN = """
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gkd_jax import config, data, losses, models, objective
from gkd_jax.outputs import Outputs


class Flat(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, images, *, train, probes):
        x = images.reshape(images.shape[0], -1)
        return Outputs(nn.Dense(self.classes, name="classifier")(x), embedding=x)


@models.register("own_network")
def own_network(num_classes, dtype, conv):
    return Flat(num_classes)


@data.register("own_images")
def own_images(data_dir):
    rng = np.random.default_rng(3)
    y = np.arange(60) % 3
    x = (rng.integers(0, 50, (60, 4, 5, 2)) + 60 * y[:, None, None, None]).astype(np.uint8)
    return {"x_train": x, "y_train": y, "x_test": x[:30], "y_test": y[:30], "class_names": ["low", "mid", "high"]}


@losses.register("own_term", needs={"teacher.logits"})
def own_term(student, teacher, *, power: int = 2):
    return jnp.sum(jnp.abs(student.logits - teacher.logits) ** power, -1)


def get_config():
    c = config.default()
    c.epochs, c.batch_size = 3, 20
    c.data.source, c.data.pad, c.data.flip = "own_images", 0, False
    c.teacher.model, c.teacher.epochs, c.teacher.batch_size = "own_network", 2, 20
    c.student.model = "own_network"
    c.plots = c.tensorboard = False
    c.objective.terms.mine = objective.block("own_term", weight=0.1, every=2, power=1)
    return c
"""


def test_what_a_user_registers_in_the_configuration_file(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    found = helpers.run("--config", file, "--workdir", tmp_path / "run")
    assert found.status == 0, found.err
    student = gkd_jax.load(tmp_path / "run")
    assert student.class_names == ("low", "mid", "high")
    assert student.image_shape == (4, 5, 2)
    assert student.predict(np.full((1, 4, 5, 2), 150, np.uint8)).argmax() == 2
    records = _records(tmp_path / "run")
    assert set(records[0]["terms"]) == {"ce", "mine"}
    printed = json.loads((tmp_path / "run" / "config.json").read_text())["objective"]["terms"]["mine"]
    assert (printed["term"], printed["power"], printed["every"]) == ("own_term", 1, 2)
    assert finished.read(tmp_path / "run" / "summary.json")["student"]["test_accuracy"] > 0.6
