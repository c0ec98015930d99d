"""The batch statistics of BatchNorm, in two forms: what is fast differs from backend to backend.

Neither is E[x²] - E[x]², which cancels where the mean is large against the deviation.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """What normalises maps x by `(moved - left) / √(variance + ε)`.

    Attributes:
      moved: x less a value of each channel.
      left: the mean of that, for each channel; None if it is zero.
      mean: of x.
      variance: of x, divided by the number of values.
    """

    moved: Float[Array, "b h w k"]
    left: Float[Array, " k"] | None
    mean: Float[Array, " k"]
    variance: Float[Array, " k"]


def two_passes(x: Float[Array, "b h w k"]) -> Moments:
    """Returns the moments by the mean first, then by the mean of squared deviations: the faster form on a CPU."""
    mean = x.mean((0, 1, 2))
    moved = x - mean[None, None, None]
    return Moments(moved, None, mean, jnp.square(moved).mean((0, 1, 2)))


def one_pass(x: Float[Array, "b h w k"]) -> Moments:
    """Returns the moments by sums of `d = x - x₀` and of d² together, the variance as E[d²] - E[d]².

    x₀ is the first value of each channel, some deviations away from the mean at most, whatever the mean is; nothing
    cancels. On an accelerator a sum is a launch or two that the next waits for: here one follows the other neither
    forwards nor backwards, where `Σ dy` and `Σ dy·d` are all that is summed.
    """
    first = lax.stop_gradient(x[0, 0, 0])
    moved = x - first[None, None, None]
    left, square = moved.mean((0, 1, 2)), jnp.square(moved).mean((0, 1, 2))
    return Moments(moved, left, first + left, jnp.maximum(square - jnp.square(left), 0.0))
