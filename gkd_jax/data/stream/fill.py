"""The views that are to be kept, and the teacher's answers: each image is read and decoded once for all of them."""

import time
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from gkd_jax.data.stream.feed import AUTO, Feed
from gkd_jax.data.stream.kept import Kept, Rows, compressed
from gkd_jax.data.stream.pieces import WHOLE, AllViews, Share
from gkd_jax.data.stream.source import Streamed
from gkd_jax.errors import UserError

Ask = Callable[[UInt8[np.ndarray, "b h w c"], Bool[np.ndarray, " b"]], Float[np.ndarray, "b classes"]]


def fill(
    kept: Kept,
    streamed: Streamed,
    ask: Ask,
    *,
    batch: int = 256,
    share: Share = WHOLE,
    workers: int | str = AUTO,
    say: Callable[[str], None] = lambda text: None,
    polled: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Computes the parts of this host that are missing or damaged, and returns how many.

    A run that is stopped meanwhile loses at most the part at hand. Hosts share the parts out by number, and none waits
    for another: who trains must see that `Kept.missing` is empty everywhere.

    Args:
      kept: the views.
      streamed: the data set that they are of.
      ask: the teacher: uint8 images [batch h w c] and whether to mirror them -> logits; always of `batch` images.
      batch: views that it is asked about at a time.
      share: of this host.
      workers: processes that read images, see `Feed`.
      say: told what was damaged, and how long the rest will take.
      polled: called between batches; may raise.
      clock: seconds from some moment on.

    Raises:
      UserError: if an image cannot be read, or a part cannot be written.
    """
    mine = range(share.index, kept.specification.parts, share.count)
    for part, reason in kept.damaged(mine).items():
        say(f"{reason}: it is computed anew")
        kept.remove(part)
    wanted = [part for part in kept.missing() if part in mine]
    if not wanted:
        return 0
    started = clock()
    pieces = AllViews(
        streamed.train,
        streamed.train_rows,
        np.concatenate([kept.specification.images(part) for part in wanted]),
        seed=kept.specification.seed,
        crops=kept.crops,
        size=kept.specification.size,
        flip=kept.specification.flip,
    )
    with Feed(pieces, workers=workers) as feed:
        for done, part in enumerate(wanted, 1):
            asked = _Asked(ask, batch, kept.specification.top)
            boxes, flip = [], []
            for _ in kept.specification.images(part):
                polled()
                views = next(feed)
                boxes.append(views["boxes"])
                flip.append(views["flip"])
                asked(views["images"], views["flip"])
            kept.write(part, Rows(np.concatenate(boxes), np.concatenate(flip), *asked.answers()))
            if done < len(wanted):
                left = (clock() - started) / done * (len(wanted) - done)
                say(f"part {done} of {len(wanted)} of the kept views is written; the others take about {left:,.0f} s")
    return len(wanted)


class _Asked:
    """Collects views until there are enough for a batch, since a compiled teacher wants one shape, and the answers."""

    def __init__(self, ask: Ask, batch: int, top: int):
        self._ask, self._batch, self._top = ask, batch, top
        self._images: list[np.ndarray] = []
        self._flip: list[np.ndarray] = []
        self._answers: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def __call__(self, images: np.ndarray, flip: np.ndarray) -> None:
        """Takes an image's views; asks about all whole batches."""
        self._images.append(images)
        self._flip.append(flip)
        if sum(map(len, self._flip)) < self._batch:
            return
        images, flip = np.concatenate(self._images), np.concatenate(self._flip)
        whole = len(images) - len(images) % self._batch
        for i in range(0, whole, self._batch):
            self._put(images[i : i + self._batch], flip[i : i + self._batch])
        self._images, self._flip = [images[whole:]], [flip[whole:]]

    def _put(self, images: np.ndarray, flip: np.ndarray) -> None:
        spare = self._batch - len(images)
        given = np.pad(images, ((0, spare), (0, 0), (0, 0), (0, 0))), np.pad(flip, (0, spare))
        logits = np.asarray(self._ask(*given))[: len(images)]
        if not np.isfinite(logits).all():
            raise UserError("the teacher's logits on a view are NaN or infinite: it cannot be remembered")
        self._answers.append(compressed(logits, self._top))

    def answers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids, logs and rest of all views, in their order."""
        images, flip = np.concatenate(self._images), np.concatenate(self._flip)
        if len(images):
            self._put(images, flip)
        ids, logs, rest = (np.concatenate(part) for part in zip(*self._answers, strict=True))
        return ids, logs, rest
