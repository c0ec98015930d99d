r"""Step -> weight: the curves that a loss weight can follow over a run.

Every factory returns an `optax.Schedule`, a pure function of the step that works on Python integers and traced arrays
alike. Durations are in steps; rates and inflections of the S-shaped curves are per unit of :math:`t`, the fraction
of `transition_steps` that is done, :math:`t = \min(\text{count} / \text{transition\_steps}, 1)`, so that a curve keeps
its shape when a run is made longer. The value reached at the end is held afterwards.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array

# Where the second derivative of a Gompertz or logistic curve in u = c (t - t*) is extreme: |u| is this far from 0.
_GOMPERTZ_BEND = math.log((3 + math.sqrt(5)) / 2)
_LOGISTIC_BEND = math.log(2 + math.sqrt(3))

STAGES = ("growth", "rapid", "saturation")
Bounds = tuple[float, float]  # of the rapid stage, as fractions of the run


class Weight(NamedTuple):
    """A weight that may carry parameters of its own, refitted at the end of each epoch.

    Attributes:
      init: the parameters at the start; `()` for a plain schedule.
      at: `(params, step) -> scalar`.
      refit: `(params, history) -> params`, where the history has the accuracy on the training images of each epoch of
        the run, NaN for those to come; the identity for a plain schedule.
      bounds: `params -> ` where its rapid stage begins and ends; None if it has no stages.
    """

    init: Any
    at: Callable[[Any, Any], Array]
    refit: Callable[[Any, Any], Any] = lambda params, history: params
    bounds: Callable[[Any], Bounds | None] = lambda params: None


def fixed(schedule: optax.Schedule, bounds: Bounds | None = None) -> Weight:
    """Returns `schedule` as a `Weight` without parameters."""
    return Weight((), lambda params, step: schedule(step), bounds=lambda params: bounds)


def scaled(weight: Weight, factor: float) -> Weight:
    """Returns `factor` times a weight."""
    return weight._replace(at=lambda params, step: factor * weight.at(params, step))


def complement(weight: Weight) -> Weight:
    """Returns 1 minus a weight, which has no stages."""
    return weight._replace(at=lambda params, step: 1.0 - weight.at(params, step), bounds=lambda params: None)


def progress(count: Any, transition_steps: int) -> Array:
    """Returns t, the share of `transition_steps` that is done, in [0, 1]."""
    return jnp.clip(jnp.asarray(count, jnp.float32) / transition_steps, 0.0, 1.0)


def positive(**values: float) -> None:
    """Raises ValueError unless each of `values` is a finite number above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, not {value}")


def gompertz(peak_value: float, displacement: float, rate: float, transition_steps: int) -> optax.Schedule:
    r"""Gompertz growth: slow start, rapid middle, saturation.

    .. math::

      G(t) = A \exp(-b \exp(-c t)), \qquad t = \min(\text{count} / \text{transition\_steps}, 1)

    where :math:`A` is `peak_value`, :math:`b` is `displacement` and :math:`c` is `rate`.

    Args:
      peak_value: the asymptote A, approached from below.
      displacement: b; the curve starts at A exp(-b).
      rate: c, per unit of t.
      transition_steps: number of steps over which t goes from 0 to 1.

    Returns:
      The schedule, count in steps.

    Raises:
      ValueError: if `displacement`, `rate` or `transition_steps` is not above 0.

    Examples:
      >>> weight = gompertz(peak_value=1.0, displacement=20.0, rate=10.0, transition_steps=100)
      >>> [round(float(weight(count)), 3) for count in (0, 30, 100, 200)]
      [0.0, 0.369, 0.999, 0.999]

    References:
      Gompertz, On the nature of the function expressive of the law of human mortality, Phil. Trans. 1825; as the
      weight of distillation losses, Yang & Qin, arXiv 2510.21649, 2025 (abstract; the parametrisation is ours).
    """
    positive(displacement=displacement)
    positive(rate=rate)
    return gompertz_from_inflection(peak_value, math.log(displacement) / rate, rate, transition_steps)


def gompertz_from_inflection(
    peak_value: float, inflection: float, rate: float, transition_steps: int
) -> optax.Schedule:
    r"""Gompertz growth given by the place of its steepest point.

    .. math::

      G(t) = A \exp(-\exp(-c (t - t^*)))

    which is `gompertz` with :math:`b = \exp(c t^*)`. At :math:`t^*` its value is :math:`A / e` and its slope
    :math:`A c / e` is the largest.

    Args:
      peak_value: the asymptote A.
      inflection: t*, as a fraction of the run.
      rate: c, per unit of t.
      transition_steps: number of steps over which t goes from 0 to 1.

    Returns:
      The schedule, count in steps.

    Raises:
      ValueError: if `rate` or `transition_steps` is not above 0.

    Examples:
      >>> weight = gompertz_from_inflection(peak_value=1.0, inflection=0.3, rate=10.0, transition_steps=1000)
      >>> [round(float(weight(count)), 3) for count in (0, 300, 500, 1000)]
      [0.0, 0.368, 0.873, 0.999]

    References:
      As `gompertz`.
    """
    positive(rate=rate, transition_steps=transition_steps)

    def schedule(count: Any) -> Array:
        # Where the inner exponential overflows to infinity, exp(-inf) = 0 is the right value.
        return peak_value * jnp.exp(-jnp.exp(-rate * (progress(count, transition_steps) - inflection)))

    return schedule


