"""`load` and `describe`: digits, registered functions, names; what a Dataset says of itself."""

import doctest
import json

import numpy as np
import pytest
from noise_case import noise
from sklearn.datasets import load_digits

from gkd_jax import data
from gkd_jax.data import sources
from gkd_jax.data.dataset import channel_statistics
from gkd_jax.errors import UserError

BOTH = pytest.mark.parametrize("read", [data.load, data.describe], ids=["load", "describe"])


pytestmark = pytest.mark.usefixtures("own_register")


def test_digits():
    loaded = data.load("digits", val_fraction=0.1)
    assert loaded.train_images.shape == (1294, 8, 8, 1)
    assert loaded.val_images.shape == (144, 8, 8, 1)
    assert loaded.test_images.shape == (359, 8, 8, 1)
    assert (loaded.pad, loaded.flip, loaded.num_views, loaded.num_classes) == (1, False, 9, 10)
    assert loaded.train_images.dtype == np.uint8
    assert (loaded.train_images.min(), loaded.train_images.max()) == (0, 255)
    assert (np.bincount(loaded.test_labels) > 20).all()
    described = data.describe("digits", val_fraction=0.1)
    assert described == ("digits", (8, 8, 1), 10, 1294, 144, 359, 1, False)


def test_the_three_splits_of_digits_hold_every_digit_once():
    loaded = data.load("digits", val_fraction=0.2, split_seed=4)
    bunch = load_digits()
    got = [
        (image.astype(float).ravel() * 16 / 255, label)
        for split in ("train", "val", "test")
        for image, label in zip(getattr(loaded, f"{split}_images"), getattr(loaded, f"{split}_labels"), strict=True)
    ]
    got_rows = sorted((tuple(np.rint(image).astype(int)), int(label)) for image, label in got)
    want_rows = sorted(
        (tuple(image.astype(int).ravel()), int(label)) for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert got_rows == want_rows


def test_test_images_do_not_depend_on_the_split():
    first, second = data.load("digits", val_fraction=0.3, split_seed=1), data.load("digits")
    np.testing.assert_array_equal(first.test_images, second.test_images)
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(first.std, second.std)
    assert second.val_images.shape == (0, 8, 8, 1)


def test_statistics_against_numpy():
    images = np.random.default_rng(0).integers(0, 256, (5000, 3, 4, 2), dtype=np.uint8)  # more than one part
    images[..., 1] = 51
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, [(images[..., 0] / 255).std(), 1 / 255], rtol=1e-12)  # constant: one grey level


def test_a_registered_function_is_a_source():
    seen = []

    @data.register("mine", flip=True)
    def mine(data_dir):
        seen.append(data_dir)
        return noise() | {"class_names": ["x", "y", "z"]}

    loaded = data.load("mine", val_fraction=0.25, data_dir="somewhere")
    assert (loaded.train_images.shape, loaded.pad, loaded.flip) == ((45, 8, 8, 3), 1, True)
    assert loaded.class_names == ("x", "y", "z")
    assert data.describe("mine", val_fraction=0.25, flip=False) == ("mine", (8, 8, 3), 3, 45, 15, 9, 1, False)
    assert seen == ["somewhere", None]
    assert "mine" in data.names()
    with pytest.raises(ValueError, match="'mine' is registered already"):
        data.register("mine")(lambda data_dir: noise())
    assert data.register("mine")(mine) is mine  # a cell that runs twice


@BOTH
def test_what_a_registered_function_returns_is_checked(read):
    data.register("list")(lambda data_dir: [1, 2])
    with pytest.raises(UserError, match="data source 'list' returned list; it must return a mapping with x_train"):
        read("list")
    data.register("floats")(lambda data_dir: noise() | {"x_train": np.zeros((60, 8, 8, 3))})
    with pytest.raises(UserError, match="data source 'floats': x_train has dtype float64"):
        read("floats")


def test_the_example_in_the_docstring():
    example = doctest.DocTestFinder(recurse=False).find(sources.register, globs=vars(sources).copy())[0]
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


@BOTH
@pytest.mark.parametrize(
    ("name", "hint"), [("digit", "'digits'"), ("CIFAR-100", None), ("npz:", "'npz:PATH'"), ("", None)]
)
def test_unknown_source(read, name, hint):
    with pytest.raises(UserError, match=f"unknown data source '{name}'.*known: cifar10, cifar100, digits, ") as caught:
        read(name)
    assert hint is None or f"did you mean {hint}" in str(caught.value)


@BOTH
def test_num_classes_must_agree(read):
    with pytest.raises(UserError, match="data.num_classes is 9 but digits"):
        read("digits", num_classes=9)
    assert read("digits", num_classes=10).num_classes == 10


def test_digest_tells_data_and_splits_apart():
    data.register("a")(lambda data_dir: noise())
    data.register("b")(lambda data_dir: noise() | {"y_test": np.zeros(9, int)})
    first = data.load("a", val_fraction=0.1)
    assert first.digest == data.load("a", val_fraction=0.1, pad=3, flip=True).digest
    others = [data.load("a", val_fraction=0.1, split_seed=1), data.load("a"), data.load("b", val_fraction=0.1)]
    assert len({first.digest, *(other.digest for other in others)}) == 4
    assert [other.source_digest == first.source_digest for other in others] == [True, True, False]


def test_a_teacher_that_saw_validation_images_is_found_out():
    data.register("a")(lambda data_dir: noise())
    data.register("b")(lambda data_dir: noise(61))
    student = data.load("a", val_fraction=0.2)
    record = lambda *args, **options: json.loads(json.dumps(data.load(*args, **options).record()))  # noqa: E731
    assert student.seen_by(record("a", val_fraction=0.2)) == 0
    assert student.seen_by(record("a", val_fraction=0.5)) == 0  # its larger split holds this one
    assert student.seen_by(record("a")) == 12
    other = data.load("a", val_fraction=0.2, split_seed=1)
    seen = student.seen_by(record("a", val_fraction=0.2, split_seed=1))
    assert seen == len(set(student.val_rows) & set(other.train_rows)) > 0
    few = data.load("a", num_train=55)
    assert student.seen_by(record("a", num_train=55)) == len(set(student.val_rows) & set(few.train_rows)) == 7
    assert student.seen_by(record("a", num_train=10)) == 0  # those that are never held out
    assert data.load("a", val_fraction=0.2, num_train=10).seen_by(record("a")) == 12
    assert student.seen_by(record("b", val_fraction=0.2)) is None


def test_few_images_to_train_on():
    data.register("a")(lambda data_dir: noise())
    few, whole = data.load("a", val_fraction=0.2, num_train=10), data.load("a", val_fraction=0.2)
    assert (len(few.train_images), len(few.train_labels), len(few.val_images)) == (10, 10, len(whole.val_images))
    np.testing.assert_array_equal(few.train_images, noise()["x_train"][few.train_rows])
    np.testing.assert_array_equal(few.mean, whole.mean)
    assert few.digest != whole.digest
    assert data.load("a", val_fraction=0.2, num_train=len(whole.train_images)).digest == whole.digest
    assert data.describe("a", val_fraction=0.2, num_train=10).num_train == 10
