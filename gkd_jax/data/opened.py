"""The data set that a configuration names, wherever its images are kept."""

from typing import Any

from gkd_jax.data.dataset import Dataset
from gkd_jax.data.sources import load
from gkd_jax.data.stream.source import Streamed, open_streamed

AnyDataset = Dataset | Streamed

# Fields of images that are held in memory, or of how they are read
_UNREAD = ("pad", "residency", "workers")


def open_data(*, image_size: int | None = None, test: bool = True, **fields: Any) -> AnyDataset:
    """Returns the data set that the fields of a configuration's `data` name: in memory, or to be streamed.

    Args:
      image_size: side of the crops of a set that is streamed; None for one that is loaded.
      test: whether its test split may be known.
      **fields: of the block, see `load` and `stream.open_streamed`.

    Raises:
      UserError: as these two.
    """
    if image_size is None:
        return load(**fields, test=test)
    read = {name: value for name, value in fields.items() if name not in _UNREAD}
    return open_streamed(**read, image_size=image_size, test=test)
