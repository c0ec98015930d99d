"""Images: where they come from, in which order they are seen, and in which views."""

from gkd_jax.data.augment import strong
from gkd_jax.data.dataset import Dataset
from gkd_jax.data.identified import Sizes
from gkd_jax.data.opened import AnyDataset, open_data
from gkd_jax.data.plan import epoch_plan, steps_per_epoch
from gkd_jax.data.sources import Description, describe, load, names, register
from gkd_jax.data.views import crop_flip, identity_view, normalise, num_views, pad_images

__all__ = [
    "AnyDataset",
    "Dataset",
    "Description",
    "Sizes",
    "crop_flip",
    "describe",
    "epoch_plan",
    "identity_view",
    "load",
    "names",
    "normalise",
    "num_views",
    "open_data",
    "pad_images",
    "register",
    "steps_per_epoch",
    "strong",
]
