"""Recipes on two views of every image."""

from typing import Any

from ml_collections import ConfigDict

from gkd_jax import objective
from gkd_jax.recipes.logit import light, pair
from gkd_jax.recipes.registry import register

_LIGHTER = (("vgg13", "vgg8"), ("vgg13", "mobilenetv2_half"), ("resnet32x4", "shufflenetv2"))


def _two_views(c: ConfigDict, weight: float, base: float, standardize: bool) -> None:
    c.epochs = 480
    c.optimizer.learning_rate = 0.01 if light(c) else 0.025
    c.optimizer.drops = ("150ep", "180ep", "210ep")
    terms = c.objective.terms
    of_instance: dict[str, Any] = {"batch": 0.0, "classes": 0.0, "standardize": standardize}
    c.objective.ce.weight = 0.1
    terms.ce_strong = objective.block("ce", weight=0.1, view="strong")
    terms.mlkd_weak = objective.block("mlkd", weight=weight, temperature=base, halve=True, standardize=standardize)
    terms.mlkd_weak_rest = objective.block("mlkd", weight=weight, temperature=2.0, others=(6.0,), **of_instance)
    terms.mlkd_strong = objective.block(
        "mlkd", weight=weight, temperature=base, others=(3.0, 5.0), view="strong", **of_instance
    )


@register("mlkd")
def mlkd(c: ConfigDict) -> None:
    """Jin, Wang and Lin (2023), CVPR: what its code computes, with the weights of its cfg.py.

    480 epochs and the rates of logit-standardization-KD, which has 960 epochs for resnet32x4 to shuffle nets. The drops
    stay at epochs 150, 180 and 210. Batch and class level of the strong view, which that code throws away, are not
    computed, and temperatures 2 and 6 of the strong view stand on the weak one, as there.
    """
    _two_views(c, 0.9, 4.0, standardize=False)


@register("mlkd_ls")
def mlkd_ls(c: ConfigDict) -> None:
    """Sun et al. (2024), arXiv 2403.01427: mlkd with standardised logits, base temperature 2, weight 9 or 6.

    From the names of logit-standardization-KD's logs; 9 where there is none.
    """
    _two_views(c, 6.0 if pair(c) in _LIGHTER else 9.0, 2.0, standardize=True)
