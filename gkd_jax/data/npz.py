"""Data sets in one `.npz` file: `x_train`, `y_train`, `x_test`, `y_test` and, if there are any, `class_names`."""

import contextlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gkd_jax.data import checks
from gkd_jax.errors import UserError


@contextlib.contextmanager
def _opened(path: str) -> Iterator[zipfile.ZipFile]:
    """Opens the file and says in one sentence what a damaged or absent one lacks."""
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path}: {'not a file' if file.exists() else 'no such file'}; data.source names an .npz file")
    try:
        with zipfile.ZipFile(file) as archive:
            checks.required(path, [name.removesuffix(".npy") for name in archive.namelist()])
            yield archive
    # What the zip format, its compression and NumPy's reader raise on bytes that are missing or wrong; a header that
    # promises more than there is memory for belongs to them
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: damaged, cut short or no .npz file ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _header(archive: zipfile.ZipFile, where: str, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Returns shape and dtype of one array without reading it; refuses what would have to be unpickled."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    if dtype.hasobject:
        raise UserError(
            f"{where}: {name} holds pickled Python objects, which are never loaded; it must be a plain array"
        )
    return shape, dtype


def _array(archive: zipfile.ZipFile, where: str, name: str) -> np.ndarray:
    shape, dtype = _header(archive, where, name)
    promised = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if promised > archive.getinfo(f"{name}.npy").file_size:
        raise UserError(f"{where}: {name} is cut short; its header promises {promised} bytes")
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _class_names(archive: zipfile.ZipFile, where: str) -> np.ndarray | None:
    return _array(archive, where, "class_names") if "class_names.npy" in archive.namelist() else None


def read(path: str | os.PathLike[str], splits: Sequence[str] = checks.SPLITS) -> dict[str, Any]:
    """Returns the arrays of the file.

    Args:
      path: of the file.
      splits: of which the arrays are read; all must be there.

    Raises:
      UserError: if it is absent, damaged, lacks an array or holds pickled objects.
    """
    where = os.fspath(path)
    with _opened(where) as archive:
        raw: dict[str, Any] = {name: _array(archive, where, name) for name in checks.arrays_of(splits)}
        raw["class_names"] = _class_names(archive, where)
    return raw


def shapes(path: str | os.PathLike[str], num_classes: int | None) -> tuple[tuple[int, int, int], int, int, int]:
    """Returns `((h, w, c), classes, training images, test images)`; of the images it reads the headers alone.

    Raises:
      UserError: as by `read`, and for any fault of headers and labels.
    """
    where = os.fspath(path)
    with _opened(where) as archive:
        headers = {split: _header(archive, where, f"x_{split}") for split in checks.SPLITS}
        targets = {split: _array(archive, where, f"y_{split}") for split in checks.SPLITS}
        names = checks.names_of(where, _class_names(archive, where))
    found = {split: checks.image_shape(where, f"x_{split}", *header) for split, header in headers.items()}
    checks.same_shape(where, found["train"], found["test"])
    for split, values in targets.items():
        checks.labels(where, f"y_{split}", values, headers[split][0][0])
    count, origin = checks.count_classes(where, targets["train"], names, num_classes)
    for split, values in targets.items():
        checks.label_range(where, f"y_{split}", values, count, origin)
    return found["train"], count, len(targets["train"]), len(targets["test"])
