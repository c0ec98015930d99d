"""A method on a standard pair: the configuration, and whether a run still is that."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from gkd_jax import config, identity, objective
from gkd_jax.errors import UserError
from gkd_jax.recipes import on_imagenet, tuned
from gkd_jax.recipes.registry import apply, names


def standard(teacher: str, student: str, dataset: str, method: str) -> ConfigDict:
    """Returns the configuration of a method on a pair: the standard recipe, and what the method sets of it.

    Args:
      teacher: its network.
      student: its network.
      dataset: such as "cifar100".
      method: a recipe's name, or NAME+gompertz, see `apply`; either with @tuned behind it for the settings that were
        tuned for this pair and data set, see `tuned`.

    Raises:
      UserError: if there is no such method, or nothing was tuned for it.
    """
    c = config.default()
    c.data.source = dataset
    c.teacher.model, c.student.model = teacher, student
    c.teacher.optimizer = config.optimizer(config.standard_rate(teacher))
    c.optimizer = config.optimizer(config.standard_rate(student))
    untuned, at, settings = method.partition("@")
    apply(c, untuned)
    if at and settings != tuned.TUNED:
        raise UserError(f"behind the @ of a method stands {tuned.TUNED!r}, not {settings!r}")
    if at:
        tuned.apply(c, tuned.key(teacher, student, dataset, untuned))
    c.recipe = method
    return c


def bare(method: str) -> str:
    """Returns the name of the recipe in a method: "kd" of "kd+gompertz@tuned"."""
    return method.partition("@")[0].partition("+")[0]


def changes(resolved: Mapping[str, Any]) -> list[str]:
    """Returns "field: the recipe's -> the run's" for all that a run's training does otherwise than its recipe says.

    Seeds, the validation split and the teacher are not part of a recipe. Without a recipe nothing is changed. Of tuned
    settings that are not kept any more, this is what is said.
    """
    method = resolved["recipe"]
    if not method or bare(method) not in names():
        return []
    teacher, student = resolved["teacher"]["model"], resolved["student"]["model"]
    try:
        given = identity.to_json(_recipe(teacher, student, resolved["data"]["source"], method).to_dict())
    except UserError as error:
        return [str(error)]
    recipe = {field: given[field] for field in ("epochs", "batch_size", "ema", "student", "optimizer")}
    recipe["objective"] = identity.to_json(objective.resolve(given["objective"]))
    recipe["data"] = {**resolved["data"], **{field: given["data"][field] for field in ("pad", "flip", "num_train")}}
    return identity.differences(resolved, {**resolved, **recipe})


def _recipe(teacher: str, student: str, source: str, method: str) -> ConfigDict:
    if source == on_imagenet.SOURCE:
        return on_imagenet.imagenet(teacher, student, method)
    return standard(teacher, student, source, method)
