"""A method on a standard pair: the configuration, and whether a run still is that."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from gkd_jax import config, identity, objective
from gkd_jax.recipes.registry import apply, names


def standard(teacher: str, student: str, dataset: str, method: str) -> ConfigDict:
    """Returns the configuration of a method on a pair: the standard recipe, and what the method sets of it.

    Args:
      teacher: its network.
      student: its network.
      dataset: such as "cifar100".
      method: a recipe's name, or NAME+gompertz, see `apply`.

    Raises:
      UserError: if there is no such method.
    """
    c = config.default()
    c.data.source = dataset
    c.teacher.model, c.student.model = teacher, student
    c.teacher.optimizer = config.optimizer(config.standard_rate(teacher))
    c.optimizer = config.optimizer(config.standard_rate(student))
    apply(c, method)
    return c


def changes(resolved: Mapping[str, Any]) -> list[str]:
    """Returns "field: the recipe's -> the run's" for all that a run's training does otherwise than its recipe says.

    Seeds, the validation split and the teacher are not part of a recipe. Without a recipe nothing is changed.
    """
    method = resolved["recipe"]
    if not method or method.partition("+")[0] not in names():
        return []
    teacher, student = resolved["teacher"]["model"], resolved["student"]["model"]
    given = identity.to_json(standard(teacher, student, resolved["data"]["source"], method).to_dict())
    recipe = {field: given[field] for field in ("epochs", "batch_size", "ema", "student", "optimizer")}
    recipe["objective"] = identity.to_json(objective.resolve(given["objective"]))
    recipe["data"] = {**resolved["data"], **{field: given["data"][field] for field in ("pad", "flip", "num_train")}}
    return identity.differences(resolved, {**resolved, **recipe})
