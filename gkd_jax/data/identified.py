"""What a data set is known by, beside its images: alike for one that is held in memory and one that is streamed."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np


class Sizes(NamedTuple):
    """Number of images of each split."""

    train: int
    val: int
    test: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Identified:
    """A data set beside its images: what a record of a run names it by.

    Attributes:
      name: the source.
      class_names: one for each class.
      mean, std: float32 [c], of pixels scaled to [0, 1].
      flip: whether mirror images are among an image's views.
      val_fraction, split_seed, num_train: what the split was made with.
      train_rows, val_rows: int32, where the examples stand among the source's training images.
      train_digest: SHA-256 of the source's training images and labels, of which some may be held out.
      source_digest: SHA-256 of the source's images and labels; where the test split was not read, of none in its place,
        which is that of no source.
      digest: SHA-256 of the source and its split; neither `flip`, `mean` nor `std` is in it.
    """

    name: str
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    flip: bool
    val_fraction: float
    split_seed: int
    num_train: int | None
    train_rows: np.ndarray
    val_rows: np.ndarray
    train_digest: str
    source_digest: str
    digest: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def record(self) -> dict[str, Any]:
        """Returns what to keep beside a checkpoint, as JSON can hold it: which images the network was trained on."""
        return {
            "source": self.name,
            "train_digest": self.train_digest,
            "source_digest": self.source_digest,
            "digest": self.digest,
            "val_fraction": self.val_fraction,
            "split_seed": self.split_seed,
            "num_train": self.num_train,
        }
