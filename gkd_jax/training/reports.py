"""What a run writes as it goes: its records, TensorBoard's events, the terminal. Of several processes one does so."""

from collections.abc import Mapping
from typing import Any

from gkd_jax import hosts
from gkd_jax.reporting.progress import Progress
from gkd_jax.reporting.records import JsonlWriter, read_records
from gkd_jax.reporting.tensorboard import TensorBoardWriter
from gkd_jax.training.program import Job

METRICS = "metrics.jsonl"


class Reports:
    """The writers of one pass through the epochs of a job; none of them, where another process has them."""

    def __init__(self, job: Job, step: int):
        """Opens them, and drops what stands in the records of the epochs to come.

        Args:
          job: what is trained.
          step: how many steps are done.

        Raises:
          UserError: if a file cannot be read or written.
        """
        self._file = job.workdir / METRICS
        self._records: JsonlWriter | None = None
        self._board: TensorBoardWriter | None = None
        self._progress: Progress | None = None
        if not hosts.first():
            return
        done = step // job.steps_per_epoch
        self._records = JsonlWriter(self._file)
        self._records.truncate_after(done)
        if job.config["tensorboard"] and step < job.total_steps:
            self._board = TensorBoardWriter(job.workdir / "tensorboard", purge_step=step + 1)
        self._progress = Progress(job.config["epochs"], job.steps_per_epoch, job.name, done_epochs=done)

    def step(self, count: int) -> None:
        """Counts steps that were just dispatched."""
        if self._progress is not None:
            self._progress.step(count)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Writes the record of a finished epoch."""
        if self._records is not None:
            self._records.write(record)
        if self._board is not None:
            self._board.write(record)
        if self._progress is not None:
            self._progress.epoch(record)

    def close(self) -> None:
        """Closes the files."""
        if self._progress is not None:
            self._progress.close()
        if self._board is not None:
            self._board.close()

    def read(self) -> list[dict[str, Any]]:
        """Returns the records of all epochs, on every process."""
        return hosts.first_does(lambda: read_records(self._file))
