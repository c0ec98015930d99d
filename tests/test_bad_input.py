"""What cannot work is said in one message, with exit status 2, and nothing is written over."""

import errno
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import helpers
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import gkd_jax
from gkd_jax.errors import UserError
from gkd_jax.losses import term
from gkd_jax.losses.term import Term
from gkd_jax.models import registry

ALONE = ["--config.teacher.model=none", "--config.objective.terms.kd.weight=0"]


@pytest.fixture(scope="module", autouse=True)
def _registrations():
    with helpers.registrations():

        @term.register("explodes")
        def explodes(*, at: int = 6):
            def loss(heads, state, student, teacher, batch, key):
                return jnp.where(batch.step == at, jnp.nan, jnp.sum(student.logits, -1)), state

            return Term("explodes", loss)

        @term.register("choosy")
        def choosy():
            def loss(heads, state, student, teacher, batch, key):
                return jnp.sum(student.logits, -1), state

            def constants(setup):
                raise UserError("this teacher will not do")

            return Term("choosy", loss, frozenset({"teacher.logits"}), constants=constants)

        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A configuration file of a run that works, and its images."""
    return helpers.write_config(tmp_path_factory.mktemp("small"))


def _refused(message, *arguments, workdir=None):
    """Checks that a command is refused with `message`, and that its workdir is as it was."""
    before = None
    if workdir is not None:
        before = helpers.contents(workdir) if workdir.is_dir() else workdir.exists() and workdir.read_bytes()
        arguments = ("--workdir", workdir, *arguments)
    found = helpers.run(*arguments)
    assert (found.status, found.out) == (2, ""), found
    assert found.err.startswith("gkd_jax: ")
    assert "Traceback" not in found.err
    assert len(found.err.splitlines()) == 1
    assert re.search(message, found.err), found.err
    if workdir is not None:
        after = helpers.contents(workdir) if workdir.is_dir() else workdir.exists() and workdir.read_bytes()
        assert after == before
    return found.err


# ------------------------------------------------------------------------------------------------ flags


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config.sed=1",
            r"unknown configuration field 'sed' \(did you mean 'seed'\?\); the configuration has: batch_",
        ),
        ("--config.student.modl=x", r"'student.modl' \(did you mean 'model'\?\); student has: model"),
        ("--config.objective.terms.kdd.weight=1", r"'objective.terms.kdd.weight' \(did you mean 'kd'\?\)"),
        ("--config.objective.terms.kd.temprature=1", r"\(did you mean 'temperature'\?\); objective.terms.kd has: "),
        ("--config.student.model.depth=3", "student.model has no fields below it"),
        ("--config.=3", "unknown configuration field ''"),
        ("--config.seed=x", "--config.seed=x: must be a whole number"),
        ("--config.epochs=1.5", "--config.epochs=1.5: must be a whole number"),
        ("--config.ema=much", "--config.ema=much: must be a number"),
        ("--config.data.flip=perhaps", "--config.data.flip=perhaps: must be true or false"),
        (
            "--config.student=resnet8",
            "--config.student=resnet8: holds fields of its own; .* --config.student.FIELD=VALUE",
        ),
        ("--config.seed=-1", "seed must be between 0 and 4294967295, not -1"),
        ("--config.epochs=0", "epochs must be between 1 and 1000000, not 0"),
        ("--config.ema=1", "ema must be at least 0 and below 1, not 1.0"),
        ("--config.dtype=float64", "dtype must be one of 'auto', 'float32', 'bfloat16', not 'float64'"),
        (
            "--config.optimizer.learning_rate=nan",
            "optimizer.learning_rate must be a finite number, 0 or above, not nan",
        ),
        ("--config.optimizer.warmup=soon", "optimizer.warmup must be a duration such as .* not 'soon'"),
        ("--config.optimizer.drops=('1x',)", r"optimizer.drops must be durations .* not \['1x'\]|not \('1x',\)"),
        ("--config.optimizer.schedule=cos", "optimizer.schedule must be one of 'steps', 'cosine', not 'cos'"),
        ("--config.teacher.batch_size=0", "teacher.batch_size must be between 1 and 1000000, not 0"),
        (
            "--config.student.model=resnet9",
            r"student.model: unknown model 'resnet9' \(did you mean 'resnet8'\?\); known: ",
        ),
        ("--config.teacher.model=wrn", "teacher.model: unknown model 'wrn'"),
        ("--config.objective.mode=sun", "objective.mode must be 'sum' or 'convex', not 'sun'"),
        (
            "--config.objective.mode=convex",
            "objective.terms.[a-z]+.schedule must be 'constant' .* in the mode 'convex'",
        ),
        ("--config.objective.terms.kd.term=k", "objective.terms.kd: unknown term 'k'.*; known: at, cc, ce, "),
        (
            "--config.objective.terms.kd.weight=-1",
            "objective.terms.kd.weight must be a finite number, 0 or above, not -1",
        ),
        ("--config.objective.terms.kd.every=0", "objective.terms.kd.every must be 1 or above, not 0"),
        (
            "--config.objective.terms.kd.temperature=0",
            "objective.terms.kd: .*temperature is 0.0; allowed: a positive num",
        ),
        (
            "--config.objective.terms.kd.schedule.name=g",
            "objective.terms.kd.schedule: unknown schedule 'g'; known: const",
        ),
        ("--config.objective.terms.kd.schedule.rate=fast", "kd.schedule: rate must be a finite number, not 'fast'"),
        ("--config.objective.terms.kd.schedule.rate=0", "kd.schedule: .* rate must be a finite number above 0, not 0"),
        (
            "--config.objective.terms.kd.schedule.displacement=3",
            "inflection or displacement, not both; set one of them",
        ),
        (
            "--config.objective.terms.wasserstein.kind=sinkhor",
            "wasserstein: .*unknown kind 'sinkhor'; known: sinkhorn, ",
        ),
        ("--config.objective.terms.wasserstein.solver=fast", "unknown solver 'fast'; known: ott, unrolled"),
        ("--config.objective.terms.wasserstein.epsilon=big", "objective.terms.wasserstein: .*epsilon = 'big'"),
        ("--config.objective.terms.gradient.wrt=weights", "unknown wrt 'weights'; known: input, features, classifier"),
        (
            "--mode=test",
            "flag --mode=test: value should be one of <train|eval|export|shapes|print>".replace("|", r"\|"),
        ),
        ("--sead=3", "Unknown command line flag 'sead'"),
        ("--workdir", "Missing value for flag --workdir"),
        ("resume", "unexpected argument 'resume'; flags begin with --"),
    ],
)
def test_flags_that_say_nothing_that_can_be_done(small, tmp_path, monkeypatch, flag, message):
    monkeypatch.chdir(tmp_path)
    _refused(message, "--config", small, flag)
    assert list(tmp_path.iterdir()) == []  # not even the default workdir


def test_one_configuration_file_is_needed(small):
    for arguments in (["--mode=print"], ["--config"], ["--config="], ["--workdir", "x"]):
        _refused("--config FILE.py is missing, for example --config configs/digits.py; --help shows all", *arguments)
    _refused("--config is given 2 times: .*; a run has one", "--config", small, f"--config={small}")


DEFAULT = "from gkd_jax import config\n\n\ndef get_config():\n    c = config.default()\n"


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        (None, "", "no such file: .*bad.py"),
        ("def get_config(:\n", "", r"bad.py fails: SyntaxError: invalid syntax"),
        ("import os\nraise KeyError('left')\n", "", "bad.py fails in line 2: KeyError: 'left'"),
        (
            "import nowhere_at_all\n",
            "",
            "bad.py fails in line 1: ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
        ("def get():\n    return 1\n", "", "bad.py: it has no function get_config"),
        ("get_config = 3\n", "", "bad.py: it has no function get_config"),
        (
            "def get_config():\n    return {'seed': 1}\n",
            "",
            r"bad.py: get_config\(\) returned dict; it must return an ml_c",
        ),
        (
            "def get_config():\n    pass\n",
            "",
            r"bad.py: get_config\(\) returned NoneType; it must return an ml_collections",
        ),
        (
            "def get_config():\n    x = 1\n    return x / 0\n",
            "",
            "bad.py fails in line 3: ZeroDivisionError: division by",
        ),
        (
            "def get_config():\n    return 1\n",
            ":fast",
            "bad.py: it takes no argument, but 'fast' stands behind the colon",
        ),
        ("def get_config(arg):\n    return 1\n", "", "bad.py: it needs an argument, as in FILE.py:ARGUMENT"),
        (
            DEFAULT + "    c.seed = 'x'\n    return c\n",
            "",
            "bad.py fails in line 6: TypeError: .*seed",
        ),
        (
            DEFAULT + "    del c.seed\n    return c\n",
            "",
            "the configuration lacks the field 'seed'; start from gkd_jax.config.default",
        ),
        (
            "from gkd_jax import config, objective\n\n\ndef get_config():\n    return objective.block('kdd')\n",
            "",
            r"bad.py: unknown term 'kdd' \(did you mean 'kd'\?\)",
        ),
        (
            "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({'sede': 3})\n",
            "",
            r"unknown configuration field 'sede' \(did you mean 'seed'\?\)",
        ),
    ],
)
def test_configuration_files_that_do_not_work(tmp_path, text, argument, message):
    file = tmp_path / "bad.py"
    if text is not None:
        file.write_text(text)
    _refused(message, f"--config={file}{argument}", workdir=tmp_path / "run")


# ------------------------------------------------------------------------------------------------ data


def _without(name):
    arrays = helpers.images()
    del arrays[name]
    return arrays


def _labels(value, place="y_train"):
    labels = helpers.images()[place].copy()
    labels[7] = value
    return {place: labels}


@pytest.mark.parametrize("mode", ["train", "shapes"])
@pytest.mark.parametrize(
    ("arrays", "flags", "message"),
    [
        (
            _labels(4),
            ["--config.data.num_classes=4"],
            r"y_train\[7\] is 4; labels must be 0 to 3 \(data.num_classes gives",
        ),
        (_labels(-1, "y_test"), [], r"y_test\[7\] is -1; labels must be 0 to 3"),
        ({"y_train": np.zeros(80)}, [], "y_train has dtype float64; labels must be integers"),
        ({"y_train": np.arange(79) % 4}, [], "y_train has 79 labels but x_train has 80 images"),
        ({"y_test": np.zeros((24, 1), int)}, [], r"y_test has shape \(24, 1\); labels must be \[n\]"),
        (
            {"x_train": helpers.images()["x_train"].astype(np.float32)},
            [],
            "x_train has dtype float32; images must be uint",
        ),
        ({"x_train": np.zeros((80, 3, 8, 8), np.uint8)}, [], r"\(80, 3, 8, 8\), channels first; .* \[n, h, w, c\]"),
        ({"x_train": np.zeros((80, 64), np.uint8)}, [], r"x_train has shape \(80, 64\); images must be \[n, h, w, c\]"),
        ({"x_test": np.zeros((24, 6, 6, 3), np.uint8)}, [], r"x_test are \(6, 6, 3\) but those of x_train \(8, 8, 3\)"),
        ({"x_test": np.zeros((0, 8, 8, 3), np.uint8)}, [], "x_test is empty; it must hold at least one image"),
        ({"x_train": np.array([{}] * 80)}, [], "x_train holds pickled Python objects, which are never loaded"),
        ({"y_train": np.zeros(80, int)}, [], "gives 1 classes; there must be at least 2"),
        (
            {},
            ["--config.data.val_fraction=0.001"],
            "data.val_fraction is 0.001, which leaves no validation image of 80",
        ),
        ({}, ["--config.data.val_fraction=0.999"], "data.val_fraction is 0.999, which leaves no training image of 80"),
        ({}, ["--config.data.pad=8"], "data.pad is 8; for images of 8 x 8 it must be 0 to 7"),
        (
            {},
            ["--config.batch_size=65"],
            "gkd_jax: batch_size is 65 but the training split has 64 examples; .* at most 64",
        ),
        ({}, ["--config.data.source=cifar11"], r"unknown data source 'cifar11' \(did you mean 'cifar10'\?\); known: "),
        ({}, ["--config.data.source=npz:nowhere.npz"], "nowhere.npz: no such file; data.source names an .npz file"),
    ],
)
def test_data_that_cannot_be_learned_from(tmp_path, mode, arrays, flags, message):
    file = helpers.write_config(tmp_path, **arrays)
    _refused(message, "--config", file, f"--mode={mode}", *flags, workdir=tmp_path / "run")


def test_an_npz_with_nan(tmp_path):
    images = helpers.images()["x_train"].astype(np.float32)
    images[3, 2, 1, 0] = np.nan
    file = helpers.write_config(tmp_path, x_train=images)
    _refused("images.npz: x_train has dtype float32 and holds NaN", "--config", file, workdir=tmp_path / "run")


def test_the_teachers_batch(small, tmp_path):
    flags = ["--config.teacher.batch_size=65", "--config.student.model=speck"]
    _refused(
        "teacher.batch_size is 65 but the training split has 64", "--config", small, *flags, workdir=tmp_path / "run"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "images.npz: damaged, cut short or no .npz file"),
        (lambda content: b"", "images.npz: damaged, cut short or no .npz file"),
        (lambda content: b"not an archive", "images.npz: damaged, cut short or no .npz file"),
    ],
)
def test_an_npz_that_is_damaged(tmp_path, damage, message):
    file = helpers.write_config(tmp_path)
    images = tmp_path / "images.npz"
    images.write_bytes(damage(images.read_bytes()))
    _refused(message, "--config", file, workdir=tmp_path / "run")


@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "y_test"])
def test_an_npz_that_lacks_an_array(tmp_path, name):
    file = helpers.write_config(tmp_path)
    np.savez(tmp_path / "images.npz", **_without(name))
    message = f"images.npz: no array {name}; found .*; needed are x_train, y_train, x_test, y_test"
    _refused(message, "--config", file, workdir=tmp_path / "run")


# ------------------------------------------------------------------------------- what only the run itself can tell


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.optimizer.warmup=2ep"], "optimizer.warmup: 2ep is not shorter than the run of 8 steps"),
        (
            ["--config.teacher.optimizer.warmup=4"],
            "teacher.optimizer.warmup: 4 is not shorter than the run of 4 steps",
        ),
        (
            [f"--config.objective.terms.kd.schedule.{field}" for field in ("name=linear", "begin=1ep", "end=3")],
            "objective.terms.kd.schedule: schedule 'linear': end must come after begin, but they are steps 3 and 4",
        ),
        (
            [*ALONE, "--config.objective.ce.weight=0"],
            "objective: every weight is 0, there is nothing to learn from",
        ),
        (
            ["--config.objective.ce.weight=0", "--config.objective.terms.kd.every=2"],
            "objective: some steps have no line at all; one line must have every = 1",
        ),
        (
            [f"--config.objective.terms.wasserstein.{field}" for field in ("weight=1", "kind=gaussian", "stage=5")],
            "objective.terms.wasserstein: stage is 5, but the network has 2 features: -2 to 1",
        ),
        (
            [f"--config.objective.terms.gradient.{field}" for field in ("weight=1", "wrt=features", "stage=-3")],
            "objective: feature:-3: the network has 2 feature maps",
        ),
        (
            ["--config.teacher.model=none"],
            "teacher.model is 'none', but objective.terms.kd has a weight and needs a teac",
        ),
        (["--config.data.num_classes=3"], r"y_train\[3\] is 3; labels must be 0 to 2"),
    ],
)
def test_nothing_is_trained_before_a_mistake_is_found(small, tmp_path, flags, message):
    _refused(message, "--config", small, *flags, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file(small, tmp_path):
    (tmp_path / "run").write_text("mine")
    _refused("run: cannot be made a directory", "--config", small, workdir=tmp_path / "run")
    _refused("run/below: cannot be made a directory", "--config", small, workdir=tmp_path / "run" / "below")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "of another program"}', "\xff\xfe"])
def test_a_workdir_with_a_config_of_something_else(small, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes(content.encode("latin1"))
    _refused("run(/config.json)?:? (cannot be read|holds list|belongs to)", "--config", small, workdir=tmp_path / "run")


@pytest.mark.parametrize("make", [False, True])
def test_evaluating_what_is_no_run(small, tmp_path, make):
    if make:
        (tmp_path / "run").mkdir()
    message = "run/config.json: no such file; is .*run the directory of a run?"
    _refused(message, "--config", small, "--mode=eval", workdir=tmp_path / "run")


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def teacher(small, tmp_path_factory):
    """The directory of a finished teacher, "speck_wide", and how it is trained."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    flags = ["--config", small, *ALONE, "--config.student.model=speck_wide", "--config.epochs=1"]
    found = helpers.run(*flags, "--workdir", workdir)
    assert found.status == 0, found.err
    return workdir, flags


