"""What a source's raw arrays must be before anything is built on them; each fault is said in one sentence.

In all messages `where` is the file or the source, and the arrays are called by their names in an npz.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gkd_jax.errors import UserError

SPLITS = ("train", "test")


def arrays_of(splits: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the images and labels of these splits."""
    return tuple(f"{kind}_{split}" for split in splits for kind in "xy")


ARRAYS = arrays_of(SPLITS)


def required(where: str, given: Sequence[str], splits: Sequence[str] = SPLITS) -> None:
    """Raises `UserError` unless the arrays of all `splits` are among the names `given`."""
    needed = arrays_of(splits)
    missing = [name for name in needed if name not in given]
    if missing:
        held = ", ".join(sorted(given)) or "nothing"
        raise UserError(f"{where}: no array {', '.join(missing)}; found {held}; needed are {', '.join(needed)}")


def image_shape(where: str, name: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int]:
    """Returns `(h, w, c)` of an image array with that `shape` and `dtype`.

    Raises:
      UserError: unless it is uint8 [n, h, w, c], or [n, h, w] for one channel, without an empty axis.
    """
    if dtype != np.uint8:
        raise UserError(f"{where}: {name} has dtype {dtype}; images must be uint8, 0 to 255")
    if len(shape) not in (3, 4):
        raise UserError(f"{where}: {name} has shape {shape}; images must be [n, h, w, c] or [n, h, w]")
    if shape[0] == 0:
        raise UserError(f"{where}: {name} is empty; it must hold at least one image")
    if 0 in shape:
        raise UserError(f"{where}: {name} has shape {shape}; images must have at least one pixel and one channel")
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4:
        raise UserError(f"{where}: {name} has shape {shape}, channels first; images must be [n, h, w, c]")
    height, width, channels = (*shape[1:], 1)[:3]
    return height, width, channels


def same_shape(where: str, train: tuple[int, int, int], test: tuple[int, int, int]) -> None:
    """Raises `UserError` unless training and test images are of one shape `(h, w, c)`."""
    if train != test:
        raise UserError(f"{where}: images of x_test are {test} but those of x_train {train}; they must be alike")


def labels(where: str, name: str, values: np.ndarray, num_images: int) -> None:
    """Raises `UserError` unless `values` are integers [n], one for each of `num_images` images."""
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{where}: {name} has dtype {values.dtype}; labels must be integers from 0")
    if values.ndim != 1:
        raise UserError(f"{where}: {name} has shape {values.shape}; labels must be [n], one integer an image")
    if len(values) != num_images:
        images = name.replace("y_", "x_")
        raise UserError(f"{where}: {name} has {len(values)} labels but {images} has {num_images} images")


def label_range(where: str, name: str, values: np.ndarray, num_classes: int, origin: str) -> None:
    """Raises `UserError` unless all labels are in [0, num_classes); `origin` says where that count comes from."""
    wrong = (values < 0) | (values >= num_classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{where}: {name}[{row}] is {values[row]}; labels must be 0 to {num_classes - 1} ({origin} gives "
            f"{num_classes} classes)"
        )


def count_classes(
    where: str, train_labels: np.ndarray, class_names: Sequence[str] | None, num_classes: int | None
) -> tuple[int, str]:
    """Returns the number of classes, and where it comes from.

    It is `num_classes`, or else the number of `class_names`, or else of distinct training labels.

    Raises:
      UserError: if the first two disagree, or there are fewer than two classes.
    """
    if num_classes is not None and class_names is not None and num_classes != len(class_names):
        raise UserError(
            f"data.num_classes is {num_classes} but {where} names {len(class_names)} classes; "
            f"it must be {len(class_names)} or left out"
        )
    if num_classes is not None:
        count, origin = num_classes, "data.num_classes"
    elif class_names is not None:
        count, origin = len(class_names), "class_names"
    else:
        count, origin = (
            len(np.unique(train_labels)),
            "the number of distinct labels in y_train, without data.num_classes,",
        )
    if count < 2:
        raise UserError(f"{where}: {origin} gives {count} classes; there must be at least 2")
    return count, origin


def names_of(where: str, given: Any) -> tuple[str, ...] | None:
    """Returns `class_names` as strings, None if there are none.

    Raises:
      UserError: if they are not a list of strings.
    """
    if given is None:
        return None
    names = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in np.asarray(given).tolist()]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: class_names holds {names[:3]}; it must be a list of strings")
    return tuple(names)


class Arrays(NamedTuple):
    """A source's arrays after all checks.

    Attributes:
      x_train, x_test: uint8 [n, h, w, c], contiguous; n is 0 of a test split that was left out.
      y_train, y_test: int32 [n].
      class_names: one for each class; "0", "1", ... where the source has none.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]


def check(where: str, raw: Mapping[str, Any], num_classes: int | None, splits: Sequence[str] = SPLITS) -> Arrays:
    """Returns the arrays of `raw` after every check of this file.

    Args:
      where: the file or source, for messages.
      raw: `x_train`, `y_train`, `x_test`, `y_test` and, where there are any, `class_names`.
      num_classes: what the user says; None to count.
      splits: that are wanted, "train" among them; nothing of another one is looked at.

    Raises:
      UserError: that names what is wrong.
    """
    required(where, list(raw), splits)
    given = {name: np.asarray(raw[name]) for name in arrays_of(splits)}
    shapes = {}
    for split in splits:
        images = given[f"x_{split}"]
        if np.issubdtype(images.dtype, np.floating) and np.isnan(images).any():
            raise UserError(
                f"{where}: x_{split} has dtype {images.dtype} and holds NaN; images must be uint8, 0 to 255"
            )
        shapes[split] = image_shape(where, f"x_{split}", images.shape, images.dtype)
        labels(where, f"y_{split}", given[f"y_{split}"], len(images))
    same_shape(where, shapes["train"], shapes.get("test", shapes["train"]))
    names = names_of(where, raw.get("class_names"))
    count, origin = count_classes(where, given["y_train"], names, num_classes)
    for split in splits:
        label_range(where, f"y_{split}", given[f"y_{split}"], count, origin)
    none: dict[str, np.ndarray] = {"x_test": np.zeros((0, *shapes["train"]), np.uint8), "y_test": np.zeros(0, np.int32)}
    given = {**none, **given}
    x_train, x_test = (
        np.ascontiguousarray(given[name].reshape(-1, *shapes["train"])) for name in ("x_train", "x_test")
    )
    y_train, y_test = (given[name].astype(np.int32) for name in ("y_train", "y_test"))
    return Arrays(x_train, y_train, x_test, y_test, names or tuple(map(str, range(count))))
