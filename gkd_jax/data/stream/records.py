"""The encoded images of a TFDS set, by row, read from its array_record files without TensorFlow."""

import bisect
import hashlib
import itertools
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from gkd_jax.data import tfds
from gkd_jax.errors import UserError

_TRAIN = "train"
_TESTS = ("test", "validation")
# Sets whose split "test" has no labels
_LABELLED = {"imagenet2012": "validation"}
# Classes, training and test images of sets that can be described without being there
_KNOWN = {"imagenet2012": (1000, 1_281_167, 50_000)}


class Record(NamedTuple):
    """One example as it is on disk.

    Attributes:
      encoded: the image's file, a JPEG mostly.
      label: its class.
    """

    encoded: bytes
    label: int


class Records:
    """The examples of one split, in the order of its files; it can be sent to worker processes.

    Attributes:
      where: the set and the split, for messages.
    """

    def __init__(self, source: Any, files: list[tuple[str, int]], classes: int, where: str):
        """Opens nothing: a file is opened by the first look into it.

        Args:
          source: of TFDS, whose images are not decoded.
          files: name of each, and how many of the split's examples it holds.
          classes: labels are below it.
          where: the set and the split.
        """
        self._source, self._files, self._classes, self.where = source, files, classes, where
        self._ends = list(itertools.accumulate(count for _, count in files))

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._source)

    def __getitem__(self, row: int) -> Record:
        """Returns an example.

        Raises:
          UserError: if it cannot be read, or its label is none; the message names file and record.
        """
        try:
            example = self._source[row]
            encoded, label = bytes(example["image"]), int(example["label"])
        except Exception as error:  # array_record, protobuf and TFDS each have their own
            raise UserError(f"{self.place(row)}: cannot be read; prepare the set again ({_first(error)})") from error
        if not 0 <= label < self._classes:
            raise UserError(f"{self.place(row)}: its label is {label}; labels must be 0 to {self._classes - 1}")
        return Record(encoded, label)

    def place(self, row: int) -> str:
        """Returns where an example stands: file, and number of the record in it."""
        file = bisect.bisect_right(self._ends, row)
        if file >= len(self._files):  # of mocked data
            return f"{self.where}, example {row}"
        return f"{self._files[file][0]}, record {row - (self._ends[file - 1] if file else 0)}"


class Splits(NamedTuple):
    """A TFDS set that is there, before any of its images is read.

    Attributes:
      train, test: the examples.
      class_names: one for each class.
      digest: SHA-256 of its name, version, classes, and of the name and size of every file: the images themselves,
        140 GB of ImageNet, are not read for it.
      train_digest: likewise, of the training split alone.
    """

    train: Records
    test: Records
    class_names: tuple[str, ...]
    digest: str
    train_digest: str


def name_of(source: str) -> str:
    """Returns what TFDS calls a `data.source`; raises `UserError` if that cannot be streamed."""
    kind, _, name = source.partition(":")
    if kind != "tfds" or not name:
        raise UserError(f"data.source is {source!r}; with data.image_size it is streamed, and must be tfds:NAME")
    return name


def open_splits(name: str, data_dir: str | None) -> Splits:
    """Opens a set of TFDS that is prepared as array_record.

    The test images are those of the split "test", or of "validation" where there is none, as in ImageNet.

    Args:
      name: as TFDS has it, "imagenet2012" for instance.
      data_dir: of TFDS; its own folder by default.

    Raises:
      UserError: if TFDS knows no such set, or it is not of images with classes, not prepared, or lacks a split.
    """
    import tensorflow_datasets

    made = tfds.builder(name, data_dir)
    splits = made.info.splits
    if not splits:
        raise UserError(
            f"the TFDS set {name!r} is not prepared in {data_dir or 'the default folder of TFDS'}; prepare it there "
            "as array_record: images that are streamed are not downloaded by a run"
        )
    test = _LABELLED.get(made.name) or next((split for split in _TESTS if split in splits), _TESTS[0])
    for split in (_TRAIN, test):
        if split not in splits:
            raise UserError(f"the TFDS set {name!r} has the splits {', '.join(splits)}; it must have {_TRAIN}, {test}")
    raw = {"image": tensorflow_datasets.decode.SkipDecoding()}
    classes = tuple(made.info.features["label"].names)
    found, digests = {}, {}
    for split in (_TRAIN, test):
        where = f"the split {split!r} of the TFDS set {name!r}"
        try:
            source = made.as_data_source(split=split, decoders=raw)
            files = [(str(part.filename), int(part.take)) for part in splits[split].file_instructions]
        except Exception as error:  # files of another format, or gone
            raise UserError(f"{where} cannot be opened as array_record ({_first(error)})") from error
        if not len(source):
            raise UserError(f"{where} is empty; it must hold at least one image")
        found[split] = Records(source, files, len(classes), where)
        digests[split] = _digest(str(made.info.full_name), classes, files)
    both = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
    return Splits(found[_TRAIN], found[test], classes, both, digests[_TRAIN])


def sizes(name: str, data_dir: str | None) -> tuple[int, int, int]:
    """Returns the number of classes, of training and of test images; of ImageNet even where it is not there.

    Raises:
      UserError: as by `open_splits`.
    """
    if name in _KNOWN and not tfds.builder(name, data_dir).info.splits:
        return _KNOWN[name]
    found = open_splits(name, data_dir)
    return len(found.class_names), len(found.train), len(found.test)


def _digest(full_name: str, classes: tuple[str, ...], files: list[tuple[str, int]]) -> str:
    facts = [[pathlib.PurePath(name).name, count, _size(name)] for name, count in files]
    return hashlib.sha256(json.dumps([full_name, classes, facts]).encode()).hexdigest()


def _size(file: str) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:  # of mocked data, or in a bucket: the first read will tell
        return None


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def labels(records: Records, rows: np.ndarray) -> np.ndarray:
    """Returns the labels of some examples, int32; it reads all their images, which of ImageNet takes minutes."""
    return np.array([records[int(row)].label for row in rows], np.int32)