@pytest.fixture
def copied(teacher, tmp_path):
    """A copy of the teacher that may be damaged."""
    return pathlib.Path(shutil.copytree(teacher[0], tmp_path / "teacher"))


def test_a_teacher_that_is_not_there(small, tmp_path):
    message = "nowhere/config.json: no such file; is nowhere the directory of a run?"
    _refused(message, "--config", small, "--config.teacher.checkpoint=nowhere", workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.teacher.model=speck"], "teacher.model is 'speck', but .*teacher holds a 'speck_wide'"),
        (
            ["--config.data.num_classes=5"],
            "the teacher knows 4 classes, but npz:.* has 5; teacher and student need the sam",
        ),
    ],
)
def test_a_teacher_that_does_not_fit(small, copied, tmp_path, flags, message):
    before = helpers.contents(copied)
    checkpoint = f"--config.teacher.checkpoint={copied}"
    _refused(message, "--config", small, checkpoint, *flags, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert helpers.contents(copied) == before


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            helpers.images(classes=3),
            "the teacher knows 4 classes, but npz:.*images.npz has 3; teacher and student need",
        ),
        (
            helpers.images(shape=(6, 6, 3)),
            r"the teacher takes images of \(8, 8, 3\), but those of npz:.* are \(6, 6, 3\)",
        ),
        (
            {"x_train": helpers.images()["x_train"] // 2},
            "the teacher's images were normalised by mean .* teacher and student need the same",
        ),
    ],
)
def test_a_teacher_for_other_images(copied, tmp_path, arrays, message):
    file = helpers.write_config(tmp_path / "other", **arrays)
    checkpoint = f"--config.teacher.checkpoint={copied}"
    _refused(message, "--config", file, checkpoint, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _cut_short(workdir):
    for file in (workdir / "checkpoints").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _other_architecture(workdir):
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace('"model": "speck_wide"', '"model": "speck"'))


