"""Image classification sets of TensorFlow Datasets, read without TensorFlow.

TFDS needs TensorFlow to *prepare* a set (download it and write it down as array_record files) but only Pillow to *read*
one, so a set is prepared once, anywhere, and read everywhere.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from gkd_jax.data.checks import SPLITS
from gkd_jax.errors import UserError, nearest


def _folder(data_dir: str | None) -> str:
    return f"data.data_dir {data_dir}" if data_dir else "the default folder of TFDS (data.data_dir is not set)"


def builder(name: str, data_dir: str | None) -> Any:
    """Returns the set's TFDS builder; nothing is read or downloaded yet.

    Raises:
      UserError: if TFDS knows no such set, or it is not one of images with one class each.
    """
    import tensorflow_datasets as tfds  # slow to import

    try:
        made = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        close = nearest(name, tfds.list_builders(with_community_datasets=False))
        raise UserError(f"TFDS has no data set {name!r}{close}, and {_folder(data_dir)} holds none") from error
    # A version or configuration that the set has not, a damaged dataset_info.json, whatever the set's own script does
    except Exception as error:
        raise UserError(f"TFDS cannot open {name!r} as array_record in {_folder(data_dir)}: {error}") from error
    features = made.info.features
    if not {"image", "label"} <= set(features):
        raise UserError(f"the TFDS set {name!r} has no features 'image' and 'label'; it has {', '.join(features)}")
    if not isinstance(features["label"], tfds.features.ClassLabel):
        raise UserError(f"the feature 'label' of the TFDS set {name!r} is {features['label']}; it must be a ClassLabel")
    return made


def _prepare(made: Any, name: str, data_dir: str | None) -> None:
    needed = f"the TFDS set {name!r} is not prepared in {_folder(data_dir)}"
    extra = 'pip install "gkd_jax[prepare]", or copy the prepared set there'
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"{needed}, and TFDS prepares sets with TensorFlow, which is not installed: {extra}")
    try:
        made.download_and_prepare()
    except ImportError as error:
        raise UserError(f"{needed}, and cannot be for want of {error.name or error}: {extra}") from error
    # Whatever can go wrong with a server, an archive, a disk or the set's own script
    except Exception as error:
        raise UserError(f"{needed}, and downloading and preparing it failed: {error}") from error


def _source(made: Any, name: str, data_dir: str | None, split: str) -> Any:
    try:
        return made.as_data_source(split=split)
    except ValueError as error:
        raise UserError(
            f"the TFDS set {name!r} has no split {split!r} ({error}); it must have train and test"
        ) from error


def _decoded(source: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a split into one array, image by image, so that no more than one copy of it is ever held."""
    images, labels = np.empty(0, np.uint8), np.empty(len(source), np.int64)
    for row in range(len(source)):
        try:
            example = source[row]
        except Exception as error:  # array_record, protobuf and Pillow each have their own
            raise UserError(f"{where}: example {row} cannot be read; prepare the set again ({error})") from error
        image = example["image"]
        if row == 0:
            images = np.empty((len(source), *image.shape), image.dtype)
        elif image.shape != images.shape[1:]:
            raise UserError(
                f"{where}: image {row} is {image.shape} but image 0 is {images.shape[1:]}; all must be of one size"
            )
        images[row], labels[row] = image, example["label"]
    return images, labels


def read(name: str, data_dir: str | None, splits: Sequence[str] = SPLITS) -> dict[str, Any]:
    """Returns all images and labels of these splits, prepared first if need be; another one is not opened.

    Takes about 0.15 ms for an image of CIFAR.

    Raises:
      UserError: as by `builder`, or if the set cannot be prepared or read, has no such splits or images of several
        sizes.
    """
    made = builder(name, data_dir)
    try:
        sources = {split: _source(made, name, data_dir, split) for split in splits}
    # What TFDS raises where a set is not there. Asked this way round, because `is_prepared` is False of mocked data
    except (KeyError, AssertionError, FileNotFoundError):
        _prepare(made, name, data_dir)
        sources = {split: _source(made, name, data_dir, split) for split in splits}
    raw: dict[str, Any] = {"class_names": made.info.features["label"].names}
    for split, source in sources.items():
        raw[f"x_{split}"], raw[f"y_{split}"] = _decoded(source, f"the split {split!r} of the TFDS set {name!r}")
    return raw


def shapes(name: str, data_dir: str | None) -> tuple[tuple[int, int, int], int, int, int] | None:
    """Returns `((h, w, c), classes, training images, test images)` without reading an image, None if not prepared.

    Raises:
      UserError: as by `builder`, or if the set has images of several sizes or lacks a split.
    """
    made = builder(name, data_dir)
    if not made.is_prepared():
        return None
    shape, splits = made.info.features["image"].shape, made.info.splits
    if None in shape:
        raise UserError(f"images of the TFDS set {name!r} are {shape}; all must be of one size")
    if not {"train", "test"} <= set(splits):
        raise UserError(f"the TFDS set {name!r} has the splits {', '.join(splits)}; it must have train and test")
    classes = made.info.features["label"].num_classes
    return shape, classes, splits["train"].num_examples, splits["test"].num_examples
