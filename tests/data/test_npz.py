"""npz files: what is accepted, and one sentence for each way to be wrong. `load` and `describe` must agree."""

import io
import zipfile

import numpy as np
import pytest

from gkd_jax import data
from gkd_jax.errors import UserError


def arrays(**changes):
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": rng.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8),
        "y_test": np.arange(12) % 3,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


@pytest.fixture
def save(tmp_path):
    def write(save=np.savez, **changes):
        save(tmp_path / "set.npz", **arrays(**changes))
        return f"npz:{tmp_path / 'set.npz'}"

    return write


BOTH = pytest.mark.parametrize("read", [data.load, data.describe], ids=["load", "describe"])


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_read(save, write):
    source = save(write, y_train=(np.arange(30) % 3).astype(np.uint8), class_names=np.array(["ant", "bee", "cat"]))
    loaded = data.load(source, val_fraction=0.1, pad=1, flip=True)
    want = arrays()
    np.testing.assert_array_equal(loaded.train_images, want["x_train"][loaded.train_rows])
    np.testing.assert_array_equal(loaded.val_images, want["x_train"][loaded.val_rows])
    np.testing.assert_array_equal(loaded.val_labels, want["y_train"][loaded.val_rows])
    np.testing.assert_array_equal(loaded.test_images, want["x_test"])
    assert loaded.train_labels.dtype == loaded.test_labels.dtype == np.int32
    assert (loaded.class_names, loaded.num_classes) == (("ant", "bee", "cat"), 3)
    assert (len(loaded.train_rows), len(loaded.val_rows)) == (27, 3)
    described = data.describe(source, val_fraction=0.1, pad=1, flip=True)
    assert described == (source, (6, 5, 3), 3, 27, 3, 12, 1, True)
    assert described.num_views == loaded.num_views == 18


def test_grey_images_get_a_channel(save):
    grey = arrays()["x_train"][..., 0]
    source = save(x_train=grey, x_test=grey[:12])
    assert data.describe(source).image_shape == data.load(source).image_shape == (6, 5, 1)
    np.testing.assert_array_equal(data.load(source).train_images[..., 0], grey)


def test_absent_classes_are_given_by_number(save):
    source = save(y_train=np.arange(30) % 2 * 3)
    assert data.load(source, num_classes=5).class_names == ("0", "1", "2", "3", "4")
    assert data.describe(source, num_classes=5).num_classes == 5


def test_describe_reads_no_image(save, tmp_path):
    # More than what zipfile reads ahead
    source = save(x_train=np.zeros((30, 32, 32, 3), np.uint8), x_test=np.zeros((12, 32, 32, 3), np.uint8))
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("x_train.npy")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 60_000] ^= 0xFF  # a pixel: the member's checksum is now wrong
    path.write_bytes(content)
    assert data.describe(source).num_train == 30
    with pytest.raises(UserError, match=r"set.npz: damaged, cut short or no .npz file \(Bad CRC-32"):
        data.load(source)


@BOTH
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, r"set.npz: no array x_test; found x_train, y_test, y_train; needed are x_train, y_train,"),
        ({"y_train": np.arange(29) % 3}, r"y_train has 29 labels but x_train has 30 images"),
        ({"y_test": np.zeros(3, int)}, r"y_test has 3 labels but x_test has 12 images"),
        ({"x_train": np.zeros((30, 6, 5, 3), np.float32)}, r"x_train has dtype float32; images must be uint8, 0"),
        ({"x_train": np.zeros((30, 6, 5, 3), np.int64)}, r"x_train has dtype int64; images must be uint8"),
        ({"x_train": np.zeros((30, 6), np.uint8)}, r"x_train has shape \(30, 6\); images must be \[n, h, w, c\]"),
        ({"x_train": np.zeros((30, 3, 6, 5), np.uint8)}, r"x_train has shape .*, channels first"),
        ({"x_train": np.zeros((30, 6, 0, 3), np.uint8)}, r"at least one pixel"),
        ({"x_train": np.zeros((0, 6, 5, 3), np.uint8), "y_train": np.zeros(0, int)}, r"x_train is empty"),
        ({"x_test": np.zeros((0, 6, 5, 3), np.uint8), "y_test": np.zeros(0, int)}, r"x_test is empty"),
        ({"x_test": np.zeros((12, 6, 6, 3), np.uint8)}, r"x_test are \(6, 6, 3\) but those of x_train \(6, 5, 3\)"),
        ({"y_train": np.zeros(30, np.float64)}, r"y_train has dtype float64; labels must be integers"),
        ({"y_train": np.zeros(30, bool)}, r"y_train has dtype bool; labels must be integers"),
        ({"y_train": np.zeros((30, 1), int)}, r"y_train has shape \(30, 1\); labels must be \[n\]"),
        ({"y_train": np.arange(30) % 3 - 1}, r"y_train\[0\] is -1; labels must be 0 to 2"),
        ({"y_train": np.arange(30) % 2 * 5}, r"y_train\[1\] is 5; labels must be 0 to 1 .*distinct labels in y_train"),
        ({"y_test": np.arange(12) % 4}, r"y_test\[3\] is 3; labels must be 0 to 2"),
        ({"y_train": np.zeros(30, int)}, r"gives 1 classes; there must be at least 2"),
        ({"class_names": np.array(["a", "b"])}, r"y_train\[2\] is 2; labels must be 0 to 1 \(class_names gives 2"),
        ({"class_names": np.arange(3)}, r"class_names holds \[0, 1, 2\]; it must be a list of strings"),
        ({"x_train": np.array([None] * 30)}, r"x_train holds pickled Python objects, which are never loaded"),
        ({"y_train": np.array([{}] * 30)}, r"y_train holds pickled Python objects, which are never loaded"),
        ({"class_names": np.array(["a", None, "c"])}, r"class_names holds pickled Python objects"),
    ],
)  # fmt: skip
def test_faults(save, read, changes, message):
    with pytest.raises(UserError, match=message):
        read(save(**changes))


