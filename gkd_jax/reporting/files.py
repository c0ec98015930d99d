"""Files that are there whole or not at all, and JSON that every reader understands."""

import contextlib
import json
import math
import os
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

from gkd_jax.errors import UserError

Path = str | os.PathLike[str]


def cannot_write(path: Path, error: OSError) -> UserError:
    """Returns the error that tells a user why the file or folder `path` could not be written."""
    return UserError(f"cannot write {os.fspath(path)}: {error.strerror or error}")


def unique() -> str:
    """Returns a part of a file name that no other process has, also on another machine, where process numbers recur."""
    return uuid.uuid4().hex


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that holds either what it held before or all of `content`, whenever the process or machine stops.

    Missing parent folders are created.

    Raises:
      UserError: if it cannot be written (a full disk, a read-only folder); what was there before is still there.
    """
    path = pathlib.Path(path)
    # In the same folder: a rename is atomic only within one file system. Not `tempfile`: others may not read its files.
    temporary = path.with_name(f".{path.name}.{unique()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; see `write_bytes` and `dumps`.

    Raises:
      UserError: if the file cannot be written; what was there before is still there.
      TypeError: if `value` holds something that JSON cannot.
    """
    write_bytes(path, (dumps(value, indent=2) + "\n").encode())


def dumps(value: Any, indent: int | None = None) -> str:
    """Returns `value` as strict JSON: NaN and infinities become null, NumPy and JAX arrays become numbers and lists.

    Raises:
      TypeError: if `value` holds something that JSON cannot.
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if not isinstance(value, str) and hasattr(value, "tolist"):  # an array or one of its numbers
        return _plain(value.tolist())
    return value
