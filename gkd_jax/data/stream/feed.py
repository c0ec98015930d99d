"""Batches from worker processes, in an order that is always the same; where they go on is a few bytes.

The pipeline is grain's: a `MapDataset` over the pieces of all batches, read by threads or by worker processes that each
make every n-th piece. What is made does not depend on either, so a position is the number of batches behind it.
"""

import gc
import json
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from gkd_jax.data.stream.kept import Kept
from gkd_jax.data.stream.pieces import WHOLE, Arrays, Centres, Pieces, Share, Training
from gkd_jax.data.stream.source import Streamed
from gkd_jax.errors import UserError
from gkd_jax.processor import cores

_FORMAT = 1
_BUFFER = 4  # pieces that wait in each worker
_SHARED = 1 << 16  # bytes from which on an array comes through /dev/shm instead of a pipe
AUTO = "auto"
SPLITS = ("train", "val", "test")


def workers_of(given: int | str) -> int:
    """Returns the number of worker processes: as given, or for "auto" one for each core but one.

    With one core or none to spare there are none: threads of this process do their work.
    """
    if given != AUTO:
        return int(given)
    spare = cores() - 1
    return spare if spare > 1 else 0


class Feed(Iterator[Arrays]):
    """The batches of this host, one after another; `close` it when it is no longer needed.

    Attributes:
      step: batches that were given so far, those before a position that was restored among them.
    """

    def __init__(self, pieces: Pieces, *, workers: int | str = AUTO, start: int = 0):
        """Starts nothing yet.

        Args:
          pieces: of all batches.
          workers: processes that make them; 0 for threads of this one.
          start: the batch to begin with.

        Raises:
          UserError: if grain is not installed.
        """
        self._grain = _grain()
        self._pieces, self._workers, self.step = pieces, workers_of(workers), start
        self._open: Any = None

    def __len__(self) -> int:
        """Returns the number of batches, those before the position among them."""
        return len(self._pieces) // self._pieces.per_batch

    def __next__(self) -> Arrays:
        """Returns the next batch: arrays of this host's part of it.

        Raises:
          UserError: if a record or an image is damaged, or a worker process ended.
        """
        if self.step >= len(self):
            self.close()
            raise StopIteration
        if self._open is None:
            self._open = self._begin()
        try:
            parts = [next(self._open) for _ in range(self._pieces.per_batch)]
        except UserError as error:
            self.close()
            raise UserError(str(error).partition("\n")[0]) from error  # grain adds advice of its own
        except Exception as error:  # of a worker that was killed, for want of memory mostly
            self.close()
            raise UserError(
                f"the worker processes that read images stopped ({error}); fewer of them (data.workers) need less "
                "memory and less room in /dev/shm"
            ) from error
        self.step += 1
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _begin(self) -> Any:
        grain, first = self._grain, self.step * self._pieces.per_batch
        pieces = grain.MapDataset.source(self._pieces)[first:]
        if not self._workers:
            threads = max(cores(), 1)
            return iter(pieces.to_iter_dataset(grain.ReadOptions(threads, max(threads, _BUFFER))))
        made = pieces.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        made = grain.experimental.WithOptionsIterDataset(made, grain.experimental.DatasetOptions(min_shm_size=_SHARED))
        processes = min(self._workers, len(pieces))
        options = grain.MultiprocessingOptions(processes, per_worker_buffer_size=_BUFFER)
        return iter(made.mp_prefetch(options, worker_init_fn=_in_worker))

    def state(self) -> bytes:
        """Returns where the feed stands, as JSON, for a checkpoint; it does not depend on workers or hosts."""
        return json.dumps({"format": _FORMAT, "step": self.step, **self._pieces.facts()}, sort_keys=True).encode()

    def restore(self, state: bytes) -> None:
        """Goes on where another feed of the same run stood, bit for bit.

        Raises:
          UserError: if the state is damaged, or that of a feed of other images, seed or batch size.
        """
        try:
            held = dict(json.loads(state))
            step = int(held.pop("step"))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"the state of the stream is damaged ({error})") from error
        here = {"format": _FORMAT, **json.loads(json.dumps(self._pieces.facts()))}
        other = [name for name in sorted({*held, *here}) if held.get(name) != here.get(name)]
        changed = [f"{name}: {held.get(name)!r} -> {here.get(name)!r}" for name in other]
        if changed or not 0 <= step <= len(self):
            raise UserError(
                f"the state of the stream is of another run ({'; '.join(changed) or f'step {step} of {len(self)}'})"
            )
        self.close()
        self.step = step

    def close(self) -> None:
        """Ends the worker processes; the next batch would start new ones."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()
            del opened
            gc.collect()  # cycles in there hold shared memory, of which the interpreter would complain at its end

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _grain() -> Any:
    try:
        import grain
    except ImportError as error:
        reason = f"streaming needs grain, which is not installed ({error})"
        raise UserError(f'{reason}: pip install "gkd_jax[stream]"') from error
    for name in flags.FLAGS:
        # Flags of its own that it reads, which are not parsed where there is no absl.app
        if name.startswith("grain_"):
            flags.FLAGS[name].present = True
    return grain


def _in_worker(number: int, count: int) -> None:
    # A Ctrl-C reaches every process of the terminal; the run that started them decides when they end
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def train_feed(
    streamed: Streamed,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    share: Share = WHOLE,
    kept: Kept | None = None,
    workers: int | str = AUTO,
    start: int = 0,
) -> Feed:
    """Returns the batches of a run: `images` uint8 [b s s 3], `flip` bool [b], `labels` and `index` int32 [b].

    With kept views there are also `crop` int32 [b], and of the teacher's probabilities `ids` [b k], `logs` float16
    [b k] and `rest` float16 [b], see `device.teacher_logits`. b is this host's part of `batch_size`. The images are not
    mirrored yet: `device.seen` does that where they are normalised.

    Args:
      streamed: the data set.
      seed: of order and views.
      epochs: of the run.
      batch_size: over all hosts.
      share: of this host.
      kept: the views to show.
      workers: see `Feed`.
      start: the step to begin with.

    Raises:
      UserError: as by `Training` and `Feed`.
    """
    pieces = Training(
        streamed.train,
        streamed.train_rows,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        size=streamed.image_size,
        flip=streamed.flip,
        share=share,
        kept=kept,
        digest=streamed.digest,
    )
    return Feed(pieces, workers=workers, start=start)


def centre_feed(
    streamed: Streamed,
    split: str,
    *,
    batch_size: int,
    share: Share = WHOLE,
    workers: int | str = AUTO,
) -> Feed:
    """Returns the batches of a split for evaluation: `images`, `labels` and `index`, in order, all of one size.

    What fills the last one up is black, and has the label -1.

    Args:
      streamed: the data set.
      split: "train", "val" or "test".
      batch_size: over all hosts.
      share: of this host.
      workers: see `Feed`.
    """
    records = streamed.test if split == "test" else streamed.train
    rows = {"train": streamed.train_rows, "val": streamed.val_rows, "test": np.arange(streamed.sizes.test)}[split]
    pieces = Centres(records, rows, batch_size=batch_size, size=streamed.image_size, share=share)
    return Feed(pieces, workers=workers)
