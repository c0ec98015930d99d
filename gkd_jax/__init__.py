"""Dynamic knowledge distillation for image classifiers, in JAX.

`gkd_jax.load(workdir)` gives the finished student of a run; `gkd_jax.models`, `gkd_jax.schedules`, `gkd_jax.losses` and
`gkd_jax.data` can be used without any configuration.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gkd_jax import config, data, losses, models, objective, schedules
    from gkd_jax.training.finished import Finished, load

__all__ = ["Finished", "__version__", "config", "data", "load", "losses", "models", "objective", "schedules"]


def __getattr__(name: str) -> Any:
    # On first use: `import gkd_jax` alone, for a version or a flag, need not wait for JAX
    if name in ("Finished", "load"):
        return getattr(importlib.import_module("gkd_jax.training.finished"), name)
    if name in __all__:
        return importlib.import_module(f"gkd_jax.{name}")
    raise AttributeError(f"module 'gkd_jax' has no attribute {name!r}")
