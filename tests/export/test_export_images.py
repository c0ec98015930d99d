"""The images of an export: those of a set in memory as they are, those of a streamed one read when they are needed."""

import pathlib
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

TESTS = pathlib.Path(__file__).parents[1]
sys.path += [str(TESTS / "data"), str(TESTS / "interop")]
import state_dicts  # noqa: E402
import tfds_case  # noqa: E402

from gkd_jax import data, export  # noqa: E402
from gkd_jax.data import stream  # noqa: E402
from gkd_jax.export import images, run  # noqa: E402
from gkd_jax.export.options import Options  # noqa: E402
from gkd_jax.training import finished, imported  # noqa: E402

SIZE = 8


def noise(data_dir):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (300, 4, 4, 3)).astype(np.uint8), np.arange(300) % 3
    return {"x_train": x, "y_train": y, "x_test": x[:40], "y_test": y[:40]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of photographs of several sizes, 70 of them test images."""
    pytest.importorskip("grain", reason="grain, of the extra stream, is not installed")
    parent = tmp_path_factory.mktemp("sets")
    tfds_case.write(
        parent, "tiny", {"train": tfds_case.photographs(66), "validation": tfds_case.photographs(70, 1)}, classes=4
    )
    return parent


def test_a_set_in_memory():
    data.register("export_noise")(noise)
    loaded = data.load("export_noise")
    test = images.of_test(loaded)
    np.testing.assert_array_equal(test.images, loaded.test_images)
    np.testing.assert_array_equal(test.labels, loaded.test_labels)
    drawn, again = images.for_calibration(loaded), images.for_calibration(loaded)
    assert drawn.shape == (256, 4, 4, 3)
    np.testing.assert_array_equal(drawn, again)
    known = {image.tobytes() for image in loaded.train_images}
    assert len({image.tobytes() for image in drawn} & known) == 256  # each another one
    few = data.load("export_noise", num_train=30)
    np.testing.assert_array_equal(images.for_calibration(few), few.train_images)


def test_a_streamed_set(folder, monkeypatch):
    opened = stream.open_streamed("tfds:tiny", image_size=SIZE, data_dir=str(folder))
    test = images.of_test(opened)
    assert (test.images.shape, test.images.dtype) == ((70, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(test.labels, np.arange(70) % 4)
    assert images.for_calibration(opened).shape == (66, SIZE, SIZE, 3)
    monkeypatch.setattr(images, "_MOST", 65)
    few = images.of_test(opened)
    np.testing.assert_array_equal(few.images, test.images[:65])
    monkeypatch.setattr(images, "CALIBRATION", 5)
    assert images.for_calibration(opened).shape == (5, SIZE, SIZE, 3)


def test_a_streamed_run(folder, tmp_path, monkeypatch):
    """Imported, never evaluated, and asked about a part of the test split."""
    save_file({name: np.asarray(a) for name, a in state_dicts.resnet(classes=4).items()}, tmp_path / "w.safetensors")
    workdir, given = tmp_path / "run", {"data_dir": str(folder), "image_size": SIZE, "evaluate": False}
    imported.write(tmp_path / "w.safetensors", "resnet8", "tfds:tiny", workdir, **given)
    monkeypatch.setattr(images, "_MOST", 20)
    run.run(workdir, finished.read(workdir / "config.json"), Options(("safetensors",)))
    record = export.read(workdir)
    assert record["test_images"] == 20
    assert [row["kind"] for row in record["rows"]] == ["student (resnet8)", "safetensors", "safetensors, PyTorch"]
    assert max(row.get("difference", 0) for row in record["rows"]) <= 1e-6
    card = (workdir / "export" / "README.md").read_text()
    assert "On the first 20 of 70 test images" in card
    assert "The weights were imported from `w.safetensors`" in card
    assert "Unknown: the weights were trained elsewhere." in card
