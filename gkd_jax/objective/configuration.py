"""The lines of an objective, from its configuration: every field checked, filled in, and built."""

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from gkd_jax import config, curves
from gkd_jax.errors import UserError
from gkd_jax.losses import term as terms
from gkd_jax.losses.balance import balanced
from gkd_jax.losses.term import Term
from gkd_jax.objective.lines import Line
from gkd_jax.schedules import Weight, complement, scaled

_RESERVED = ("term", "weight", "every", "view", "balance", "schedule")
VIEWS = ("weak", "strong")
"""Of the images: crop and flip; and a stronger augmentation of that."""
_LEVELS = ("peak_value", "value", "init_value", "end_value")  # what a schedule's values lie between
Steps = Callable[[curves.Duration], int]


def block(
    name: str,
    *,
    weight: float = 1.0,
    every: int = 1,
    view: str = "weak",
    balance: bool = False,
    schedule: ConfigDict | None = None,
    **given: Any,
) -> ConfigDict:
    """Returns the configuration of one line, with all the options of its term, for a configuration file.

    Args:
      name: of the term, as registered.
      weight: what the schedule is multiplied by; 0 switches the line off.
      every: compute it at every so many steps.
      view: of the images, one of `VIEWS`.
      balance: scale it to the size of the cross-entropy, see `losses.balanced`.
      schedule: what `gkd_jax.config.schedule` returned; constant by default.
      **given: options of the term; the others keep their defaults. One that the term takes as a schedule may be what
        `gkd_jax.config.schedule` returned.

    Raises:
      UserError: if no term has that name or one of these options.
    """
    _check_scheduled(name, [k for k, v in given.items() if _is_block(v)])
    terms.create(name, **{k: _unscheduled if _is_block(v) else v for k, v in given.items()})
    line = ConfigDict({"term": name, "weight": float(weight), "every": every, "view": view, "balance": balance})
    for option, value in _numbers(name, {**terms.options(name), **given}).items():
        line[option] = config.placeholder(value) if value is None else value
    # A copy: one schedule may be given to several lines, and a flag changes it in one of them
    line.schedule = config.schedule() if schedule is None else copy.deepcopy(schedule)
    return line


def _check_scheduled(term: str, given: Iterable[str]) -> None:
    """Raises `UserError` for an option that cannot be a schedule."""
    known, allowed = terms.options(term), terms.schedulable(term)
    for option in given:
        if option in known and option not in allowed:
            raise UserError(
                f"{option} of the term {term!r} takes no schedule; these do: {', '.join(allowed) or 'none'}"
            )


def _is_block(value: Any) -> bool:
    return isinstance(value, Mapping | ConfigDict)


def _unscheduled(count: Any) -> Array:
    """Stands for a schedule where it is only asked whether a term takes one."""
    return jnp.ones_like(jnp.asarray(count, jnp.float32))


