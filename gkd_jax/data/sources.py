"""Where images come from: data sets by name, registered functions, files; `load` and `describe`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gkd_jax import registry
from gkd_jax.data import checks, dataset, digits, npz, split, tfds, views
from gkd_jax.errors import UserError, unknown

Read = Callable[[str | None], Mapping[str, Any]]  # data_dir -> the arrays, by their names in an npz
Shapes = tuple[tuple[int, int, int], int, int, int]  # (h, w, c), classes, training images, test images
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean, std

_TRAIN = ("train",)


class _Source(NamedTuple):
    """`shapes(data_dir, num_classes)` answers without reading images; None where that cannot be.

    `read_train` reads the training split alone; None where all is read at once.
    """

    where: str
    read: Read
    read_train: Read | None = None
    shapes: Callable[[str | None, int | None], Shapes | None] = lambda data_dir, num_classes: None
    flip: bool = False
    statistics: Statistics | None = None

    @property
    def __wrapped__(self) -> Read:
        """What the register tells sources apart by."""
        return self.read


class Description(NamedTuple):
    """What is known of a data set before its images are read.

    Attributes:
      name: the source.
      image_shape: height, width, channels.
      num_classes: number of classes.
      num_train, num_val, num_test: images of each split.
      pad: pixels of zeros around an image, of which crops are taken.
      flip: whether mirror images are among its views.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    num_val: int
    num_test: int
    pad: int
    flip: bool

    @property
    def num_views(self) -> int:
        """Number of distinct crops and mirror images of an image."""
        return views.num_views(self.pad, self.flip)


_REGISTERED: dict[str, _Source] = {}

# The statistics that the usual recipes normalise by: (mean, std)
_CIFAR: dict[str, tuple[int, Statistics]] = {
    "cifar10": (10, ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    "cifar100": (100, ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))),
}


def register(name: str, *, flip: bool = False) -> Callable[[Read], Read]:
    """Registers a data set of your own under `name`.

    The decorated function takes `data_dir` (`data.data_dir` of the configuration, None if not set) and returns a
    mapping with `x_train` and `x_test`, uint8 [n, h, w, c], `y_train` and `y_test`, integers [n] from 0, and, if there
    are any, `class_names`. It is returned unchanged.

    Args:
      name: what `data.source` will say.
      flip: whether a mirror image is of the same class; what `data.flip` is where the configuration leaves it open.

    Raises:
      ValueError: if another function has the name.

    Example:
      >>> import numpy as np
      >>> @register("noise")
      ... def noise(data_dir):
      ...     images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2
      ...     return {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
      >>> load("noise", val_fraction=0.2).train_images.shape
      (16, 8, 8, 3)
    """

    def decorate(read: Read) -> Read:
        registry.add(_REGISTERED, "data source", name, _Source(f"data source {name!r}", read, flip=flip))
        return read

    return decorate


def names() -> list[str]:
    """Returns the names of the registered data sets, sorted; `npz:PATH` and `tfds:NAME` come besides."""
    return sorted(_REGISTERED)


def load(
    source: str,
    *,
    val_fraction: float | int = 0.0,
    split_seed: int = 0,
    num_train: int | None = None,
    pad: int | None = None,
    flip: bool | None = None,
    num_classes: int | None = None,
    data_dir: str | None = None,
    residency: str = "auto",
    image_size: int | None = None,
    workers: int | str = "auto",
    test: bool = True,
) -> dataset.Dataset:
    """Reads, checks and splits a data set that fits in memory; another one is `stream.open_streamed`.

    Args:
      source: "digits" (8 x 8, comes with scikit-learn), "cifar10", "cifar100", "tfds:NAME" for any image classification
        set of TFDS with the splits train and test and images of one size, "npz:PATH" for a file with `x_train`,
        `y_train`, `x_test`, `y_test` and, if there are any, `class_names`, or a registered name.
      val_fraction: share of the training images to hold out for choices, in [0, 1); stratified by class.
      split_seed: of that split, which depends on the data, `val_fraction` and this alone.
      num_train: how many of the others to train on, likewise stratified; by default all.
      pad: pixels of zeros a side, of which crops are taken; by default an eighth of the shorter side, which is the 4
        that is usual for CIFAR, and 1 for the digits.
      flip: whether mirror images are views; by default for CIFAR and where `register` said so, since a mirrored digit
        or letter is none.
      num_classes: how many classes there are; by default as the source says, and where it does not, as many as there
        are distinct training labels.
      data_dir: of TFDS, or for a registered function; the former's own folder by default.
      residency: is not read: all fields of the configuration can be given.
      image_size: must be None.
      workers: is not read.
      test: whether to read the test split, which must not be known where choices are made. Without it the data set has
        no test image, and a digest of its own. Files are then read no further than to the training split, and of what a
        registered function returns nothing else is looked at.

    Raises:
      UserError: for an unknown source, a file that is absent, damaged or of other contents, or a split or `pad` that
        does not fit the data.
    """
    if image_size is not None:
        raise UserError(f"data.image_size is {image_size}: {source} is streamed, and cannot be loaded into memory here")
    found = _find(source)
    splits = checks.SPLITS if test else _TRAIN
    arrays = checks.check(found.where, _raw(found, data_dir, test), num_classes, splits)
    return dataset.build(
        source,
        arrays,
        val_fraction=float(val_fraction),
        split_seed=split_seed,
        num_train=num_train,
        pad=_default_pad(arrays.x_train.shape[1:3]) if pad is None else pad,
        flip=found.flip if flip is None else flip,
        statistics=found.statistics,
    )


