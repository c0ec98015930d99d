"""Teachers that were published: written down, found again, checked, and distilled from."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import runpy
import shutil
import struct
import subprocess
import sys
import types

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import publish_teacher
from gkd_jax import command
from gkd_jax.errors import UserError
from gkd_jax.training import checkpoint, experiment, finished, parts, pretrained, summary
from gkd_jax.training.resolve import resolve
from gkd_jax.training.stop import Interrupted

NAME = "speck-noise"
COMMITTED = "resnet20-cifar10-5ep"
# Of six classes: more than five
ARRAYS = helpers.images(classes=6, train=96, test=30)


def flags(file, *more):
    alone = [f"--config.objective.terms.{name}.weight=0" for name in ("kd", "wasserstein", "gradient")]
    return ["--config", file, "--config.teacher.model=none", *alone, "--config.student.model=speck_wide", *more]


def _publish(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = publish_teacher.main(["publish", *map(str, arguments)])
    return helpers.Result(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return helpers.write_config(tmp_path_factory.mktemp("small"), **ARRAYS)


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory):
    """The directory of a run that trained a teacher."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    found = helpers.run(*flags(file, "--config.seed=3"), "--workdir", workdir)
    assert found.status == 0, found.err
    return workdir


@pytest.fixture(scope="module")
def shelf(trained, tmp_path_factory):
    """A folder with the manifest that lists it, and what the command said."""
    folder = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(pretrained.VARIABLE, str(folder))
        told = _publish(trained, "--name", NAME, "--note", "of noise")
    assert (told.status, told.err) == (0, "")
    return folder, told.out


