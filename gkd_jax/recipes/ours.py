"""This project's own recipes: Gompertz weights."""

from ml_collections import ConfigDict

from gkd_jax import objective
from gkd_jax.recipes.logit import kd
from gkd_jax.recipes.registry import gompertz, register


@register("gompertz_kd")
def gompertz_kd(c: ConfigDict) -> None:
    """As kd, its term under a Gompertz weight: what the schedule alone brings. The curve is ours."""
    kd(c)
    c.objective.terms.kd.schedule = gompertz()


@register("gompertz_cnn")
def gompertz_cnn(c: ConfigDict) -> None:
    """KD, Wasserstein distance of embeddings and input gradients under one Gompertz weight, cross-entropy at its own.

    After Yang and Qin (2025), arXiv 2510.21649, of which only the abstract is public: the definitions, the weights and
    the curve are ours; KD's weight and temperature are RepDistiller's.
    """
    terms = c.objective.terms
    terms.kd = objective.block("kd", weight=0.9, temperature=4.0, schedule=gompertz())
    terms.wasserstein = objective.block("wasserstein", weight=1.0, kind="sinkhorn", schedule=gompertz())
    terms.gradient = objective.block("gradient", weight=1.0, wrt="input", schedule=gompertz())
