"""A data set that is streamed: what is known of it without its images, and which of them belong to which split."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gkd_jax.data.identified import Identified, Sizes
from gkd_jax.data.split import shuffled, train_size, val_size
from gkd_jax.data.stream.records import Records, name_of, open_splits
from gkd_jax.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, by which torchvision's and timm's networks for it see every image."""
_SMALLEST = 8


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Streamed(Identified):
    """A data set whose images are read when they are needed.

    `mean` and `std` are ImageNet's. The split is drawn by row and, unlike that of a set that is held in memory, not
    stratified, since labels are known only where the images were read. The digests are of what the files are, see
    `records.Splits`, and of the rows.

    Attributes:
      train, test: the records of the two splits on disk; without the test split that of training stands in its place,
        and is not looked at.
      tested: whether there is a test split.
      image_size: side of the crops.
    """

    train: Records
    test: Records
    tested: bool
    image_size: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a crop."""
        return self.image_size, self.image_size, len(self.mean)

    @property
    def sizes(self) -> Sizes:
        """Number of images of each split."""
        return Sizes(len(self.train_rows), len(self.val_rows), len(self.test) if self.tested else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all images in memory: none."""
        return 0

    def seen_by(self, record: Mapping[str, Any]) -> int | None:
        """Returns how many of these validation images a network with that `record` was trained on; see `Dataset`."""
        if record.get("train_digest") != self.train_digest:
            return None
        seen, _ = split_rows(len(self.train), record["val_fraction"], record["split_seed"], record.get("num_train"))
        return len(np.intersect1d(seen, self.val_rows, assume_unique=True))


def open_streamed(
    source: str,
    *,
    image_size: int,
    val_fraction: float | int = 0.0,
    split_seed: int = 0,
    num_train: int | None = None,
    num_classes: int | None = None,
    data_dir: str | None = None,
    flip: bool | None = True,
    test: bool = True,
) -> Streamed:
    """Opens a data set for streaming; no image is read.

    Args:
      source: "tfds:NAME", of a set that is prepared as array_record.
      image_size: side of the crops.
      val_fraction: share of the training images to hold out, in [0, 1).
      split_seed: of that split, which depends on the number of images, `val_fraction` and this alone.
      num_train: how many of the others to train on; by default all.
      num_classes: how many classes there are; it must be what the set says.
      data_dir: of TFDS; its own folder by default.
      flip: whether crops are mirrored at random; None for true.
      test: whether there is a test split, which must not be known where choices are made; see `data.load`.

    Raises:
      UserError: for another kind of source, or as by `records.open_splits` and `split.val_size`.
    """
    name = name_of(source)
    if image_size < _SMALLEST:
        raise UserError(f"data.image_size is {image_size}; it must be at least {_SMALLEST}")
    found = open_splits(name, data_dir)
    if num_classes not in (None, len(found.class_names)):
        raise UserError(
            f"data.num_classes is {num_classes} but {source} has {len(found.class_names)}; leave it out or say so"
        )
    both = found.digest if test else hashlib.sha256(found.train_digest.encode()).hexdigest()
    train, val = split_rows(len(found.train), float(val_fraction), split_seed, num_train)
    return Streamed(
        name=source,
        train=found.train,
        test=found.test if test else found.train,
        tested=test,
        train_rows=train,
        val_rows=val,
        class_names=found.class_names,
        mean=np.asarray(MEAN, np.float32),
        std=np.asarray(STD, np.float32),
        image_size=image_size,
        flip=flip is not False,
        val_fraction=float(val_fraction),
        split_seed=split_seed,
        num_train=num_train,
        train_digest=found.train_digest,
        source_digest=both,
        digest=hashlib.sha256(both.encode() + train.tobytes() + b"|" + val.tobytes()).hexdigest(),
    )


def split_rows(num: int, val_fraction: float, split_seed: int, num_train: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows `(train, val)` of `num` training images, int32, each in ascending order.

    Raises:
      UserError: as by `split.val_size` and `split.train_size`.
    """
    held_out = val_size(num, val_fraction)
    kept = train_size(num - held_out, num_train)
    rows = shuffled(num, split_seed).astype(np.int32)
    return np.sort(rows[num - kept :]), np.sort(rows[:held_out])
