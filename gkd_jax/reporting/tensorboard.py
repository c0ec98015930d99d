"""The record of a run as TensorBoard scalars."""

import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, SupportsFloat

from gkd_jax.reporting.files import Path, cannot_write


class TensorBoardWriter:
    """Writes records as scalars named by their place in the record ("terms/kd/value"), for TensorBoard to plot.

    Every record becomes one event at its `step` and is on the disk when `write` returns. What is no number is left out.
    """

    def __init__(self, logdir: Path, purge_step: int | None = None):
        """Opens a new event file in the folder `logdir`, which is created if it is missing.

        Args:
          logdir: what `tensorboard --logdir` is given.
          purge_step: for a resumed run, the first step whose earlier events TensorBoard shall no longer show: the
            restored step plus one.

        Raises:
          UserError: if the folder or the file cannot be written.
        """
        # Loads protobuf; and not its `SummaryWriter`: that writes in a thread whose death on a full disk hangs the run,
        # and a run that resumes within a second overwrites the file of the one before.
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        seconds, rest = divmod(time.time_ns(), 10**9)
        # TensorBoard reads the files of a folder in the order of their names
        self._path = pathlib.Path(logdir) / f"events.out.tfevents.{seconds}.{rest:09d}"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(os.fspath(self._path))
            self._write(file_version="brain.Event:2")
            if purge_step is not None:
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._write(session_log=start, step=purge_step)
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes the numbers in `record`, of whatever depth, at `record["step"]`.

        Raises:
          UserError: if the file cannot be written.
        """
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(record) if tag != "step"]
        try:
            self._write(summary=self._summary(value=values), step=int(record["step"]))
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        """Closes the event file.

        Raises:
          UserError: if its last bytes cannot be written.
        """
        try:
            self._file.close()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, **fields: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **fields).SerializeToString())


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, SupportsFloat) and getattr(value, "shape", ()) == ():
            yield f"{prefix}{name}", float(value)