def test_float_images_with_nan_are_told_so(save):
    images = np.zeros((30, 6, 5, 3), np.float32)
    images[7] = np.nan
    with pytest.raises(UserError, match=r"x_train has dtype float32 and holds NaN; images must be uint8"):
        data.load(save(x_train=images))


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, r"data.val_fraction is 1.0; it must be at least 0 and below 1"),
        ({"val_fraction": 0.01}, r"data.val_fraction is 0.01, which leaves no validation image of 30"),
        ({"pad": -1}, r"data.pad is -1; for images of 6 x 5 it must be 0 to 4"),
        ({"pad": 5}, r"data.pad is 5; for images of 6 x 5 it must be 0 to 4"),
        ({"num_classes": 2}, r"y_train\[2\] is 2; labels must be 0 to 1 \(data.num_classes gives 2 classes\)"),
    ],
)
def test_options_that_do_not_fit(save, read, options, message):
    with pytest.raises(UserError, match=message):
        read(save(), **options)


@BOTH
def test_num_classes_against_names(save, read):
    with pytest.raises(UserError, match=r"data.num_classes is 4 but .*set.npz names 3 classes"):
        read(save(class_names=np.array(["a", "b", "c"])), num_classes=4)


@BOTH
def test_absent(tmp_path, read):
    with pytest.raises(UserError, match=r"none.npz: no such file"):
        read(f"npz:{tmp_path / 'none.npz'}")
    with pytest.raises(UserError, match=r": not a file"):
        read(f"npz:{tmp_path}")


@BOTH
@pytest.mark.parametrize("kept", [0, 10, 0.3, 0.7, 0.999])
def test_cut_short(save, tmp_path, read, kept):
    source = save()
    content = (tmp_path / "set.npz").read_bytes()
    (tmp_path / "set.npz").write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(UserError, match=r"set.npz: damaged, cut short or no .npz file"):
        read(source)


@BOTH
def test_not_a_zip_file(tmp_path, read):
    np.save(tmp_path / "set.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"set.npy: damaged, cut short or no .npz file"):
        read(f"npz:{tmp_path / 'set.npy'}")


@pytest.mark.parametrize(
    ("shape", "message"), [((30,), "y_train is cut short; its header promises 240 bytes"), ((2**62,), "cut short")]
)
def test_a_member_that_promises_more_than_it_holds(tmp_path, shape, message):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for name, value in arrays().items():
            content = io.BytesIO()
            np.save(content, value)
            archive.writestr(f"{name}.npy", header.getvalue() if name == "y_train" else content.getvalue())
    for read in (data.load, data.describe):
        with pytest.raises(UserError, match=message):
            read(f"npz:{tmp_path / 'set.npz'}")


@pytest.mark.parametrize("offset", range(0, 1400, 97))
def test_any_damaged_byte_is_read_or_refused(save, tmp_path, offset):
    source = save(np.savez_compressed)
    content = bytearray((tmp_path / "set.npz").read_bytes())
    content[offset % len(content)] ^= 0x5A
    (tmp_path / "set.npz").write_bytes(content)
    for read in (data.load, data.describe):
        try:
            read(source)
        except UserError as error:
            assert "set.npz" in str(error)  # noqa: PT017 - reading it, where the byte does not matter, is right too