@pytest.fixture
def published(shelf, tmp_path, monkeypatch):
    """A copy of the folder, which is where teachers are looked for; the user's cache is empty."""
    folder = tmp_path / "teachers"
    shutil.copytree(shelf[0], folder)
    monkeypatch.setenv(pretrained.VARIABLE, str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture(scope="module")
def distil(file):
    """Returns a function that gives the configuration of a student of the published teacher, resolved."""

    def make(*more, name=NAME):
        given = ["gkd_jax", "--config", file, f"--config.teacher.checkpoint=pretrained:{name}", "--config.epochs=1"]
        return resolve(command.parse([*map(str, given), *more]).config)

    return make


@pytest.fixture(scope="module")
def distilled(shelf, distil, tmp_path_factory):
    """The run of two students that it taught: configuration, directory, the user's cache folder, summary."""
    home, workdir = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("distilled") / "run"
    given = distil("--config.compare_alone=true", "--config.ema=0.9", "--config.seeds=0,1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(pretrained.VARIABLE, str(shelf[0]))
        patch.setenv("HOME", str(home))
        found = experiment.run(given, workdir)
    return given, workdir, home / ".cache" / "gkd_jax" / "pretrained", found


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def change(folder, **fields):
    """Writes other fields into the manifest's entry."""
    held = manifest(folder)
    held["teachers"][NAME] |= fields
    (folder / "manifest.json").write_text(json.dumps(held))


def to_bfloat16(array):
    """Returns float32 values rounded to 8 significant bits, to the nearest and then the even one, by their bits."""
    bits = np.asarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def as_published(variables):
    return {**variables, "params": jax.tree.map(to_bfloat16, variables["params"])}


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, dict(a), dict(b))


# ------------------------------------------------------------------------------------------------ publishing


def test_the_manifest(shelf, trained):
    folder, told = shelf
    held = manifest(folder)
    assert held["version"] == 1
    entry = held["teachers"][NAME]
    run, record = (finished.read(trained / name) for name in ("config.json", "data.json"))
    assert {key: entry[key] for key in ("model", "classes", "seed", "steps", "note", "licence")} == {
        **{"model": "speck_wide", "classes": 6, "seed": 3, "steps": 8, "note": "of noise"},
        "licence": "Apache-2.0",
    }
    run["data"]["source"] = record["source"] = "npz:images.npz"  # wherever it lies here
    assert entry["dataset"] == run["data"]["source"]
    assert (entry["mean"], entry["std"], entry["data"]) == (record["mean"], record["std"], record)
    assert entry["recipe"] == run
    assert {"jax", "flax", "python", "gkd_jax"} <= set(entry["versions"])
    assert len(entry["date"]) == len("2026-01-01")

    # What was measured is the rounded network, computed in float32
    network = finished.load(trained)
    dataset = experiment.load_data(network.config)
    assert entry["test_images"] == len(dataset.test_images) == 30
    images = jnp.asarray((dataset.test_images / 255.0 - dataset.mean) / dataset.std, jnp.float32)
    rounded = jax.tree.map(jnp.asarray, as_published(network.variables))
    outputs, _ = network.model.apply(rounded, images, train=False)
    log = np.asarray(jax.nn.log_softmax(outputs.logits), np.float64)
    right = float(np.mean(log.argmax(-1) == dataset.test_labels))
    assert entry["test_accuracy"] == pytest.approx(right)
    assert entry["test_nll"] == pytest.approx(-log[np.arange(30), dataset.test_labels].mean(), rel=1e-4)
    assert 0 < entry["test_accuracy"] < 1
    assert entry["test_top5"] >= entry["test_accuracy"]
    lines = told.splitlines()
    assert lines[0].startswith(f"{folder / 'manifest.json'}: {NAME}, speck_wide for npz:")
    assert f"test accuracy   {100 * right:.2f} % of the rounded weights  (30 images)" in lines
    own = finished.read(trained / "summary.json")["student"]["test_accuracy"]
    assert f"                {100 * own:.2f} % before they were rounded" in lines
    assert lines[-1].endswith(f"--config.teacher.model=speck_wide --config.teacher.checkpoint=pretrained:{NAME}")


def test_the_file(shelf, trained):
    """By the description of the format: the length of the head, the head in JSON, the values."""
    (part,) = manifest(shelf[0])["teachers"][NAME]["parts"]
    assert part["file"] == f"{NAME}.safetensors"
    content = (shelf[0] / part["file"]).read_bytes()
    assert (part["bytes"], part["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    (length,) = struct.unpack("<Q", content[:8])
    head, values = json.loads(content[8 : 8 + length]), content[8 + length :]
    expected = finished.load(trained).variables
    names = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        name = "/".join(key.key for key in path)
        names.add(name)
        start, end = head[name]["data_offsets"]
        bits = values[start:end]
        assert head[name]["shape"] == list(leaf.shape)
        if name.startswith("params/"):
            assert head[name]["dtype"] == "BF16"
            found = (np.frombuffer(bits, "<u2").astype(np.uint32) << 16).view(np.float32)
            np.testing.assert_array_equal(found.reshape(leaf.shape), to_bfloat16(leaf))
        else:
            assert head[name]["dtype"] == "F32"
            np.testing.assert_array_equal(np.frombuffer(bits, "<f4").reshape(leaf.shape), leaf)
    assert names == set(head) - {"__metadata__"}


def test_no_folder_of_this_machine_is_told(trained, published, file, tmp_path):
    """Where data and caches are is nobody's business; what the run is, is."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    run = finished.read(copy / "config.json")
    run["data"]["data_dir"], run["teacher"]["cache_dir"], run["compilation_cache"] = (
        "/secret/a",
        "/secret/b",
        "/secret",
    )
    (copy / "config.json").write_text(json.dumps(run))
    assert _publish(copy, "--name=other").status == 0
    text = (published / "manifest.json").read_text()
    assert "/secret" not in text
    assert str(file.parent) not in text
    assert manifest(published)["teachers"]["other"]["recipe"]["data"]["source"] == "npz:images.npz"
    assert list(manifest(published)["teachers"]) == ["other", NAME]  # sorted, and the first is still there


def test_a_network_that_was_trained_before_the_test_split_was_read(published, file, tmp_path):
    run = resolve(command.parse(["gkd_jax", *map(str, flags(file))]).config)
    experiment.run(run, tmp_path / "blind", test=False)
    told = _publish(tmp_path / "blind", "--name=blind")
    assert (told.status, told.err) == (0, "")
    entry = manifest(published)["teachers"]["blind"]
    assert entry["test_accuracy"] == experiment.run(run, tmp_path / "seeing")["student"]["test_accuracy"]


def test_parts(monkeypatch, published, trained):
    """No file is larger than it may be, and together they hold each array once."""
    variables = finished.load(trained).variables
    for largest in (2500, 3000, 10**6):
        contents = parts.pack(variables, largest)
        assert all(len(content) <= largest for content in contents)
        assert (len(contents) > 1) == (largest < 10**6)
        same(parts.unpack(contents), as_published(variables))
    with pytest.raises(UserError, match=r"^params/classifier/kernel takes [\d,]+ bytes, and a part has 1,000 at most$"):
        parts.pack(variables, 1000)
    with pytest.raises(UserError, match="is no .safetensors file"):
        parts.unpack([b"no such thing"])

    monkeypatch.setattr(parts, "pack", functools.partial(parts.pack, largest=2500))
    assert _publish(trained, "--name=cut").status == 0
    listed = manifest(published)["teachers"]["cut"]["parts"]
    assert [part["file"] for part in listed] == [
        f"cut.{i + 1}-of-{len(listed)}.safetensors" for i in range(len(listed))
    ]
    assert len(listed) > 1
    same(finished.load(pretrained.unpacked("cut")).variables, as_published(variables))


def test_the_largest_part_and_all_parts():
    assert parts.LARGEST == 16e6
    assert publish_teacher.ALL == 200e6


def test_several_students_and_their_averages(published, distilled):
    """One of them is published, as it is evaluated: averaged."""
    _, workdir, _, found = distilled
    for seed, name, more in (("1", "second", ["--seed=1"]), ("0", "first", [])):
        told = _publish(workdir, f"--name={name}", *more)
        assert (told.status, told.err) == (0, "")
        own = found["student"]["seeds"][seed]["test_accuracy"]
        assert f"{100 * own:.2f} % before they were rounded" in told.out
        assert manifest(published)["teachers"][name]["seed"] == int(seed)
    network = finished.load(pretrained.unpacked("second"))
    same(network.variables, as_published(finished.load(workdir, seed=1).variables))
    assert network.config["seed"] == 1
    refused = _publish(workdir, "--name=third", "--seed=7")
    assert (refused.status, refused.err) == (2, f"gkd_jax: {workdir} has no student of seed 7; it has: 0, 1\n")


def test_a_name_is_given_once(published, trained, distilled):
    again = _publish(trained, "--name", NAME, "--note=again")  # the same network: its entry may be corrected
    assert again.status == 0
    assert manifest(published)["teachers"][NAME]["note"] == "again"
    before = helpers.contents(published)
    refused = _publish(distilled[1] / "alone", "--name", NAME)
    assert refused.status == 2
    assert refused.err == f"gkd_jax: {published / 'manifest.json'} lists another network as {NAME!r}; " + (
        "choose another --name\n"
    )
    assert helpers.contents(published) == before


def test_a_network_from_elsewhere_and_of_another_compute_type(published, file):
    """What is unpacked is a run like others: it has no summary, and says where it came from."""
    recipe = manifest(published)["teachers"][NAME]["recipe"]
    change(published, recipe=recipe | {"dtype": "bfloat16"})
    folder = pretrained.unpacked(NAME)
    network = finished.load(folder)
    assert network.config["dtype"] == "float32"  # in which it was measured
    kept = helpers.contents(published)
    refused = _publish(folder, "--name=again", "--note=from there")
    assert (refused.status, refused.out) == (2, "")
    assert f"{folder} holds imported weights: say where they come from by --note, and under which" in refused.err
    assert helpers.contents(published) == kept
    given = ("--name=again", "--note=from there", "--licence=MIT")
    assert "images.npz" in _publish(folder, *given).err  # which lies elsewhere
    told = _publish(folder, *given, "--data_dir", file.parent)
    assert (told.status, told.err) == (0, "")
    entry = manifest(published)["teachers"]["again"]
    assert (entry["note"], entry["licence"]) == ("from there", "MIT")
    assert "before they were rounded" not in told.out
    first, again = (manifest(published)["teachers"][name] for name in (NAME, "again"))
    assert again["parts"][0]["sha256"] == first["parts"][0]["sha256"]
    assert again["test_nll"] == pytest.approx(first["test_nll"])
    for _ in range(2):  # made, and found
        found = finished.load(pretrained.unpacked("again"))
        same(found.variables, network.variables)
        assert found.record["imported"]["file"] == "pretrained:again"


def test_what_cannot_be_published(published, trained, file, tmp_path, monkeypatch):
    before = helpers.contents(published)

    def refused(*arguments):
        told = _publish(*arguments)
        assert (told.status, told.out) == (2, "")
        assert told.err.count("\n") == 1
        return told.err

    assert "--name is '../x'; it must be made of letters, digits and . + - _" in refused(trained, "--name=../x")
    assert "the following arguments are required: --name" in refused(trained)
    assert "is " in refused(tmp_path / "nothing", "--name=x")
    run = resolve(command.parse(["gkd_jax", *map(str, flags(file))]).config)
    with pytest.raises(Interrupted):
        experiment.run(run, tmp_path / "half", helpers.StopAt(2))
    assert "has not finished" in refused(tmp_path / "half", "--name=x")
    monkeypatch.setattr(publish_teacher, "ALL", 5000)
    assert "all teachers would take 0.0 MB, and may take 0" in refused(trained, "--name=x")
    monkeypatch.undo()
    monkeypatch.setenv(pretrained.VARIABLE, str(published))
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    record = finished.read(moved / "data.json")
    (moved / "data.json").write_text(json.dumps(record | {"digest": "0" * 64}))
    assert "holds a run on other images than those of npz:" in refused(moved, "--name=x")
    monkeypatch.setattr(finished, "reuses", lambda config: True)
    monkeypatch.setattr(finished, "load", lambda workdir, seed=None: types.SimpleNamespace(config=run))
    assert "speaks through its teacher's classifier" in refused(trained, "--name=x")
    assert helpers.contents(published) == before


# ------------------------------------------------------------------------------------------------ distilling


def test_the_teacher_of_a_run(shelf, distilled, trained):
    given, workdir, cache, found = distilled
    assert given["teacher"]["checkpoint"] == f"pretrained:{NAME}"
    (folder,) = cache.iterdir()
    assert folder.name.startswith(f"{NAME}-")
    assert found["teacher"]["workdir"] == str(folder)
    assert "warning" not in found["teacher"]  # it knows none of the validation images
    assert "teacher_agreement" not in found["teacher"]
    entry = manifest(shelf[0])["teachers"][NAME]
    for name in ("test_accuracy", "test_top5", "test_ece", "test_nll", "params", "steps"):
        assert found["teacher"][name] == entry[name], name
    master = finished.load(folder)
    same(master.variables, as_published(finished.load(trained).variables))
    imported = {"framework": "gkd_jax", "file": f"pretrained:{NAME}", "sha256": entry["variables_sha256"]}
    assert master.record["imported"] == imported
    known = finished.read(workdir / "data.json")["teacher_sha256"]
    assert known == checkpoint.sha256(master.variables["params"]) == found["teacher"]["params_sha256"]


def test_the_figures_of_its_students(distilled):
    given, workdir, cache, found = distilled
    (folder,) = cache.iterdir()
    dataset = experiment.load_data(given)
    theirs = finished.load(folder).predict(dataset.test_images).argmax(-1)
    names = ("test_accuracy", "test_top5", "test_ece", "test_nll", "teacher_agreement")
    for part, averaged in (("student", True), ("student_raw", False)):
        for name in names:
            values = [found[part]["seeds"][seed][name] for seed in "01"]
            assert found[part][name] == pytest.approx(np.mean(values))
            assert found[part]["std"][name] == pytest.approx(np.std(values, ddof=1))
        for seed, student in finished.load_seeds(workdir, averaged=averaged).items():
            own = found[part]["seeds"][str(seed)]
            assert set(own) == {*names, "val_accuracy", "params_sha256"}
            probabilities = student.predict(dataset.test_images)
            assert own["test_accuracy"] == np.mean(probabilities.argmax(-1) == dataset.test_labels)
            assert own["teacher_agreement"] == np.mean(probabilities.argmax(-1) == theirs)
            log = np.log(probabilities[np.arange(30), dataset.test_labels])
            assert own["test_nll"] == pytest.approx(-log.mean(), rel=1e-4)
    assert set(names) - set(found["student_alone"]) == {"teacher_agreement"}
    assert found["student_alone"]["test_nll"] > 0


def test_without_test_images_nothing_is_said_of_them(distilled):
    given, workdir, cache, found = distilled
    dataset = experiment.load_data(given)
    blind = dataclasses.replace(dataset, test_images=dataset.test_images[:0], test_labels=dataset.test_labels[:0])
    master = summary.measured(blind, *cache.iterdir(), first=True)
    assert master.predictions is None
    student = summary.measured(blind, workdir, teacher=master.predictions).report
    expected = found["student"]
    for seed, own in student["seeds"].items():
        assert {name for name, value in own.items() if value is None} == {
            *("test_accuracy", "test_top5", "test_ece", "test_nll")
        }
        assert own["val_accuracy"] == expected["seeds"][seed]["val_accuracy"]
    assert student["test_nll"] is None
    assert set(student["std"]) == {"val_accuracy"}


def test_it_is_made_once(published, distilled, distil):
    folder = pretrained.unpacked(NAME)
    before = helpers.contents(folder)
    assert pretrained.unpacked(NAME) == folder
    assert helpers.contents(folder) == before
    shutil.rmtree(published)
    given, workdir, _, found = distilled
    assert experiment.run(given, workdir) == found  # a run that is over does not ask for its teacher


def test_a_cache_folder_of_the_users_own(published, distil, tmp_path):
    for field, root in (("off", tmp_path / "home/.cache/gkd_jax"), (str(tmp_path / "own"), tmp_path / "own")):
        folder = pretrained.located(distil(f"--config.teacher.cache_dir={field}")["teacher"])
        assert folder.parent == root / "pretrained"
        assert finished.load(folder).config["student"]["model"] == "speck_wide"


def test_what_the_field_may_say_besides():
    assert pretrained.located({"checkpoint": None}) is None
    assert pretrained.located({"checkpoint": "runs/resnet56"}) == pathlib.Path("runs/resnet56")


def test_the_file_of_a_manifest_may_be_named(published, monkeypatch):
    renamed = published / "ours.json"
    (published / "manifest.json").rename(renamed)
    monkeypatch.setenv(pretrained.VARIABLE, str(renamed))
    assert pretrained.unpacked(NAME).is_dir()


def break_checkpoint(folder):
    for file in (folder / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 500:
            file.write_bytes(file.read_bytes()[:-100])


def other_weights(folder):
    """Whole, and not those that were published."""
    variables = finished.load(folder).variables
    (step,) = (int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    store = checkpoint.Checkpoints(folder / "checkpoints")
    store.save(step, jax.tree.map(lambda x: x + 1, variables))
    store.close()


def other_fields(file, **fields):
    file.write_text(json.dumps(finished.read(file) | fields))


@pytest.mark.parametrize(
    "damage",
    [
        break_checkpoint,
        other_weights,
        lambda folder: shutil.rmtree(folder / "checkpoints"),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "data.json").write_text('{"mean": [0.0]}'),
        lambda folder: (folder / "data.json").unlink(),
        lambda folder: other_fields(folder / "data.json", class_names=list("fedcba")),
        lambda folder: other_fields(folder / "config.json", batch_size=15),
    ],
)
def test_what_is_damaged_is_made_anew(published, damage):
    folder = pretrained.unpacked(NAME)
    network = finished.load(folder)
    damage(folder)
    assert pretrained.unpacked(NAME) == folder
    again = finished.load(folder)
    same(again.variables, network.variables)
    assert (again.config, again.record) == (network.config, network.record)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing else is left


def test_another_process_may_be_faster(published, monkeypatch):
    write = pretrained.write

    def wait(folder, *given):
        write(folder, *given)
        number = folder.name.split(".")[-2]
        shutil.copytree(folder, folder.with_name(folder.name[1:].removesuffix(f".{number}.tmp")))

    monkeypatch.setattr(pretrained, "write", wait)
    folder = pretrained.unpacked(NAME)
    assert finished.load(folder).config["student"]["model"] == "speck_wide"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_cannot_be_made(published, tmp_path, monkeypatch):
    (tmp_path / "home").write_text("no folder")
    with pytest.raises(UserError, match="cannot write .*: Not a directory"):
        pretrained.unpacked(NAME)


def test_a_changed_entry_is_another_folder(published):
    first = pretrained.unpacked(NAME)
    change(published, note="of more noise")
    assert pretrained.unpacked(NAME) != first


# ------------------------------------------------------------------------------------------------ mistakes


def rewritten(**top):
    def write(folder):
        (folder / "manifest.json").write_text(json.dumps(manifest(folder) | top))

    return write


def cut(folder):
    part = folder / f"{NAME}.safetensors"
    part.write_bytes(part.read_bytes()[:-1])


def flipped(folder):
    part = folder / f"{NAME}.safetensors"
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)


def elsewhere(folder):
    (part,) = manifest(folder)["teachers"][NAME]["parts"]
    change(folder, parts=[part | {"file": "../passwords"}])


def other_hash(folder):
    change(folder, variables_sha256="0" * 64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / f"{NAME}.safetensors").unlink(), rf"/{NAME}.safetensors: no such file, and"),
        (cut, r"has [\d,]+ bytes, and should have [\d,]+; fetch it again"),
        (flipped, r"its SHA-256 is [0-9a-f]{64}, and should be [0-9a-f]{64}; fetch it again"),
        (other_hash, rf"the parts of '{NAME}' hold other weights than those whose SHA-256 it tells"),
        (rewritten(version=2), "manifest.json is of version 2, and this gkd_jax reads version 1"),
        (rewritten(teachers=[]), 'manifest.json: holds no "teachers" by name'),
        (elsewhere, r"what it says of 'speck-noise' is not what gkd_jax writes there \(a file called '../passwords'\)"),
        (functools.partial(change, recipe={}), r"is not what gkd_jax writes there \(no 'epochs'\)"),
        (functools.partial(change, data={}), r"is not what gkd_jax writes there \(no 'num_examples'\)"),
        (functools.partial(change, parts=[{"file": "x"}]), "is not what gkd_jax writes there"),
        (functools.partial(change, parts=None), "is not what gkd_jax writes there"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: cannot be read"),
        (lambda folder: shutil.rmtree(folder), "no list of pretrained teachers at .*; GKD_TEACHERS may name"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_files(published, distil, tmp_path, damage, message):
    damage(published)
    with pytest.raises(UserError, match=message) as caught:
        experiment.run(distil(), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "home").exists()


def test_weights_that_do_not_fit(published, distil, tmp_path):
    recipe = manifest(published)["teachers"][NAME]["recipe"]
    change(published, model="speck", recipe=recipe | {"student": {**recipe["student"], "model": "speck"}})
    message = (
        f"^pretrained:{NAME} does not fit the network 'speck' of this gkd_jax: batch_stats/stem/norm/mean is "
        r"\[10\], and should be \[6\]$"
    )
    with pytest.raises(UserError, match=message):
        experiment.run(distil("--config.teacher.model=speck"), tmp_path / "run")
    change(published, model="spook")
    with pytest.raises(UserError, match=rf"^pretrained:{NAME} is unknown model 'spook'.*; known: "):
        pretrained.unpacked(NAME)
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_it_in_a_sentence(published, file, tmp_path):
    def refused(*more):
        told = helpers.run("--config", file, "--workdir", tmp_path / "run", *more)
        assert (told.status, told.out) == (2, "")
        assert told.err.count("\n") == 1
        assert not (tmp_path / "run").exists()
        return told.err

    assert refused("--config.teacher.checkpoint=pretrained:speck-nose") == (
        f"gkd_jax: teacher.checkpoint: unknown pretrained teacher 'speck-nose' (did you mean '{NAME}'?); known: {NAME} "
        f"(listed in {published / 'manifest.json'})\n"
    )
    another = refused(f"--config.teacher.checkpoint=pretrained:{NAME}", "--config.teacher.model=speck")
    assert another.startswith("gkd_jax: teacher.model is 'speck', but ")
    assert f"/{NAME}-" in another
    assert "holds a 'speck_wide'" in another


@pytest.mark.slow
def test_the_command():
    call = [sys.executable, "-m", "experiments.publish_teacher", "--help"]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    assert "WORKDIR --name NAME" in done.stdout


# ------------------------------------------------------------------------------------------------ what is committed


@pytest.fixture
def of_the_repository(monkeypatch, tmp_path):
    monkeypatch.delenv(pretrained.VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = pretrained.manifest_file()
    assert file.parent == pathlib.Path(__file__).parents[2] / "experiments" / "teachers"
    return file


def test_every_committed_teacher_is_whole(of_the_repository):
    """Each file is listed and each listed file is there, with its hash; together they are not too large."""
    teachers = pretrained.read(of_the_repository)
    assert COMMITTED in teachers
    listed = [parts.Part(**part) for entry in teachers.values() for part in entry["parts"]]
    for part in listed:
        assert len(parts.read(of_the_repository.parent, part)) <= parts.LARGEST
    held = {path.name for path in of_the_repository.parent.iterdir() if path.suffix == ".safetensors"}
    assert held == {part.file for part in listed}
    assert sum(part.bytes for part in listed) <= publish_teacher.ALL
    assert "/" not in "".join(str(entry["recipe"]["data"]) for entry in teachers.values())


def test_the_committed_teacher_predicts(of_the_repository):
    entry = pretrained.read(of_the_repository)[COMMITTED]
    network = finished.load(pretrained.unpacked(COMMITTED))
    assert (network.config["student"]["model"], entry["params"]) == ("resnet20", 272_474)
    assert network.class_names[:3] == ("airplane", "automobile", "bird")
    assert 0.6 < entry["test_accuracy"] < 0.95


@pytest.mark.slow
def test_the_committed_teacher_on_real_images(of_the_repository, data_dir):
    """Its accuracy on 500 images is within three deviations of what the manifest says of 10,000."""
    arrays, _ = runpy.run_path(str(data_dir / "unpack.py"))["load"]("cifar10")
    network = finished.load(pretrained.unpacked(COMMITTED))
    right = network.predict(arrays["x_test"][:500]).argmax(-1) == arrays["y_test"][:500]
    told = pretrained.read(of_the_repository)[COMMITTED]["test_accuracy"]
    assert abs(right.mean() - told) < 3 * (told * (1 - told) / 500) ** 0.5
