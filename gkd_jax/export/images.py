"""The images that an export is verified and calibrated on, as arrays, wherever the run reads them from."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from gkd_jax.data import AnyDataset, Dataset
from gkd_jax.data.split import shuffled
from gkd_jax.data.stream import Streamed, centre_feed
from gkd_jax.interop.served import Images

CALIBRATION, CALIBRATION_SEED = 256, 0
"""How many training images find the ranges of a quantised network, and what chooses them."""
_MOST = 4096  # test images of a set that is streamed, since they are to be in memory


class Asked(NamedTuple):
    """Images with their labels."""

    images: Images
    labels: Int[np.ndarray, " n"]


def of_test(dataset: AnyDataset) -> Asked:
    """Returns the test split; of a set that is streamed no more than its first 4,096 images, cut from the centre."""
    if isinstance(dataset, Dataset):
        return Asked(dataset.test_images, dataset.test_labels)
    return _read(dataset, "test", min(dataset.sizes.test, _MOST))


def for_calibration(dataset: AnyDataset) -> Images:
    """Returns training images, as they are, of which 256 are drawn by a seed of their own."""
    rows = np.sort(shuffled(dataset.sizes.train, CALIBRATION_SEED)[:CALIBRATION])
    if isinstance(dataset, Dataset):
        return dataset.train_images[rows]
    return _read(dataclasses.replace(dataset, train_rows=dataset.train_rows[rows]), "train", len(rows)).images


def _read(streamed: Streamed, split: str, count: int) -> Asked:
    images, labels, size = [], [], min(count, 64)
    with centre_feed(streamed, split, batch_size=size, workers=0) as feed:
        for _ in range(-(-count // size)):
            batch = next(feed)
            images.append(batch["images"])
            labels.append(batch["labels"])
    return Asked(np.concatenate(images)[:count], np.concatenate(labels)[:count])