def _another_kind(workdir):
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace('"model": "speck_wide"', '"model": "resnet8"'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda workdir: shutil.rmtree(workdir / "checkpoints"),
            "checkpoints: no checkpoint here; start the run again",
        ),
        (_cut_short, r"checkpoints/4: the checkpoint is damaged, cut short or of another architecture \("),
        (
            _other_architecture,
            r"checkpoints/4: .* is \[10\], and should be \[6\]; the checkpoint is of another architecture",
        ),
        (_another_kind, "checkpoints/4: .* is not there, and should be .*; the checkpoint is of another architecture"),
        (lambda workdir: (workdir / "data.json").unlink(), "data.json: no such file; is .* the directory of a run?"),
        (
            lambda workdir: (workdir / "data.json").write_text("{}"),
            "config.json or data.json is not what gkd_jax wrote",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_read(small, copied, tmp_path, damage, message):
    damage(copied)
    before = helpers.contents(copied)
    model = json.loads((copied / "config.json").read_text())["student"]["model"]
    flags = [f"--config.teacher.checkpoint={copied}", f"--config.teacher.model={model}"]
    _refused(message, "--config", small, *flags, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert helpers.contents(copied) == before
    with pytest.raises(UserError, match=message):
        gkd_jax.load(copied)


def test_a_run_does_not_go_on_from_a_damaged_checkpoint(teacher, copied):
    (copied / "summary.json").unlink()
    _cut_short(copied)
    message = r"checkpoints/4: the checkpoint is damaged, cut short or of another architecture \("
    _refused(message, *teacher[1], workdir=copied)


def test_a_teacher_that_has_not_finished(small, copied, tmp_path):
    text = (copied / "config.json").read_text()
    (copied / "config.json").write_text(re.sub(r'"epochs": 1,', '"epochs": 3,', text, count=1))
    message = f"{copied} has not finished, it is at step 4 of 12; start its run again"
    checkpoint = f"--config.teacher.checkpoint={copied}"
    _refused(message, "--config", small, checkpoint, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_not_registered_any_more(copied, monkeypatch):
    assert gkd_jax.load(copied).config["student"]["model"] == "speck_wide"
    monkeypatch.delitem(registry._BUILDS, "speck_wide")
    message = (
        f"^{copied} holds a network 'speck_wide', which is not registered; if the run's configuration file registers "
        "it, run that file first$"
    )
    with pytest.raises(UserError, match=message):
        gkd_jax.load(copied)


def test_a_workdir_of_other_images(teacher, copied, tmp_path):
    """The file is another one under the same name."""
    images = pathlib.Path(json.loads((copied / "config.json").read_text())["data"]["source"].removeprefix("npz:"))
    kept = images.read_bytes()
    try:
        np.savez(images, **{**helpers.images(), "x_train": helpers.images()["x_train"][::-1]})
        message = "belongs to a run on other images than those of npz:.* now; choose another --workdir"
        _refused(message, *teacher[1], workdir=copied)
        _refused("holds a run on other images than those of npz:", *teacher[1], "--mode=eval", workdir=copied)
    finally:
        images.write_bytes(kept)


# ------------------------------------------------------------------------------------------------ the disk


@pytest.fixture
def full_disk(monkeypatch):
    """Returns a function after which writing a file whose path contains `name` fails."""
    synced = os.fsync

    def fill(name):
        def fsync(file):
            if name in os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            synced(file)

        monkeypatch.setattr(os, "fsync", fsync)

    return fill


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").exists(), reason="tells files apart by /proc")
def test_a_disk_that_is_full(teacher, copied, full_disk, monkeypatch):
    """One run, in which the disk fills up at one place after the other; then there is room, and it ends as ever."""
    workdir, flags = copied.parent / "run", [*teacher[1], "--config.seed=5"]

    full_disk("config.json")
    message = f"cannot write {workdir}/config.json: No space left on device"
    _refused(message, *flags, "--workdir", workdir)
    assert helpers.contents(workdir) == {}

    full_disk("metrics.jsonl")
    found = helpers.run(*flags, "--workdir", workdir)
    assert (found.status, found.out) == (2, "")
    assert f"cannot write {workdir}/metrics.jsonl: No space left on device" in found.err
    assert (workdir / "metrics.jsonl").read_bytes() == b""

    full_disk("nothing")
    with monkeypatch.context() as patch:

        def save(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(ocp.training.Checkpointer, "save_async", save)
        found = helpers.run(*flags, "--workdir", workdir)
        assert (found.status, found.out) == (2, "")
        assert f"{workdir}/checkpoints: cannot write the checkpoint (No space left on device)" in found.err
        assert "Traceback" not in found.err

    full_disk("summary.json")
    found = helpers.run(*flags, "--workdir", workdir)
    assert (found.status, found.out) == (2, "")
    assert f"cannot write {workdir}/summary.json: No space left on device" in found.err
    assert not (workdir / "summary.json").exists()

    full_disk("nothing")
    found = helpers.run(*flags, "--workdir", workdir)
    assert (found.status, found.err) == (0, "")  # nothing was left to train
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 1


# ------------------------------------------------------------------------------------------------ terms and networks


def test_what_a_term_expects_of_the_teacher_is_told_before_it_is_trained(tmp_path):
    file = helpers.write_config(tmp_path, 'c.objective.terms.it = objective.block("choosy")')
    _refused("^gkd_jax: objective.terms.it: this teacher will not do$", "--config", file, "--workdir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ a loss that is lost


def test_a_loss_that_becomes_nan(tmp_path):
    """At step 6, in the second epoch of four steps each: what was saved after the first one stays."""
    more = 'c.objective.terms.late = objective.block("explodes", weight=0.1, at=6)'
    file = helpers.write_config(tmp_path, more)
    workdir = tmp_path / "run"
    flags = ["--config", file, "--workdir", workdir, *ALONE, "--config.epochs=3"]
    found = helpers.run(*flags)
    assert (found.status, found.out) == (2, "")
    assert "Traceback" not in found.err
    assert (
        "gkd_jax: speck: the term 'late' became NaN or infinite at step 6; the checkpoint of step 4 is kept in "
        f"{workdir}/checkpoints. A lower optimizer.learning_rate or a lower weight may help"
    ) in found.err
    assert [json.loads(line)["epoch"] for line in (workdir / "metrics.jsonl").read_text().splitlines()] == [1]
    assert not (workdir / "summary.json").exists()
    # What is there is the network of an unfinished run, and is taken for nothing else
    unfinished = f"{workdir} has not finished, it is at step 4 of 12; start its run again"
    with pytest.raises(UserError, match=f"^{unfinished}$"):
        gkd_jax.load(workdir)
    _refused(unfinished, *flags, "--mode=eval")
    # Started again it stops at the same place, and damages nothing
    before = helpers.contents(workdir / "checkpoints")
    again = helpers.run(*flags)
    assert again.status == 2
    assert "the term 'late' became NaN or infinite at step 6; the checkpoint of step 4 is kept" in again.err
    assert helpers.contents(workdir / "checkpoints") == before


# ------------------------------------------------------------------------------------------------ real processes

_ROOT = pathlib.Path(__file__).parents[1]


def _command(*arguments):
    return [sys.executable, "-m", "gkd_jax.main", *map(str, arguments)]


_ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)}


@pytest.mark.slow
def test_the_status_of_a_process(tmp_path):
    flags = (
        "--config",
        _ROOT / "configs" / "digits.py",
        "--workdir",
        tmp_path / "run",
        "--config.data.source=npz:no.npz",
    )
    found = subprocess.run(_command(*flags), capture_output=True, text=True, cwd=tmp_path, env=_ENVIRONMENT)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "gkd_jax: no.npz: no such file; data.source names an .npz file\n"
    assert list(tmp_path.iterdir()) == []


REGISTERED = """
import helpers

kept = helpers.registrations()
kept.__enter__()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_run_and_it_goes_on(tmp_path, number):
    epochs = 15
    file = helpers.write_config(tmp_path, f"c.epochs = {epochs}; c.batch_size = 4")
    file.write_text(REGISTERED + file.read_text())
    environment = {**_ENVIRONMENT, "PYTHONPATH": f"{_ROOT}:{_ROOT / 'tests'}"}
    command = _command("--config", file, "--workdir", "run", *ALONE)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        lines = iter(process.stderr.readline, "")
        before = list(itertools.takewhile(lambda line: "epoch" not in line, lines))
        time.sleep(0.05)  # into the next epoch
        process.send_signal(number)
        said = "".join([*before, process.stderr.read()])
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    step = int(re.search(rf"stopped by {number.name} after step (\d+), which is saved; to go on:", said)[1])
    assert f"  python -m gkd_jax.main --config {file} --workdir run " in said
    assert 0 < step < 16 * epochs
    assert not (tmp_path / "run" / "summary.json").exists()

    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert found.returncode == 0, found.stderr
    assert "student" in found.stdout
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, epochs + 1))
