"""Normalisation by the statistics of the batch, and a derivative of its own for XLA's CPU backend."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

BATCH_NORM_EPSILON = 1e-5

Images = Float[Array, "b h w k"]
Channels = Float[Array, " k"]


def per_channel(values: Channels) -> Float[Array, "1 1 1 k"]:
    """Returns values of channels in the shape that meets images."""
    return values[None, None, None]


def normalise_batch(x: Images, scale: Channels, bias: Channels, form: str) -> tuple[Images, Channels, Channels]:
    """Returns `scale · (x - μ) / √(σ² + 1e-5) + bias` with μ and σ² of the batch, and these two.

    The variance is the mean of squared deviations, divided by n, since E[x²] - E[x]² cancels for large means. Both
    statistics are constants to differentiation where they are returned; in the first result they are not.

    Args:
      x: the images, float32 or wider.
      scale: of each channel.
      bias: of each channel.
      form: of the convolutions. With "cpu" the derivative is `_normalised`'s; reverse mode alone.
    """
    if form == "cpu":
        return _normalised(x, scale, bias), *jax.lax.stop_gradient(_statistics(x))
    mean, var = _statistics(x)
    y = (x - per_channel(mean)) * per_channel(scale * lax.rsqrt(var + BATCH_NORM_EPSILON)) + per_channel(bias)
    return y, *jax.lax.stop_gradient((mean, var))


def _statistics(x: Images) -> tuple[Channels, Channels]:
    mean = x.mean((0, 1, 2))
    return mean, jnp.square(x - per_channel(mean)).mean((0, 1, 2))


@jax.custom_vjp
def _normalised(x: Images, scale: Channels, bias: Channels) -> Images:
    mean, var = _statistics(x)
    return (x - per_channel(mean)) * per_channel(scale * lax.rsqrt(var + BATCH_NORM_EPSILON)) + per_channel(bias)


_Residuals = tuple[Images, Channels, Channels, Channels]


def _forward(x: Images, scale: Channels, bias: Channels) -> tuple[Images, _Residuals]:
    mean, var = _statistics(x)
    rate = lax.rsqrt(var + BATCH_NORM_EPSILON)
    return (x - per_channel(mean)) * per_channel(scale * rate) + per_channel(bias), (x, scale, mean, rate)


def _backward(kept: _Residuals, dy: Images) -> tuple[Images, Channels, Channels]:
    """The closed form, which needs two sums where the chain rule needs more, both in one reduction across devices."""
    x, scale, mean, rate = kept
    n = x.size // x.shape[-1]
    unit = (x - per_channel(mean)) * per_channel(rate)
    # Over each example's positions first: what is left to add up across devices is one small array
    sums = jnp.stack([dy.sum((1, 2)), (dy * unit).sum((1, 2))]).sum(1)
    dbias, dscale = sums[0], sums[1]
    dx = per_channel(scale * rate) * (dy - per_channel(dbias / n) - unit * per_channel(dscale / n))
    return dx, dscale, dbias


_normalised.defvjp(_forward, _backward)
