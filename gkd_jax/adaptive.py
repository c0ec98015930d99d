"""A Gompertz weight that is fitted to the student's own accuracy while it learns."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array

from gkd_jax.schedules import Bounds, Weight, positive, progress, stage_bounds

_RATES = (4.0, 40.0)  # what the fitted rate lies between: slower curves have not grown up by the end of the run
_HASTE = 2.0  # how much steeper than the given curve the weight may become, where a new fit asks for more at once
# How far from the curve an accuracy usually lies, and how far from what is expected the fitted inflection, the
# logarithm of the fitted rate and the accuracy in the end: with few epochs the latter decide, with many the accuracies
_NOISE, _INFLECTION, _RATE, _PEAK = 0.02, 0.15, 0.5, 0.2
_EXPECTED_PEAK = 0.9


def gompertz_adaptive(
    peak_value: float, inflection: float, rate: float, min_inflection: float, transition_steps: int
) -> Weight:
    r"""Gompertz growth in step with the student's.

    At the end of each epoch the curve :math:`A \exp(-\exp(-c (t - t^*)))` is fitted to the accuracies on the training
    images so far, each at the middle of its epoch, and from there on the weight is

    .. math::

      w(t) = P \min\big(\max(g_0, G(t)),\; g_0 + 2 (c_0 / e) (t - t_0)\big), \qquad
      G(t) = \exp(-\exp(-c (t - t^*)))

    with the fitted :math:`t^*` and :math:`c`, where P is `peak_value`, :math:`t_0` the end of the epoch and
    :math:`g_0` what w / P had reached there: the weight follows the stage of the student's growth, never falls, and
    rises at most twice as steeply as the curve of the given rate :math:`c_0`, so that a new fit is no jump. The fit is
    by least squares within bounds, :math:`\max_e a_e \le A \le 1`, `min_inflection` :math:`\le t^* \le 1`, :math:`4
    \le c \le 40`, robust to single epochs (soft L1), and drawn to the given inflection and rate, which decide where
    accuracies say little, and to A = 0.9, since the slow start of a curve to a high accuracy looks like the whole of
    one to a low accuracy. The lower bound of the inflection matters: an accuracy often grows the slower the longer
    from the first epoch on, which without it would be saturation at once, and with it is an inflection at that bound.

    Args:
      peak_value: P.
      inflection: t* before the first epoch has ended.
      rate: c before that, per unit of t.
      min_inflection: the least t* that is fitted.
      transition_steps: steps of the run.

    Returns:
      A weight with the parameters "inflection", "rate", "reached" (:math:`g_0`) and "since" (:math:`t_0`), float32
      scalars. Fits run on the host: `refit` is not for `jax.jit`.

    Raises:
      ValueError: if `rate` is not between 4 and 40, `min_inflection` not above 0 and below 1, `inflection` not between
        `min_inflection` and 1, or `transition_steps` not above 0.

    References:
      This project's; the abstract of Yang & Qin, arXiv 2510.21649, 2025, asks for weights that reflect how the student
      learns.
    """
    positive(transition_steps=transition_steps)
    if not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(f"rate must be between {_RATES[0]:g} and {_RATES[1]:g}, not {rate}")
    if not 0 < min_inflection < 1:
        raise ValueError(f"min_inflection must be above 0 and below 1, not {min_inflection}")
    if not min_inflection <= inflection <= 1:
        raise ValueError(f"inflection must be between min_inflection, {min_inflection}, and 1, not {inflection}")

    steepest = _HASTE * rate / math.e

    def grown(params: Mapping[str, Any], t: Any) -> Array:
        curve = jnp.exp(-jnp.exp(-params["rate"] * (t - params["inflection"])))
        most = params["reached"] + steepest * (t - params["since"])
        return jnp.minimum(jnp.maximum(params["reached"], curve), most)

    def at(params: Mapping[str, Any], step: Any) -> Array:
        return peak_value * grown(params, progress(step, transition_steps))

    def refit(params: Mapping[str, Any], history: Any) -> Mapping[str, Array]:
        accuracies = np.asarray(history, np.float64)
        epochs = len(accuracies)
        accuracies = accuracies[: np.isnan(accuracies).argmax() if np.isnan(accuracies).any() else epochs]
        if not len(accuracies):
            return params
        found = fit(accuracies, epochs, inflection, rate, min_inflection)
        now = jnp.float32(len(accuracies)) / epochs
        fitted = {"inflection": jnp.float32(found[0]), "rate": jnp.float32(found[1])}
        return {**fitted, "reached": grown(params, now), "since": now}

    def bounds(params: Mapping[str, Any]) -> Bounds:
        return stage_bounds("gompertz", float(params["inflection"]), float(params["rate"]))

    start = {"inflection": inflection, "rate": rate, "reached": 0.0, "since": -1.0}
    return Weight({name: jnp.float32(value) for name, value in start.items()}, at, refit, bounds)


def fit(
    accuracies: np.ndarray, epochs: int, inflection: float, rate: float, min_inflection: float
) -> tuple[float, float]:
    """Returns inflection and rate of the Gompertz curve through the accuracies of the first epochs of a run.

    Args:
      accuracies: float [n], n above 0, from the first epoch on.
      epochs: of the whole run.
      inflection: that the fit is drawn to.
      rate: likewise.
      min_inflection: the least that is fitted.
    """
    t = (np.arange(len(accuracies)) + 0.5) / epochs
    highest = min(float(accuracies.max()), 1 - 1e-6)

    def soft(x: np.ndarray) -> np.ndarray:  # whose squares are the soft L1 loss of x
        return np.sign(x) * np.sqrt(2 * (np.sqrt(1 + x**2) - 1))

    def residuals(p: np.ndarray) -> np.ndarray:
        peak, place, log_rate = p
        curve = peak * np.exp(-np.exp(-math.exp(log_rate) * (t - place)))
        drawn = (place - inflection) / _INFLECTION, (log_rate - math.log(rate)) / _RATE
        return np.array([*soft((curve - accuracies) / _NOISE), *drawn, (peak - _EXPECTED_PEAK) / _PEAK])

    low, high = zip((highest, 1.0), (min_inflection, 1.0), tuple(map(math.log, _RATES)), strict=True)
    start = np.clip([1.1 * highest, inflection, math.log(rate)], low, high)
    _, place, log_rate = scipy.optimize.least_squares(residuals, start, bounds=(low, high)).x
    return float(place), math.exp(log_rate)
