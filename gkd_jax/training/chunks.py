"""Several steps in one program: a loop on the device, so that the host starts a hundred steps with one call.

A chunk is a number of macro-steps, each of as many steps as it takes until every line of the objective that is computed
at every so many steps has come round; it starts where a macro-step does, counted from the start of the run. What of an
epoch stands before its first macro-step or behind its last chunk is done step by step.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from gkd_jax.training.step import Fixed, Plan

State = Any  # a state, or whatever else a step takes and returns
AnyStep = Callable[[State, Plan, Fixed], State]


def length(steps_per_epoch: int, period: int, limit: int) -> int:
    """Returns the steps of a chunk: a multiple of `period` of about `limit`, chosen so that few are left over.

    Args:
      steps_per_epoch: of the run.
      period: steps of a macro-step.
      limit: the most steps that a chunk may have; 1 for no chunks.

    Returns:
      1 if not even two macro-steps fit.
    """
    macros = (steps_per_epoch - (period - 1)) // period  # however the epoch lies to them
    most = min(limit // period, macros)
    if most < 2:
        return 1
    # The largest number that divides the epoch leaves nothing over; if it is too small, little is left of even parts
    divisor = max(n for n in range(1, most + 1) if macros % n == 0)
    return period * (divisor if 4 * divisor >= most else macros // -(-macros // most))


def begins(step: int, steps_per_epoch: int, period: int, chunk: int) -> bool:
    """Returns whether a chunk of that length is what comes at `step` of the run."""
    if chunk == 1:
        return False
    start = step - step % steps_per_epoch
    first = start + -start % period
    behind = step - first
    return behind >= 0 and behind % chunk == 0 and step + chunk <= start + steps_per_epoch


def chunked(steps: Sequence[AnyStep], chunk: int) -> AnyStep:
    """Returns the function that does `chunk` steps, the variants `steps` in turn.

    Equal variants that follow one another are a loop of their own, so that each is compiled once or twice, however many
    steps a macro-step has.
    """
    runs = [(step, len(list(same))) for step, same in itertools.groupby(steps)]

    def macro_step(state: State, plan: Plan, fixed: Fixed) -> State:
        for step, times in runs:
            state = _repeated(step, times, state, plan, fixed)
        return state

    return functools.partial(_repeated, macro_step, chunk // len(steps))


def _repeated(step: AnyStep, times: int, state: State, plan: Plan, fixed: Fixed) -> State:
    def body(state: State, _: None) -> tuple[State, None]:
        return step(state, plan, fixed), None

    return step(state, plan, fixed) if times == 1 else jax.lax.scan(body, state, None, length=times)[0]