def logistic(peak_value: float, inflection: float, rate: float, transition_steps: int) -> optax.Schedule:
    r"""Logistic growth, the symmetric S-curve.

    .. math::

      w(t) = A / (1 + \exp(-c (t - t^*)))

    Args:
      peak_value: the asymptote A.
      inflection: t*, where the value is A / 2 and the slope largest, as a fraction of the run.
      rate: c, per unit of t.
      transition_steps: number of steps over which t goes from 0 to 1.

    Returns:
      The schedule, count in steps.

    Raises:
      ValueError: if `rate` or `transition_steps` is not above 0.
    """
    positive(rate=rate, transition_steps=transition_steps)

    def schedule(count: Any) -> Array:
        return peak_value / (1.0 + jnp.exp(-rate * (progress(count, transition_steps) - inflection)))

    return schedule


def constant(value: float) -> optax.Schedule:
    """The same value at every step."""
    return optax.schedules.constant_schedule(value)


def linear(init_value: float, end_value: float, transition_steps: int, transition_begin: int = 0) -> optax.Schedule:
    r"""From `init_value` to `end_value` in a straight line.

    .. math::

      w(s) = w_0 + (w_1 - w_0)\, s, \qquad
      s = \mathrm{clip}\left(\frac{\text{count} - \text{transition\_begin}}{\text{transition\_steps}}, 0, 1\right)

    Args:
      init_value: the value up to `transition_begin`.
      end_value: the value from `transition_begin + transition_steps` on.
      transition_steps: number of steps of the transition.
      transition_begin: number of steps before it.

    Returns:
      The schedule, count in steps.

    Raises:
      ValueError: if `transition_steps` is not above 0.
    """
    positive(transition_steps=transition_steps)
    return optax.schedules.linear_schedule(init_value, end_value, transition_steps, transition_begin)


def cosine(init_value: float, end_value: float, transition_steps: int, transition_begin: int = 0) -> optax.Schedule:
    r"""From `init_value` to `end_value` along half a cosine, level at both ends.

    .. math::

      w(s) = w_0 + (w_1 - w_0)\, \tfrac{1}{2} (1 - \cos \pi s)

    with s as in `linear`, whose arguments it has.
    """
    positive(transition_steps=transition_steps)

    def schedule(count: Any) -> Array:
        s = progress(jnp.asarray(count) - transition_begin, transition_steps)
        return init_value + (end_value - init_value) * 0.5 * (1.0 - jnp.cos(jnp.pi * s))

    return schedule


def step(init_value: float, end_value: float, transition_begin: int) -> optax.Schedule:
    """`init_value` before the step `transition_begin`, `end_value` from it on."""

    def schedule(count: Any) -> Array:
        return jnp.where(jnp.asarray(count) < transition_begin, jnp.float32(init_value), jnp.float32(end_value))

    return schedule


def rise_then_decay(peak_value: float, end_value: float, rise_steps: int, decay_steps: int) -> optax.Schedule:
    """From 0 to `peak_value` along half a cosine over `rise_steps`, then to `end_value` likewise over `decay_steps`.

    Raises:
      ValueError: if `rise_steps` or `decay_steps` is not above 0.
    """
    rise = cosine(0.0, peak_value, rise_steps)
    decay = cosine(peak_value, end_value, decay_steps)

    def schedule(count: Any) -> Array:
        return jnp.where(jnp.asarray(count) < rise_steps, rise(count), decay(jnp.asarray(count) - rise_steps))

    return schedule


def stage_bounds(name: str, inflection: float, rate: float) -> Bounds:
    r"""Returns the fractions of the run at which an S-curve's rapid stage begins and ends.

    They are the points of greatest acceleration and deceleration: for a Gompertz curve
    :math:`t^* \mp \ln((3 + \sqrt 5) / 2) / c` (the zeros of :math:`G'''`), for a logistic one
    :math:`t^* \mp \ln(2 + \sqrt 3) / c`.
    """
    bend = {"gompertz": _GOMPERTZ_BEND, "logistic": _LOGISTIC_BEND}[name] / rate
    return inflection - bend, inflection + bend


def stage(done: float, bounds: Bounds) -> str:
    """Returns "growth", "rapid" or "saturation", the stage at the fraction `done` of the run."""
    return STAGES[sum(done >= bound for bound in bounds)]
