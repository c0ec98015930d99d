"""Recipes that compare how examples stand to one another."""

from ml_collections import ConfigDict

from gkd_jax import objective
from gkd_jax.recipes.registry import register


@register("sp")
def sp(c: ConfigDict) -> None:
    """Tung and Mori (2019), arXiv 1907.09682: RepDistiller, scripts/run_cifar_distill.sh, on the last map."""
    c.objective.terms.sp = objective.block("sp", weight=3000.0)


@register("rkd")
def rkd(c: ConfigDict) -> None:
    """Park et al. (2019), arXiv 1904.05068: RepDistiller, distances 25 and angles 50."""
    c.objective.terms.rkd = objective.block("rkd", weight=1.0, distance=25.0, angle=50.0)


@register("pkt")
def pkt(c: ConfigDict) -> None:
    """Passalis and Tefas (2018), arXiv 1803.10837: RepDistiller, scripts/run_cifar_distill.sh."""
    c.objective.terms.pkt = objective.block("pkt", weight=30000.0)


@register("cc")
def cc(c: ConfigDict) -> None:
    """Peng et al. (2019), arXiv 1904.01802: RepDistiller, scripts/run_cifar_distill.sh, in the form of its code."""
    c.objective.terms.cc = objective.block("cc", weight=0.02, kind="consecutive", dim=128)


@register("crd")
def crd(c: ConfigDict) -> None:
    """Tian, Krishnan and Isola (2020), arXiv 1910.10699: RepDistiller, scripts/run_cifar_distill.sh, without KD."""
    c.objective.terms.crd = objective.block("crd", weight=0.8, dim=128, negatives=16384, temperature=0.07, momentum=0.5)
