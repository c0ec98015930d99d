"""The student's optimiser: SGD with momentum, under a learning rate in steps or along a cosine."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from gkd_jax.curves import Duration
from gkd_jax.errors import UserError


def learning_rate(config: Mapping[str, Any], total_steps: int, steps: Callable[[Duration], int]) -> optax.Schedule:
    """Returns the learning rate over a run of `total_steps`.

    "steps" multiplies it by `factor` at each of `drops`; "cosine" lets it fall to 0 along half a cosine
    (Loshchilov & Hutter, SGDR, ICLR 2017, without restarts). `warmup`, where it is not 0, leads to it from 0 in a
    straight line.

    Args:
      config: `learning_rate`, `schedule`, `drops`, `factor` and `warmup`.
      total_steps: of the run.
      steps: turns a duration into steps.

    Raises:
      UserError: if a duration lies outside the run.
    """
    peak, warmup = config["learning_rate"], steps(config["warmup"])
    if warmup >= total_steps:
        raise UserError(f"optimizer.warmup: {config['warmup']} is not shorter than the run of {total_steps} steps")
    if config["schedule"] == "cosine":
        after = optax.schedules.cosine_decay_schedule(peak, total_steps - warmup)
    else:
        after = optax.schedules.piecewise_constant_schedule(peak, _drops(config, warmup, total_steps, steps))
    if not warmup:
        return after
    return optax.schedules.join_schedules([optax.schedules.linear_schedule(0.0, peak, warmup), after], [warmup])


def _drops(
    config: Mapping[str, Any], warmup: int, total_steps: int, steps: Callable[[Duration], int]
) -> dict[int, float]:
    """Returns the factor at each step, counted from the end of the warm-up, where this schedule begins."""
    factors: dict[int, float] = {}
    for drop in config["drops"]:
        if steps(drop) > total_steps:
            raise UserError(f"optimizer.drops: {drop} is {steps(drop)} steps, but the run has {total_steps}")
        at = max(steps(drop) - warmup, 0)
        factors[at] = factors.get(at, 1.0) * config["factor"]  # two drops may meet in a short run
    return factors


def sgd(config: Mapping[str, Any], rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns SGD as PyTorch's: the decay of all parameters is added to the gradient before the momentum.

    Args:
      config: `momentum`, `nesterov` and `weight_decay`.
      rate: the learning rate by step.
    """
    return optax.chain(
        optax.add_decayed_weights(config["weight_decay"]),
        optax.sgd(rate, momentum=config["momentum"] or None, nesterov=config["nesterov"]),
    )
