"""What worker processes make: pieces of batches, each a function of its number alone.

A batch is cut into pieces of equal size, and each is the work of one worker: so a batch is there soon, and its content
depends neither on their number nor on that of the hosts, each of which makes its own part of every batch.
"""

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gkd_jax.data.plan import steps_per_epoch
from gkd_jax.data.stream import draws, jpeg
from gkd_jax.data.stream.kept import Kept
from gkd_jax.data.stream.records import Records
from gkd_jax.errors import UserError

Arrays = dict[str, np.ndarray]

_PIECE = 32  # images: a piece of them in flight takes 5 MB, and a quarter of a core-second
NO_LABEL = -1  # of an image that only fills a batch up

# The order of the epoch at hand, of a million images 10 MB, and of the one that begins in other pieces
_order = functools.lru_cache(2)(draws.order)


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of every batch this host reads: number `index` of `count` equal ones."""

    index: int = 0
    count: int = 1


WHOLE = Share()


@runtime_checkable
class Pieces(Protocol):
    """Pieces by number, `per_batch` of which are a host's part of a batch."""

    per_batch: int

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Arrays: ...

    def facts(self) -> dict[str, Any]:
        """Returns all that the pieces depend on, hosts apart."""
        ...


def _own(batch_size: int, share: Share) -> tuple[int, int]:
    """Returns the images of a host's part of a batch, and of a piece of it."""
    if batch_size % share.count:
        raise UserError(f"batch_size is {batch_size}; it must be a multiple of the {share.count} processes")
    own = batch_size // share.count
    return own, next(size for size in range(min(own, _PIECE), 0, -1) if own % size == 0)


class Training:
    """The pieces of all batches of a run: random views, or the views that are kept of each image."""

    def __init__(
        self,
        records: Records,
        rows: np.ndarray,
        *,
        seed: int,
        epochs: int,
        batch_size: int,
        size: int,
        flip: bool = True,
        share: Share = WHOLE,
        kept: Kept | None = None,
        digest: str = "",
    ):
        """Reads nothing yet.

        Args:
          records: of the training split on disk.
          rows: of `records` that are trained on; an example's index is its place among them.
          seed: of order and views.
          epochs: of the run.
          batch_size: over all hosts; the last partial batch of an epoch is dropped.
          size: side of a crop.
          flip: whether random views are mirrored.
          share: of this host.
          kept: the views to show, with what a teacher said of them; None for random ones.
          digest: of the data set.

        Raises:
          UserError: if no full batch can be made, or the hosts cannot share one evenly.
        """
        self._records, self._rows, self._seed, self._size, self._kept = records, rows, seed, size, kept
        self._batch, self._share, self._digest, self._flip = batch_size, share, digest, flip
        self.steps_per_epoch = steps_per_epoch(len(rows), batch_size)
        self._own, self._piece = _own(batch_size, share)
        self.per_batch = self._own // self._piece
        self._length = epochs * self.steps_per_epoch * self.per_batch

    def __len__(self) -> int:
        """Returns the number of pieces of the run."""
        return self._length

    def facts(self) -> dict[str, Any]:
        """Returns all that the pieces depend on, hosts apart."""
        kept = None if self._kept is None else self._kept.key
        return {
            "data": self._digest,
            "examples": len(self._rows),
            "seed": self._seed,
            "batch_size": self._batch,
            "size": self._size,
            "flip": self._flip,
            "kept": kept,
        }

    def __getitem__(self, number: int) -> Arrays:
        """Returns a piece: images, flip, labels, index, and with kept views crop, ids, logs and rest."""
        step, part = divmod(int(number), self.per_batch)
        epoch, row = divmod(step, self.steps_per_epoch)
        first = row * self._batch + self._share.index * self._own + part * self._piece
        index = _order(self._seed, epoch, len(self._rows))[first : first + self._piece]
        found: Arrays = {"index": index.astype(np.int32)}
        views = None
        if self._kept is not None:
            crops = [draws.kept_view(self._seed, epoch, int(i), self._kept.crops) for i in index]
            found["crop"] = np.array(crops, np.int32)
            rows = self._kept.rows(found["index"], found["crop"])
            views = rows.views()
            found |= {"ids": rows.ids, "logs": rows.logs, "rest": rows.rest}
        seen = [self._seen(int(i), epoch, views[place] if views else None) for place, i in enumerate(index)]
        found["images"] = np.stack([pixels for pixels, _, _ in seen])
        found["flip"] = np.array([flip for _, flip, _ in seen], np.bool_)
        found["labels"] = np.array([label for _, _, label in seen], np.int32)
        return found

    def _seen(self, index: int, epoch: int, view: draws.View | None) -> tuple[np.ndarray, bool, int]:
        row = int(self._rows[index])
        encoded, label = self._records[row]
        try:
            view = view or draws.view(self._seed, epoch, index, *jpeg.size_of(encoded))
            return jpeg.cut(encoded, [view.box], self._size)[0], view.flip and self._flip, label
        except UserError as error:
            raise UserError(f"{self._records.place(row)}: {error}") from error


