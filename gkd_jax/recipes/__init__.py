"""Every method as its authors ran it, and what they published."""

from gkd_jax.recipes import feature, gradient, logit, multi_level, ours, relation
from gkd_jax.recipes.on_imagenet import imagenet
from gkd_jax.recipes.registry import apply, distilling, gompertz, names, register, source, under
from gkd_jax.recipes.standard import bare, changes, standard

__all__ = [
    "apply",
    "bare",
    "changes",
    "distilling",
    "feature",
    "gompertz",
    "gradient",
    "imagenet",
    "logit",
    "multi_level",
    "names",
    "ours",
    "register",
    "relation",
    "source",
    "standard",
    "under",
]
