"""A data set on the host: three splits of images and labels, and what is to be done to an image."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gkd_jax.data import views
from gkd_jax.data.checks import Arrays
from gkd_jax.data.identified import Identified, Sizes
from gkd_jax.data.split import split_rows
from gkd_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(Identified):
    """Images and labels, unpadded and not normalised, as NumPy arrays.

    `mean` and `std` are of *all* training images of the source, the validation split among them, so that a teacher and
    a student with different splits see an image alike.

    Attributes:
      train_images, val_images, test_images: uint8 [n, h, w, c]; of validation and test split n may be 0.
      train_labels, val_labels, test_labels: int32 [n].
      labels: int32, of all the source's training images.
      pad: pixels of zeros around an image, of which crops are taken.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    val_images: np.ndarray
    val_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    labels: np.ndarray
    pad: int

    @property
    def num_views(self) -> int:
        """Number of distinct crops and mirror images of an image."""
        return views.num_views(self.pad, self.flip)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        _, height, width, channels = self.train_images.shape
        return height, width, channels

    @property
    def sizes(self) -> Sizes:
        """Number of images of each split."""
        return Sizes(len(self.train_labels), len(self.val_labels), len(self.test_labels))

    @property
    def nbytes(self) -> int:
        """Bytes of all images in memory."""
        return sum(images.nbytes for images in (self.train_images, self.val_images, self.test_images))

    def seen_by(self, record: Mapping[str, Any]) -> int | None:
        """Returns how many of these validation images were trained on by a network with that `record`.

        Args:
          record: from `Identified.record` of the network's data, a teacher's for example.

        Returns:
          None if it cannot be said, since the network's images came from another source.
        """
        # By the training images, since one of the two may not have read the test split; older records lack their digest
        known = "train_digest" if "train_digest" in record else "source_digest"
        if record[known] != getattr(self, known):
            return None
        if record["digest"] == self.digest:
            return 0
        seen, _ = split_rows(self.labels, record["val_fraction"], record["split_seed"], record.get("num_train"))
        return len(np.intersect1d(seen, self.val_rows, assume_unique=True))


def build(
    name: str,
    arrays: Arrays,
    *,
    val_fraction: float,
    split_seed: int,
    pad: int,
    flip: bool,
    num_train: int | None = None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Dataset:
    """Splits checked arrays and measures them.

    Args:
      name: of the source.
      arrays: from `gkd_jax.data.checks.check`.
      val_fraction: share of the training images to hold out, in [0, 1).
      split_seed: see `gkd_jax.data.split.split_rows`.
      pad: pixels of zeros a side.
      flip: whether mirror images are views.
      num_train: how many images to train on; None for all that are not held out.
      statistics: `(mean, std)` of each channel; None to compute them.

    Raises:
      UserError: if a split is empty or `pad` does not fit the images.
    """
    check_pad(pad, arrays.x_train.shape[1:3])
    train, val = split_rows(arrays.y_train, val_fraction, split_seed, num_train)
    mean, std = statistics or channel_statistics(arrays.x_train)
    train_digest, source_digest = _digests(arrays.x_train, arrays.y_train, arrays.x_test, arrays.y_test)
    few = train.tobytes() if len(train) + len(val) < len(arrays.y_train) else b""
    return Dataset(
        name=name,
        # Where the rows are all rows: no copy
        train_images=arrays.x_train[train] if len(train) < len(arrays.x_train) else arrays.x_train,
        train_labels=arrays.y_train[train],
        val_images=arrays.x_train[val],
        val_labels=arrays.y_train[val],
        test_images=arrays.x_test,
        test_labels=arrays.y_test,
        class_names=arrays.class_names,
        mean=np.asarray(mean, np.float32),
        std=np.asarray(std, np.float32),
        pad=pad,
        flip=flip,
        val_fraction=val_fraction,
        split_seed=split_seed,
        num_train=num_train,
        train_rows=train,
        val_rows=val,
        labels=arrays.y_train,
        train_digest=train_digest,
        source_digest=source_digest,
        # The rows and what they are rows of say as much as the images themselves, which need no second pass
        digest=hashlib.sha256(source_digest.encode() + val.tobytes() + few).hexdigest(),
    )


def check_pad(pad: int, size: tuple[int, ...]) -> None:
    """Raises `UserError` unless every crop of an image of that `size` (h, w), padded, shows some of it."""
    if not 0 <= pad < min(size):
        raise UserError(f"data.pad is {pad}; for images of {size[0]} x {size[1]} it must be 0 to {min(size) - 1}")


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each channel over all pixels, scaled to [0, 1]: float64 [c] each.

    The deviation is at least one grey level (1/255): a constant channel becomes zero, not NaN.

    Args:
      images: uint8 [n, h, w, c].
    """
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        # Counts are exact, so that the result depends on no order of summation; in parts, since `bincount` widens
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), 4096):
            counts += np.bincount(images[start : start + 4096, :, :, channel].ravel(), minlength=256)
        share = counts / counts.sum()
        means.append(share @ levels)
        stds.append(np.sqrt(share @ (levels - means[-1]) ** 2))
    return np.array(means), np.maximum(stds, 1 / 255)


def _digests(x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> tuple[str, str]:
    """Returns the SHA-256 of the first two arrays, and of all four, in one pass."""
    digest = hashlib.sha256()
    found = []
    for pair in ((x_train, y_train), (x_test, y_test)):
        for array in pair:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        found.append(digest.hexdigest())
    return found[0], found[1]
