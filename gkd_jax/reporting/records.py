"""The record of a run, one JSON object a line for each finished epoch."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from gkd_jax.errors import UserError
from gkd_jax.reporting.files import Path, cannot_write, dumps, write_bytes


class JsonlWriter:
    """Appends records to a file of JSON lines, each on the disk when `write` returns.

    A record is a mapping such as::

      {"epoch": 3, "step": 120, "learning_rate": 0.05, "loss": 1.23,
       "terms": {"ce": {"value": 1.1, "weight": 1.0}, "kd": {"value": 0.4, "weight": 0.2, "stage": "growth"}},
       "train_accuracy": 0.7, "val_accuracy": None, "images_per_second": 1234.5, "seconds": 3.2,
       "seconds_cache": 0.0, "seconds_compile": 0.4}

    `epoch` and `step` count what is finished, so that the first record has epoch 1; accuracies are fractions.
    """

    def __init__(self, path: Path):
        self._path = pathlib.Path(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends `record`; NaN and infinities are written as null. Missing parent folders are created.

        Raises:
          ValueError: if the record has no integer `epoch`.
          UserError: if the file cannot be written; the lines before stay whole.
        """
        if not _has_epoch(record):
            raise ValueError(f"a record needs an integer 'epoch'; found {record.get('epoch')!r}")
        line = (dumps(record) + "\n").encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Opened anew for each epoch, so that no handle outlives the file that `truncate_after` replaces.
            # Unbuffered: what failed to reach a full disk must not be tried again when the file is closed.
            with self._path.open("ab", buffering=0) as file:
                end = file.tell()
                try:
                    if file.write(line) != len(line):
                        raise OSError("the disk took only a part of the line")
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(end)
                    raise
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def truncate_after(self, epoch: int) -> None:
        """Drops every record of a later epoch than `epoch`, and a last line that was cut short.

        To be called when a run resumes from the checkpoint of `epoch`, or with 0 when it starts: then each epoch is
        there once, however often the run was interrupted. The file is replaced atomically; a missing one stays missing.

        Raises:
          UserError: if the file is damaged before its last line, or cannot be read or written.
        """
        if not self._path.exists():
            return
        before = _read(self._path)
        kept = [line for line, record in _lines(self._path, before) if record["epoch"] <= epoch]
        after = b"".join(line + b"\n" for line in kept)
        if after != before:
            write_bytes(self._path, after)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file that a `JsonlWriter` wrote, in their order, without a last line that was cut short.

    Raises:
      UserError: if the file cannot be read, or a line before the last is no record.
    """
    path = pathlib.Path(path)
    return [record for _, record in _lines(path, _read(path))]


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _lines(path: pathlib.Path, content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    *lines, last = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if (record := _parse(line)) is not None:
            yield line, record
        elif line and any(map(_parse, [*lines[number:], last])):
            found = line[:60].decode(errors="replace")
            raise UserError(f'{path}, line {number}: expected a JSON object with an integer "epoch", found {found!r}')
    if (record := _parse(last)) is not None:  # whole but for its line end
        yield last, record


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and _has_epoch(record) else None


def _has_epoch(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("epoch"), int) and not isinstance(record["epoch"], bool)
