"""The weight of a line over a run, by the name of its schedule."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from gkd_jax import schedules
from gkd_jax.adaptive import gompertz_adaptive
from gkd_jax.errors import UserError, nearest, unknown
from gkd_jax.schedules import Weight, fixed

Duration = str | int | float  # "20ep", "10%" or a number of steps

_DURATIONS = ("begin", "peak", "end")

# The parameters of each schedule in a configuration; None is "not given".
PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "constant": {"value": 1.0},
    "gompertz": {"peak_value": 1.0, "inflection": 0.3, "displacement": None, "rate": 10.0},
    "gompertz_adaptive": {"peak_value": 1.0, "inflection": 0.3, "rate": 10.0, "min_inflection": 0.1},
    "logistic": {"peak_value": 1.0, "inflection": 0.3, "rate": 10.0},
    "linear": {"init_value": 0.0, "end_value": 1.0, "begin": "0%", "end": "100%"},
    "cosine": {"init_value": 0.0, "end_value": 1.0, "begin": "0%", "end": "100%"},
    "step": {"init_value": 0.0, "end_value": 1.0, "begin": "30%"},
    "rise_then_decay": {"peak_value": 1.0, "end_value": 0.0, "peak": "30%", "end": "100%"},
}


def resolve(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of the schedule `name`: those `given` (None is not given), defaults for the rest.

    Parameters that only other schedules have are left out, so that a configuration can list those of all.

    Raises:
      UserError: if no schedule has that name, none has such a parameter, or both `inflection` and `displacement`
        are given.
    """
    if name not in PARAMETERS:
        raise unknown("schedule", name, PARAMETERS)
    everywhere = {parameter for parameters in PARAMETERS.values() for parameter in parameters}
    for parameter in given:
        if parameter not in everywhere:
            raise UserError(f"no schedule has a parameter {parameter!r}{nearest(parameter, everywhere)}")
    chosen = {k: v for k, v in given.items() if v is not None and k in PARAMETERS[name]}
    if {"inflection", "displacement"} <= set(chosen):
        raise UserError("a gompertz schedule takes inflection or displacement, not both; set one of them to None")
    numbers = {k: float(v) for k, v in chosen.items() if type(v) is int and k not in _DURATIONS}  # 10 and 10.0 are one
    resolved = {**PARAMETERS[name], **chosen, **numbers}
    if name == "gompertz":
        resolved.pop("inflection" if "displacement" in chosen else "displacement")
    return resolved


def create(name: str, given: Mapping[str, Any], total_steps: int, steps: Callable[[Duration], int]) -> Weight:
    """Returns the weight that follows the schedule `name` over a run of `total_steps`.

    Args:
      name: a key of `PARAMETERS`.
      given: its parameters; those left out or None take their defaults.
      total_steps: of the run.
      steps: turns a duration into a number of steps.

    Raises:
      UserError: as `resolve`, or if a value is no number or out of range.
    """
    p = resolve(name, given)
    at: dict[str, int] = {k: steps(p.pop(k)) for k in _DURATIONS if k in p}
    for parameter, value in p.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{parameter} must be a finite number, not {value!r}")
    try:
        match name:
            case "gompertz":
                grow = schedules.gompertz if "displacement" in p else schedules.gompertz_from_inflection
                schedule = grow(**p, transition_steps=total_steps)  # checks what the next line divides by
                inflection = p["inflection"] if "inflection" in p else math.log(p["displacement"]) / p["rate"]
                return fixed(schedule, schedules.stage_bounds(name, inflection, p["rate"]))
            case "gompertz_adaptive":
                return gompertz_adaptive(**p, transition_steps=total_steps)
            case "logistic":
                schedule = schedules.logistic(**p, transition_steps=total_steps)
                return fixed(schedule, schedules.stage_bounds(name, p["inflection"], p["rate"]))
            case "linear" | "cosine":
                go = schedules.linear if name == "linear" else schedules.cosine
                length = _between(at, "begin", "end")
                return fixed(go(**p, transition_steps=length, transition_begin=at["begin"]))
            case "step":
                return fixed(schedules.step(**p, transition_begin=at["begin"]))
            case "rise_then_decay":
                decay = _between(at, "peak", "end")
                return fixed(schedules.rise_then_decay(**p, rise_steps=at["peak"], decay_steps=decay))
            case _:
                return fixed(schedules.constant(**p))
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"schedule {name!r}: {error}") from error


def _between(at: Mapping[str, int], first: str, last: str) -> int:
    if at[last] <= at[first]:
        raise ValueError(f"{last} must come after {first}, but they are steps {at[last]} and {at[first]}")
    return at[last] - at[first]
