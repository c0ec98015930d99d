"""TFDS: mocked, absent, damaged, and real array_record files."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gkd_jax import data
from gkd_jax.data import tfds as reader
from gkd_jax.errors import UserError


@pytest.mark.parametrize(("source", "classes"), [("cifar10", 10), ("tfds:cifar100", 100)])
def test_mocked_cifar(tmp_path, source, classes):
    with tfds.testing.mock_data(num_examples=40):
        loaded = data.load(source, val_fraction=0.1, data_dir=str(tmp_path))
    assert loaded.train_images.shape == (36, 32, 32, 3)
    assert loaded.val_images.shape == (4, 32, 32, 3)
    assert loaded.test_images.shape == (40, 32, 32, 3)
    assert loaded.train_images.dtype == np.uint8
    assert (loaded.num_classes, loaded.pad, loaded.flip, loaded.num_views) == (classes, 4, True, 162)
    assert loaded.mean.dtype == np.float32
    assert loaded.mean[0] == np.float32(0.4914 if classes == 10 else 0.5071)
    assert loaded.std[2] == np.float32(0.2616 if classes == 10 else 0.2761)
    assert "tensorflow" not in sys.modules or importlib.util.find_spec("tensorflow")


def test_another_set_of_images(tmp_path):
    with tfds.testing.mock_data(num_examples=40):
        loaded = data.load("tfds:mnist", data_dir=str(tmp_path))
    assert (loaded.image_shape, loaded.num_classes, loaded.pad, loaded.flip) == ((28, 28, 1), 10, 3, False)
    np.testing.assert_allclose(loaded.mean[0], loaded.train_images.mean() / 255, rtol=1e-5)


@pytest.mark.parametrize(("source", "classes"), [("cifar10", 10), ("cifar100", 100), ("tfds:cifar10", 10)])
def test_cifar_is_described_without_data(tmp_path, source, classes):
    described = data.describe(source, val_fraction=0.1, data_dir=str(tmp_path))
    assert described == (source, (32, 32, 3), classes, 45_000, 5_000, 10_000, 4, True)
    assert described.num_views == 162


def test_not_prepared_and_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"'cifar10' is not prepared in data.data_dir .*with TensorFlow, .*pip install \"gkd_jax\[prepare\]\""
    with pytest.raises(UserError, match=message):
        data.load("cifar10", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="the shape of the TFDS set 'mnist' is unknown until it is prepared"):
        data.describe("tfds:mnist", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ImportError("no", name="some_package"),
            r"'cifar10' is not prepared in .* for want of some_package: pip install",
        ),
        (ConnectionError("no route"), r"'cifar10' is not prepared in data.data_dir .*preparing it failed: no route"),
        (OSError(28, "No space left on device"), r"'cifar10' is not prepared in .* failed: .*No space left"),
    ],
)
def test_preparing_fails(tmp_path, monkeypatch, error, message):
    def fail(self):
        raise error

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=message):
        data.load("cifar10", data_dir=str(tmp_path))


@pytest.mark.parametrize("read", [data.load, data.describe])
def test_sets_that_are_no_image_classification(tmp_path, read):
    with pytest.raises(UserError, match=r"TFDS has no data set 'cifar1O' \(did you mean 'cifar10'\?\)"):
        read("tfds:cifar1O", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="'voc' has no features 'image' and 'label'; it has image, image/filename"):
        read("tfds:voc", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="TFDS cannot open 'cifar10:9.9.9' as array_record"):
        read("tfds:cifar10:9.9.9", data_dir=str(tmp_path))


def test_images_of_several_sizes():
    examples = [
        {"image": np.zeros((4, 4, 3), np.uint8), "label": 0},
        {"image": np.zeros((5, 4, 3), np.uint8), "label": 1},
    ]
    with pytest.raises(UserError, match=r"here: image 1 is \(5, 4, 3\) but image 0 is \(4, 4, 3\); all must be"):
        reader._decoded(examples, "here")


@pytest.fixture(scope="session")
def real_tfds(tmp_path_factory, request):
    """A folder with CIFAR-10 as array_record files: made by a Python with TensorFlow, or named by GKD_TFDS_DIR."""
    python = os.environ.get("GKD_TFDS_PYTHON") or (importlib.util.find_spec("tensorflow") and sys.executable)
    if python:
        script = request.getfixturevalue("data_dir") / "unpack.py"
        folder = tmp_path_factory.mktemp("tfds")
        subprocess.run([python, script, "cifar10", "--tfds", folder, "--limit", "300"], check=True, capture_output=True)
        return folder
    if "GKD_TFDS_DIR" in os.environ:
        return pathlib.Path(os.environ["GKD_TFDS_DIR"])
    return pytest.skip("no TensorFlow to prepare a data set with; set GKD_TFDS_PYTHON or GKD_TFDS_DIR")


@pytest.mark.slow
def test_real_files_hold_the_real_images(real_tfds, cifar10):
    loaded = data.load("cifar10", val_fraction=0.1, data_dir=str(real_tfds))
    described = data.describe("cifar10", val_fraction=0.1, data_dir=str(real_tfds))
    assert described.num_train == len(loaded.train_labels)
    assert described.num_test == len(loaded.test_labels)
    assert list(loaded.class_names) == cifar10[1]
    for ours, theirs in (("train", "train"), ("val", "train"), ("test", "test")):
        images, labels = cifar10[0][f"x_{theirs}"], cifar10[0][f"y_{theirs}"]
        known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        found = zip(getattr(loaded, f"{ours}_images"), getattr(loaded, f"{ours}_labels"), strict=True)
        assert all(known[image.tobytes()] == label for image, label in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (
            "cifar10-train.array_record-00000-of-00001",
            "split 'train' of the TFDS set 'cifar10': example 0 cannot be read",
        ),
        ("dataset_info.json", "TFDS cannot open 'cifar10' as array_record in data.data_dir"),
    ],
)
def test_a_file_cut_short_is_refused(real_tfds, tmp_path, damaged, message):
    for file in real_tfds.glob("cifar10/3.0.2/*"):
        copy = tmp_path / file.relative_to(real_tfds)
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_bytes()
        copy.write_bytes(content[: len(content) // 2] if file.name == damaged else content)
    with pytest.raises(UserError, match=message):
        data.load("cifar10", data_dir=str(tmp_path))
