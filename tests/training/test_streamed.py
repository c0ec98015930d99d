"""Runs whose images are streamed: they end, go on bit-equal, and take kept views for their teacher."""

import json
import sys

import helpers
import numpy as np
import pytest
from safetensors.numpy import save_file

sys.path.insert(0, str(__import__("pathlib").Path(__file__).parents[1] / "data"))
sys.path.insert(0, str(__import__("pathlib").Path(__file__).parents[1] / "interop"))
import state_dicts  # noqa: E402
import tfds_case  # noqa: E402

from gkd_jax import config, objective  # noqa: E402
from gkd_jax.errors import UserError  # noqa: E402
from gkd_jax.training import experiment, finished, imported, streamed  # noqa: E402
from gkd_jax.training.checkpoint import Checkpoints  # noqa: E402
from gkd_jax.training.resolve import resolve  # noqa: E402
from gkd_jax.training.stop import Interrupted  # noqa: E402

pytest.importorskip("grain", reason="grain, of the extra stream, is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parent = tmp_path_factory.mktemp("sets")
    images = tfds_case.photographs(72), tfds_case.photographs(10, seed=1)
    tfds_case.write(parent, "tiny", dict(zip(("train", "validation"), images, strict=True)), classes=4)
    return parent


@pytest.fixture(scope="module")
def teacher(folder, tmp_path_factory):
    """A finished run, with weights that were never trained."""
    place = tmp_path_factory.mktemp("teacher")
    save_file({name: np.asarray(a) for name, a in state_dicts.resnet(classes=4).items()}, place / "w.safetensors")
    imported.write(
        place / "w.safetensors",
        "resnet8",
        "tfds:tiny",
        place / "run",
        data_dir=str(folder),
        image_size=8,
        evaluate=False,
    )
    return place / "run"


def resolved(folder, teacher, tmp_path, **fields):
    c = config.default()
    c.epochs, c.batch_size, c.cpu_devices, c.checkpoint_every = 3, 8, 1, 1
    c.data.source, c.data.data_dir, c.data.image_size, c.data.workers = "tfds:tiny", str(folder), 8, 0
    c.data.val_fraction = 0.5
    c.teacher.model, c.teacher.checkpoint, c.teacher.cache_dir = "resnet8", str(teacher), str(tmp_path / "cache")
    c.student.model = "speck"
    c.plots = c.tensorboard = False
    c.objective.terms.kd = objective.block("kd", weight=0.5)
    for path, value in fields.items():
        place = c
        *parents, name = path.split("__")
        for parent in parents:
            place = place[parent]
        place[name] = value
    return resolve(c)


def curve(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "views:2"])
def test_a_streamed_run_ends_and_goes_on_bit_equal(folder, teacher, tmp_path, cache, capsys):
    given = resolved(folder, teacher, tmp_path, teacher__cache=cache)
    whole = experiment.run(given, tmp_path / "whole")
    assert whole["student"]["steps"] == 12
    assert 0 <= whole["student"]["test_accuracy"] <= 1
    with pytest.raises(Interrupted):
        experiment.run(given, tmp_path / "parts", helpers.StopAt(5))
    store = Checkpoints(tmp_path / "parts" / finished.CHECKPOINTS)
    step = store.latest
    note = json.loads(store.note(step)["stream"])
    store.close()
    assert 0 < step < 12
    assert (note["step"], note["examples"], note["batch_size"]) == (step, 36, 8)
    assert (note["kept"] is None) == (cache == "none")
    parts = experiment.run({**given, "data": {**given["data"], "workers": "auto"}}, tmp_path / "parts")
    assert parts["student"]["params_sha256"] == whole["student"]["params_sha256"]
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    said = capsys.readouterr().err
    assert ("1 of 1 parts are missing" in said) == (cache != "none")
    assert experiment.evaluate(tmp_path / "whole").splitlines()[1].startswith("validation accuracy")


@pytest.mark.slow
def test_kept_views_of_all_classes_teach_as_the_teacher_does(folder, teacher, tmp_path, monkeypatch):
    """The teacher, asked at every step about the same crops, differs by what float16 leaves of its answers alone."""
    given = resolved(folder, teacher, tmp_path, teacher__cache="views:2", teacher__cache_top=4)
    experiment.run(given, tmp_path / "kept")
    made = streamed.StreamedBatches.make

    def forgetful(self, axes=("data",)):
        make = made(self, axes)
        return lambda *row: make(*row)._replace(teacher={})

    monkeypatch.setattr(streamed.StreamedBatches, "make", forgetful)
    experiment.run(given, tmp_path / "asked")
    kept, asked = ([record["terms"]["kd"]["value"] for record in curve(tmp_path / name)] for name in ("kept", "asked"))
    assert min(asked) > 0.01
    assert kept != asked
    np.testing.assert_allclose(kept, asked, rtol=0.01)


@pytest.mark.slow
def test_several_seeds_need_one_stream(folder, teacher, tmp_path):
    given = resolved(folder, teacher, tmp_path, seeds=(0, 1))
    with pytest.raises(UserError, match="several seeds need seeds_share_batches = true"):
        experiment.run(given, tmp_path / "run")
    given = resolved(folder, teacher, tmp_path, seeds=(0, 1), seeds_share_batches=True, epochs=1)
    found = experiment.run(given, tmp_path / "run")
    assert set(found["student"]["seeds"]) == {"0", "1"}


def test_crd_which_knows_all_labels_is_refused(folder, teacher, tmp_path):
    given = resolved(folder, teacher, tmp_path)
    given["objective"]["terms"]["crd"] = objective.resolve(
        {
            "terms": {"crd": objective.block("crd", weight=0.8).to_dict()},
            **{k: v for k, v in given["objective"].items() if k != "terms"},
        }
    )["terms"]["crd"]
    with pytest.raises(UserError, match="labels"):
        experiment.run(given, tmp_path / "run")


def test_strong_views(folder, teacher, tmp_path):
    given = resolved(folder, teacher, tmp_path, epochs=1)
    given["objective"]["terms"]["kd"]["view"] = "strong"
    assert experiment.run(given, tmp_path / "run")["student"]["steps"] == 4


def test_temperatures_that_kept_views_are_not_for():
    block = {"weight": 1.0}
    rising = {"name": "linear", "start": 1.0, "end": 4.0}
    terms = {
        "ce": block,
        "plain": {**block, "temperature": 1.0},
        "soft": {**block, "temperature": 4.0},
        "off": {"weight": 0.0, "temperature": 4.0},
        "rising": {**block, "temperature": rising},
    }
    config = {"objective": {"terms": terms}}
    assert streamed.softened(config, 10, 1000) == ["soft", "rising"]
    assert streamed.softened(config, 10, 10) == []