def describe(
    source: str,
    *,
    val_fraction: float | int = 0.0,
    num_train: int | None = None,
    pad: int | None = None,
    flip: bool | None = None,
    num_classes: int | None = None,
    data_dir: str | None = None,
    residency: str = "auto",
    image_size: int | None = None,
    workers: int | str = "auto",
) -> Description:
    """Returns the shape of a data set without reading its images, and of CIFAR even where it is not there.

    Only a function of `register` has to be called, and its arrays are then checked as `load` does.

    Args:
      source: see `load`, as for the rest.
      val_fraction: share of the training images to hold out.
      num_train: how many of the others to train on.
      pad: pixels of zeros a side.
      flip: whether mirror images are views.
      num_classes: how many classes there are.
      data_dir: of TFDS, or for a registered function.
      residency: is not read.
      image_size: side of the crops of a set that is streamed.
      workers: is not read.

    Raises:
      UserError: for an unknown source, a fault that shows without reading images, or a set of TFDS that is not CIFAR
        and not prepared.
    """
    if image_size is not None:
        return _streamed(source, image_size, float(val_fraction), num_train, flip, num_classes, data_dir)
    found = _find(source)
    shapes = found.shapes(data_dir, num_classes)
    if shapes is None:
        arrays = checks.check(found.where, _raw(found, data_dir), num_classes)
        height, width, channels = arrays.x_train.shape[1:]
        shapes = (height, width, channels), len(arrays.class_names), len(arrays.x_train), len(arrays.x_test)
    shape, classes, num, num_test = shapes
    if num_classes not in (None, classes):
        raise UserError(f"data.num_classes is {num_classes} but {found.where} has {classes}; leave it out or say so")
    held_out = split.val_size(num, float(val_fraction))
    pad = _default_pad(shape[:2]) if pad is None else pad
    dataset.check_pad(pad, shape[:2])
    flip = found.flip if flip is None else flip
    trained = split.train_size(num - held_out, num_train)
    return Description(source, shape, classes, trained, held_out, num_test, pad, flip)


def _streamed(
    source: str,
    image_size: int,
    val_fraction: float,
    num_train: int | None,
    flip: bool | None,
    num_classes: int | None,
    data_dir: str | None,
) -> Description:
    """Describes a set that is streamed, ImageNet even where it is not there."""
    from gkd_jax.data.stream import records  # which stands on what stands here

    classes, num, num_test = records.sizes(records.name_of(source), data_dir)
    if num_classes not in (None, classes):
        raise UserError(f"data.num_classes is {num_classes} but {source} has {classes}; leave it out or say so")
    held_out = split.val_size(num, val_fraction)
    trained = split.train_size(num - held_out, num_train)
    shape = (image_size, image_size, 3)
    return Description(source, shape, classes, trained, held_out, num_test, 0, True if flip is None else flip)


def _default_pad(size: tuple[int, ...]) -> int:
    return min(size) // 8


def _raw(found: _Source, data_dir: str | None, test: bool = True) -> Mapping[str, Any]:
    read = found.read if test or found.read_train is None else found.read_train
    raw = read(data_dir)
    if not isinstance(raw, Mapping):
        needed = ", ".join(checks.ARRAYS)
        raise UserError(f"{found.where} returned {type(raw).__name__}; it must return a mapping with {needed}")
    return raw


def _find(source: str) -> _Source:
    if source in _REGISTERED:
        return _REGISTERED[source]
    kind, _, rest = source.partition(":")
    if kind == "npz" and rest:
        return _Source(
            rest,
            lambda data_dir: npz.read(rest),
            lambda data_dir: npz.read(rest, _TRAIN),
            lambda data_dir, count: npz.shapes(rest, count),
        )
    if kind == "tfds" and rest in _CIFAR:
        return _REGISTERED[rest]
    if kind == "tfds" and rest:
        return _Source(source, *_tfds_reads(rest), functools.partial(_tfds_shapes, rest))
    raise unknown("data source", source, [*_REGISTERED, "npz:PATH", "tfds:NAME"])


def _tfds_reads(name: str) -> tuple[Read, Read]:
    return functools.partial(tfds.read, name), functools.partial(tfds.read, name, splits=_TRAIN)


def _tfds_shapes(name: str, data_dir: str | None, num_classes: int | None) -> Shapes:
    shapes = tfds.shapes(name, data_dir)
    if shapes is None:
        raise UserError(
            f"the shape of the TFDS set {name!r} is unknown until it is prepared; load it once to prepare it"
        )
    return shapes


def _cifar_shapes(name: str, data_dir: str | None, num_classes: int | None) -> Shapes:
    return tfds.shapes(name, data_dir) or ((32, 32, 3), _CIFAR[name][0], 50_000, 10_000)


_DIGITS: Shapes = (digits.IMAGE_SHAPE, digits.CLASSES, digits.TOTAL - digits.TEST, digits.TEST)
_REGISTERED["digits"] = _Source("digits", lambda data_dir: digits.arrays(), shapes=lambda data_dir, count: _DIGITS)
for _name, (_, _statistics) in _CIFAR.items():
    _REGISTERED[_name] = _Source(_name, *_tfds_reads(_name), functools.partial(_cifar_shapes, _name), True, _statistics)
