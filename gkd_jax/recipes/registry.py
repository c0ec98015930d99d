"""Recipes by name: what a method sets in a configuration."""

import copy
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from gkd_jax import config, registry
from gkd_jax.errors import UserError, unknown

Recipe = Callable[[ConfigDict], None]

_RECIPES: dict[str, Recipe] = {}
_GOMPERTZ = "gompertz"


def register(name: str) -> Callable[[Recipe], Recipe]:
    """Registers a recipe under `name`, by decorating a function that sets a configuration's objective.

    It is given the configuration of a pair (`teacher.model` and `student.model` are set, and the standard recipe),
    whose objective is cross-entropy of weight 1. Its docstring says what it sets, and where that was published.

    Raises:
      ValueError: if another function has the name.
    """

    def decorate(recipe: Recipe) -> Recipe:
        registry.add(_RECIPES, "recipe", name, recipe)
        return recipe

    return decorate


def names() -> list[str]:
    """Returns the names of the registered recipes, in their order."""
    return list(_RECIPES)


def source(name: str) -> str:
    """Returns what the recipe `name` says of itself, as one line."""
    return " ".join((_RECIPES[name].__doc__ or "").split())


def gompertz() -> ConfigDict:
    """Returns the schedule of this project: a Gompertz curve with its inflection at 0.3 of the run and a rate of 10."""
    return config.schedule(_GOMPERTZ, inflection=0.3, rate=10.0)


def warm_up() -> ConfigDict:
    """Returns mdistiller's schedule: from 0 to the whole weight over 20 epochs."""
    return config.schedule("linear", init_value=0.0, end_value=1.0, begin="0ep", end="20ep")


def distilling(c: ConfigDict) -> dict[str, ConfigDict]:
    """Returns by label the lines of an objective's terms that are no cross-entropy, such as one on a strong view."""
    return {label: line for label, line in c.objective.terms.items() if line.term != "ce"}


def under(c: ConfigDict, schedule: ConfigDict) -> None:
    """Puts all terms but cross-entropy, of any view, under a schedule, each under a copy of its own."""
    for line in distilling(c).values():
        line.schedule = copy.deepcopy(schedule)


def apply(c: ConfigDict, method: str, known: Mapping[str, Recipe] = _RECIPES, what: str = "method") -> None:
    """Sets the objective of a configuration, and what else belongs to a method.

    Args:
      c: of a pair.
      method: a recipe's name, or NAME+gompertz: the same with Gompertz weights for all terms but cross-entropy.
      known: recipes by name, where they are not the registered ones.
      what: what they are called in a message.

    Raises:
      UserError: if there is no such recipe or schedule.
    """
    name, plus, schedule = method.partition("+")
    if name not in known:
        raise unknown(what, name, known)
    if plus and schedule != _GOMPERTZ:
        raise UserError(f"behind the + of a method stands {_GOMPERTZ!r}, not {schedule!r}")
    known[name](c)
    if plus and not distilling(c):
        raise UserError(f"the method {name!r} has nothing but cross-entropy, which takes no {_GOMPERTZ!r}")
    if plus:
        under(c, gompertz())
    c.recipe = method