def _numbers(term: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with 4 as 4.0 where the default is a float: the same run, however it was written."""
    real = {option for option, default in terms.options(term).items() if isinstance(default, float)}
    return {k: float(v) if k in real and type(v) is int else v for k, v in given.items()}


def resolve(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration `objective` with every default filled in and what is not used left out.

    Args:
      given: `mode`; `ce` with `weight`, `schedule` and options of the term "ce"; in the mode "convex" `schedule`;
        `terms`, by label, each with `term` (the label by default), `weight`, `every`, `view`, `balance`, `schedule`
        and the options of the term, some of which may be schedules too.

    Raises:
      UserError: names the field that is unknown or out of range.
    """
    mode = given["mode"]
    if mode not in ("sum", "convex"):
        raise UserError(f"objective.mode must be 'sum' or 'convex', not {mode!r}")
    convex = mode == "convex"
    resolved: dict[str, Any] = {"mode": mode}
    if convex:
        resolved["schedule"] = _resolve_schedule("objective.schedule", given["schedule"])
        _check_share(resolved["schedule"])
    resolved["ce"] = _resolve_line("objective.ce", "ce", given["ce"], convex)
    if convex and resolved["ce"]["weight"] != 1:
        raise UserError(
            "objective.ce.weight must be 1 in the mode 'convex', whose schedule sets it, not "
            f"{resolved['ce']['weight']}"
        )
    resolved["terms"] = {}
    for label, block in _fields("objective.terms", given["terms"]).items():
        if label == "ce":
            raise UserError("objective.terms.ce: cross-entropy stands under objective.ce")
        resolved["terms"][label] = _resolve_line(f"objective.terms.{label}", label, block, convex)
    return resolved


def _check_share(schedule: Mapping[str, Any]) -> None:
    """Raises `UserError` where the terms' share of a convex objective leaves [0, 1]."""
    for name in _LEVELS:
        if schedule.get(name, 0) > 1:
            raise UserError(
                f"objective.schedule.{name} must lie between 0 and 1 in the mode 'convex', not {schedule[name]}"
            )


def _fields(where: str, block: Any) -> dict[str, Any]:
    if not isinstance(block, Mapping | ConfigDict):
        raise UserError(f"{where} must hold fields, not {block!r}")
    return dict(block.items())


def _resolve_schedule(where: str, block: Any) -> dict[str, Any]:
    given = _fields(where, block)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{where}.name must be one of {', '.join(sorted(curves.PARAMETERS))}, not {name!r}")
    places = itertools.count(1)

    def in_order(duration: curves.Duration) -> int:
        config.steps_in(duration, 1, 1)  # says what is no duration
        return next(places)  # whether they follow one another depends on the run, see `build`

    try:
        resolved = {"name": name, **curves.resolve(name, given)}
        curves.create(name, given, 100, in_order)  # says what is out of range
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    for level in _LEVELS:
        if resolved.get(level, 0) < 0:
            raise UserError(
                f"{where}.{level} must be 0 or above, not {resolved[level]}: neither a weight nor an option is negative"
            )
    return resolved


def _resolve_line(where: str, label: str, block: Any, convex: bool) -> dict[str, Any]:
    given = _fields(where, block)
    name = given.pop("term", None) or label
    weight, every = given.pop("weight", 1.0), given.pop("every", 1)
    config.check_type(f"{where}.term", name, "")
    config.check_type(f"{where}.weight", weight, 1.0)
    config.check_type(f"{where}.every", every, 1)
    view, balance = given.pop("view", "weak"), given.pop("balance", False)
    config.check_type(f"{where}.balance", balance, False)
    if view not in VIEWS:
        raise UserError(f"{where}.view must be one of {', '.join(VIEWS)}, not {view!r}")
    if not (np.isfinite(weight) and weight >= 0):
        raise UserError(f"{where}.weight must be a finite number, 0 or above, not {weight}")
    if every < 1:
        raise UserError(f"{where}.every must be 1 or above, not {every}")
    schedule = _resolve_schedule(f"{where}.schedule", given.pop("schedule", None) or {"name": "constant"})
    if convex and schedule != _resolve_schedule("", {"name": "constant"}):
        raise UserError(
            f"{where}.schedule must be 'constant' with the value 1 in the mode 'convex', where objective.schedule "
            f"weighs all terms, not {schedule}"
        )
    scheduled = {k: _resolve_schedule(f"{where}.{k}", v) for k, v in given.items() if _is_block(v)}
    given = {**given, **scheduled}
    try:
        options = terms.options(name)
        _check_scheduled(name, scheduled)
        for option, value in given.items():
            if option in options and option not in scheduled and value is not options[option]:
                config.check_type(option, value, options[option])
                if isinstance(value, float) and not np.isfinite(value):
                    raise UserError(f"{option} must be a finite number, not {value}")
        terms.create(name, **{**given, **dict.fromkeys(scheduled, _unscheduled)})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except TypeError as error:  # an option whose default is None may be anything, and is not what the term expects
        unchecked = ", ".join(
            f"{k} = {v!r}" for k, v in given.items() if options.get(k) is None or isinstance(v, list | tuple)
        )
        raise UserError(
            f"{where}: the term {name!r} cannot work with {unchecked}: {str(error).splitlines()[0]}"
        ) from error
    return {
        "term": name,
        "weight": float(weight),
        "every": every,
        "view": view,
        "balance": balance,
        "schedule": schedule,
        **_numbers(name, {**options, **given}),
    }


def term_of(block: Mapping[str, Any], total_steps: int = 1, steps: Steps | None = None) -> Term:
    """Returns the term of one line of a resolved configuration.

    Args:
      block: the line.
      total_steps: of the run.
      steps: turns a duration into steps; where it only matters what the term needs, both may be left out.
    """
    given = {k: v for k, v in block.items() if k not in _RESERVED}
    for option, value in given.items():
        if _is_block(value):
            given[option] = _unscheduled if steps is None else _option(option, value, total_steps, steps)
    term = terms.create(block["term"], **given)
    return balanced(term) if block["balance"] else term


def _option(option: str, block: Mapping[str, Any], total_steps: int, steps: Steps) -> optax.Schedule:
    """Returns the schedule of a term's option."""
    parameters = {k: v for k, v in block.items() if k != "name"}
    curve = curves.create(block["name"], parameters, total_steps, steps)
    if jax.tree.leaves(curve.init):
        raise UserError(f"{option} takes no schedule that is fitted while training, such as {block['name']!r}")
    schedule = functools.partial(curve.at, ())
    if option == "temperature" and not np.all(np.asarray(jax.vmap(schedule)(jnp.arange(total_steps))) > 0):
        raise UserError(f"{option} is not above 0 over the whole run, by the schedule {block['name']!r}")
    return schedule


def build(resolved: Mapping[str, Any], total_steps: int, steps: Steps) -> dict[str, Line]:
    """Returns the lines of a resolved configuration, without those whose weight is 0 at every step.

    Args:
      resolved: what `resolve` returned.
      total_steps: of the run.
      steps: turns a duration into steps.

    Raises:
      UserError: if no line is left, or none that is computed at every step.
    """
    blocks = {"ce": resolved["ce"], **resolved["terms"]}
    lines = {}
    for label, block in blocks.items():
        curve = _curve(label, block, resolved, total_steps, steps)
        if block["weight"] == 0 or _always_zero(curve, total_steps):
            continue
        try:
            term = term_of(block, total_steps, steps)
        except UserError as error:
            raise UserError(f"objective.terms.{label}: {error}") from error
        lines[label] = Line(term, scaled(curve, block["weight"]), block["every"], block["view"])
    if not lines:
        raise UserError("objective: every weight is 0, there is nothing to learn from")
    if min(line.every for line in lines.values()) > 1:
        raise UserError("objective: some steps have no line at all; one line must have every = 1")
    return lines


def _curve(label: str, block: Mapping[str, Any], resolved: Mapping[str, Any], total_steps: int, steps: Steps) -> Weight:
    where = f"objective.terms.{label}.schedule" if label != "ce" else "objective.ce.schedule"
    schedule = block["schedule"]
    if resolved["mode"] == "convex":
        where, schedule = "objective.schedule", resolved["schedule"]
    parameters = {k: v for k, v in schedule.items() if k != "name"}
    try:
        curve = curves.create(schedule["name"], parameters, total_steps, steps)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return complement(curve) if resolved["mode"] == "convex" and label == "ce" else curve


def _always_zero(curve: Weight, total_steps: int) -> bool:
    return not np.any(np.asarray(jax.vmap(lambda count: curve.at(curve.init, count))(jnp.arange(total_steps))))
