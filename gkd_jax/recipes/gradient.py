"""Recipes that compare gradients."""

from ml_collections import ConfigDict

from gkd_jax import objective
from gkd_jax.recipes.registry import register

_VALUES = 32 * 32 * 3  # of a CIFAR image


@register("input_grad")
def input_grad(c: ConfigDict) -> None:
    """One minus the cosine of the cross-entropy's gradients in the image; the weight is ours.

    The distance of these gradients is from Zagoruyko and Komodakis (2017), arXiv 1612.03928.
    """
    c.objective.terms.gradient = objective.block("gradient", weight=1.0, wrt="input")


@register("feature_grad")
def feature_grad(c: ConfigDict) -> None:
    """The same at the map that enters the last stage: ours."""
    c.objective.terms.gradient = objective.block("gradient", weight=1.0, wrt="features")


@register("classifier_grad")
def classifier_grad(c: ConfigDict) -> None:
    """The same in the classifier's weights, in closed form: ours."""
    c.objective.terms.gradient = objective.block("gradient", weight=1.0, wrt="classifier")


@register("jacobian")
def jacobian(c: ConfigDict) -> None:
    """Srinivas and Fleuret (2018), arXiv 1803.00443: Knowledge-Distillation-Zoo's weight, 20 of the mean over an image.

    Its "sobolev" is this method. The weight is published for another recipe and pair, and so small that cross-entropy
    rules.
    """
    c.objective.terms.jacobian = objective.block("jacobian", weight=20.0 / _VALUES, at="label")


@register("sobolev")
def sobolev(c: ConfigDict) -> None:
    """Czarnecki et al. (2017), arXiv 1706.04859, a random direction of the logits; the weight is jacobian's (ours)."""
    c.objective.terms.sobolev = objective.block("sobolev", weight=20.0 / _VALUES)


@register("lwm")
def lwm(c: ConfigDict) -> None:
    """Dhar et al. (2019), arXiv 1811.08051; the weight is ours.

    Knowledge-Distillation-Zoo's 0.4 belongs to another quantity: a mean over positions, of gradients times gradients.
    """
    c.objective.terms.lwm = objective.block("lwm", weight=1.0, at="argmax")