class Centres:
    """The pieces of all batches of a split, in its order: the middle of each image; the last batch is filled up."""

    def __init__(
        self,
        records: Records,
        rows: np.ndarray,
        *,
        batch_size: int,
        size: int,
        share: Share = WHOLE,
    ):
        """Reads nothing yet; see `Training` for the arguments."""
        self._records, self._rows, self._size = records, rows, size
        self._batch, self._share = batch_size, share
        self._own, self._piece = _own(batch_size, share)
        self.per_batch = self._own // self._piece

    def __len__(self) -> int:
        """Returns the number of pieces of the split."""
        return -(-len(self._rows) // self._batch) * self.per_batch

    def facts(self) -> dict[str, Any]:
        """Returns all that the pieces depend on, hosts apart."""
        return {"examples": len(self._rows), "batch_size": self._batch, "size": self._size}

    def __getitem__(self, number: int) -> Arrays:
        """Returns a piece: images, labels, index; what fills the last batch up is black and has the label -1."""
        step, part = divmod(int(number), self.per_batch)
        first = step * self._batch + self._share.index * self._own + part * self._piece
        index = np.arange(first, first + self._piece, dtype=np.int32)
        images = np.zeros((self._piece, self._size, self._size, 3), np.uint8)
        labels = np.full(self._piece, NO_LABEL, np.int32)
        for place, row in enumerate(self._rows[first : first + self._piece]):
            encoded, labels[place] = self._records[int(row)]
            try:
                images[place] = jpeg.centre(encoded, self._size)
            except UserError as error:
                raise UserError(f"{self._records.place(int(row))}: {error}") from error
        return {"images": images, "labels": labels, "index": index}


class AllViews:
    """For each of some training images all the views that are to be kept of it; a piece is one image."""

    per_batch = 1

    def __init__(
        self,
        records: Records,
        rows: np.ndarray,
        index: np.ndarray,
        *,
        seed: int,
        crops: int,
        size: int,
        flip: bool = True,
    ):
        """Reads nothing yet.

        Args:
          records: of the training split on disk.
          rows: of `records` that are trained on.
          index: places in `rows` of the images wanted.
          seed: of the views: the kept view number k of an image is that of epoch k of a run with this seed.
          crops: views of each image.
          size: side of a crop.
          flip: whether they are mirrored.
        """
        self._records, self._rows, self._index = records, rows, index
        self._seed, self._crops, self._size, self._flip = seed, crops, size, flip

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._index)

    def facts(self) -> dict[str, Any]:
        """Returns all that the pieces depend on."""
        return {"examples": len(self._index), "seed": self._seed, "crops": self._crops, "size": self._size}

    def __getitem__(self, number: int) -> Arrays:
        """Returns an image's views: images [crops, ...], boxes [crops, 4], flip [crops]; it is decoded but once."""
        index = int(self._index[number])
        row = int(self._rows[index])
        encoded, _ = self._records[row]
        try:
            height, width = jpeg.size_of(encoded)
            views = [draws.view(self._seed, crop, index, height, width) for crop in range(self._crops)]
            images = np.stack(jpeg.cut(encoded, [view.box for view in views], self._size))
        except UserError as error:
            raise UserError(f"{self._records.place(row)}: {error}") from error
        return {
            "images": images,
            "boxes": np.array([view.box for view in views], np.int64),
            "flip": np.array([view.flip and self._flip for view in views], np.bool_),
        }
