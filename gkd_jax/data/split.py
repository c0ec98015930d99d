"""The validation split: which rows of the training images are held out."""

import math

import numpy as np

from gkd_jax.errors import UserError


def shuffled(num: int, seed: int) -> np.ndarray:
    """Returns a permutation of `range(num)` that depends on `num` and `seed` alone, int64 [num].

    It sorts the raw words of PCG64, whose stream NumPy guarantees for all time; that of `Generator.permutation` may
    change between versions, and a split must not.
    """
    return np.argsort(np.random.PCG64(seed).random_raw(num), kind="stable")


def val_size(num: int, val_fraction: float) -> int:
    """Returns how many of `num` training examples are held out: `val_fraction` of them, rounded.

    Raises:
      UserError: if `val_fraction` is outside [0, 1), or leaves the training or (unless it is 0) the validation split
        empty.
    """
    if not (math.isfinite(val_fraction) and 0 <= val_fraction < 1):
        raise UserError(f"data.val_fraction is {val_fraction}; it must be at least 0 and below 1")
    held_out = round(num * val_fraction)
    if val_fraction > 0 and held_out == 0:
        raise UserError(
            f"data.val_fraction is {val_fraction}, which leaves no validation image of {num} training images; "
            f"use 0 for no validation split or at least {1 / num:.2g}"
        )
    if held_out >= num:
        raise UserError(
            f"data.val_fraction is {val_fraction}, which leaves no training image of {num}; "
            f"it must be at most {(num - 1) / num:.6g}"
        )
    return held_out


def train_size(left: int, num_train: int | None) -> int:
    """Returns how many of the `left` examples that are not held out are trained on: `num_train`, or all.

    Raises:
      UserError: if there are not so many.
    """
    if num_train is None:
        return left
    if not 1 <= num_train <= left:
        raise UserError(f"data.num_train is {num_train}; it must be 1 to {left}, the training images not held out")
    return num_train


def split_rows(
    labels: np.ndarray, val_fraction: float, split_seed: int, num_train: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Splits the rows of a training set, stratified by class.

    Each class is shuffled, and its i-th of m members stands at the height (i + 1/2)/m; the lowest are held out, and of
    the others the highest are trained on. So every class gives its share to within one image, and with the same seed a
    smaller split lies inside a larger one.

    Args:
      labels: int [n].
      val_fraction: share of the rows to hold out, in [0, 1).
      split_seed: at least 0; the split depends on it and on the other arguments alone.
      num_train: how many rows to train on; None for all that are not held out.

    Returns:
      `(train, val)`: int32 rows, each in ascending order; together they are all rows, once, unless there is a
      `num_train`.

    Raises:
      UserError: if `split_seed` is negative, or as by `val_size` and `train_size`.
    """
    if split_seed < 0:
        raise UserError(f"data.split_seed is {split_seed}; it must be at least 0")
    held_out = val_size(len(labels), val_fraction)
    order = shuffled(len(labels), split_seed)
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    height = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    place = np.empty(len(labels))
    place[by_class] = height
    # `order` breaks ties, or among equal classes the first would always give the odd image
    upwards = order[np.argsort(place[order], kind="stable")].astype(np.int32)
    kept = train_size(len(labels) - held_out, num_train)
    return np.sort(upwards[len(labels) - kept :]), np.sort(upwards[:held_out])
