"""`load(test=False)`: nothing of the test split is read, and what was loaded is known for what it is."""

import hashlib
import json
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from noise_case import noise

from gkd_jax import data
from gkd_jax.data import tfds as reader
from gkd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("own_register")


class Watched(dict):
    """Arrays that tell which of them were looked at."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self.seen = set()

    def __getitem__(self, name):
        self.seen.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.seen.update({name} & set(self))
        return super().get(name, default)


def same_training(without, normal):
    for name in ("train_images", "train_labels", "val_images", "val_labels", "train_rows", "val_rows", "mean", "std"):
        np.testing.assert_array_equal(getattr(without, name), getattr(normal, name))
    assert without.class_names == normal.class_names
    assert without.test_images.shape == (0, *normal.test_images.shape[1:])
    assert without.test_images.dtype == np.uint8
    assert without.test_labels.shape == (0,)


def test_of_a_registered_function_nothing_else_is_looked_at():
    watched = Watched(noise())
    data.register("watched")(lambda data_dir: watched)
    without = data.load("watched", val_fraction=0.1, test=False)
    assert watched.seen == {"x_train", "y_train"}
    normal = data.load("watched", val_fraction=0.1)
    assert watched.seen == {"x_train", "y_train", "x_test", "y_test"}
    same_training(without, normal)


def test_a_registered_function_may_leave_the_test_split_out():
    arrays = {name: noise()[name] for name in ("x_train", "y_train")}
    data.register("half")(lambda data_dir: arrays)
    assert len(data.load("half", test=False).train_images) == 60
    with pytest.raises(UserError, match="no array x_test, y_test; found x_train, y_train"):
        data.load("half")


def test_of_a_file_the_test_arrays_are_not_read(tmp_path):
    whole, spoilt = tmp_path / "whole.npz", tmp_path / "spoilt.npz"
    np.savez(whole, **noise(), class_names=list("abc"))
    with zipfile.ZipFile(whole) as good, zipfile.ZipFile(spoilt, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, b"no array" if "test" in name else good.read(name))
    same_training(data.load(f"npz:{spoilt}", test=False), data.load(f"npz:{whole}"))
    with pytest.raises(UserError, match="damaged"):
        data.load(f"npz:{spoilt}")


def test_of_tfds_the_test_split_is_not_opened(tmp_path, monkeypatch):
    opened, source = [], reader._source
    monkeypatch.setattr(reader, "_source", lambda *given: opened.append(given[-1]) or source(*given))
    for name in ("cifar10", "tfds:mnist"):
        with tfds.testing.mock_data(num_examples=20):
            without = data.load(name, val_fraction=0.1, data_dir=str(tmp_path), test=False)
            assert opened == ["train"]
            same_training(without, data.load(name, val_fraction=0.1, data_dir=str(tmp_path)))
        opened.clear()


def test_digits():
    same_training(data.load("digits", val_fraction=0.1, test=False), data.load("digits", val_fraction=0.1))


def sha256(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def test_digests():
    data.register("a")(lambda data_dir: noise())
    data.register("b")(lambda data_dir: noise() | {"x_test": 255 - noise()["x_test"]})
    a, b = data.load("a", val_fraction=0.1), data.load("b", val_fraction=0.1)
    arrays = noise()
    four = [arrays[name] if "x" in name else arrays[name].astype(np.int32) for name in arrays]
    # As it always was: directories of runs and caches of teachers are known by these
    assert a.source_digest == sha256(*four)
    assert a.digest == hashlib.sha256(a.source_digest.encode() + a.val_rows.tobytes()).hexdigest()
    assert a.train_digest == b.train_digest == sha256(*four[:2])
    without = [data.load(name, val_fraction=0.1, test=False) for name in "ab"]
    assert without[0].digest == without[1].digest
    assert without[0].source_digest == without[1].source_digest
    assert without[0].train_digest == a.train_digest
    other = data.load("a", val_fraction=0.1, split_seed=1, test=False)
    assert len({a.digest, b.digest, without[0].digest, other.digest}) == 4


def test_a_teacher_of_either_kind_is_known_by_its_training_images():
    data.register("a")(lambda data_dir: noise())
    data.register("b")(lambda data_dir: noise(61))
    student = data.load("a", val_fraction=0.2, test=False)

    def record(*args, **options):
        return json.loads(json.dumps(data.load(*args, **options).record()))

    for test in (False, True):
        assert student.seen_by(record("a", val_fraction=0.2, test=test)) == 0
        assert student.seen_by(record("a", test=test)) == 12
        assert data.load("a", val_fraction=0.2).seen_by(record("a", test=test)) == 12
        assert student.seen_by(record("b", val_fraction=0.2, test=test)) is None
    old = {name: value for name, value in record("a").items() if name != "train_digest"}
    assert data.load("a", val_fraction=0.2).seen_by(old) == 12
    assert student.seen_by(old) is None
