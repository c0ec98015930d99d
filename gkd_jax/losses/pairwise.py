"""Between all pairs of rows: inner products, squared distances, cosines; of single rows: direction and spread."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Below this a vector counts as zero: its inverse enters the backward pass, where 1 / 1e-38 times a sum overflows.
_NEGLIGIBLE = 1e-30

# Of a spread, relative to the largest entry: below this it is nothing but rounding of the mean.
_ROUNDING = 1e-6


def unit(
    x: Float[Array, "*batch d"], negligible: float = _NEGLIGIBLE
) -> tuple[Float[Array, "*batch d"], Bool[Array, "*batch"]]:
    r"""Vectors divided by their length, :math:`x / \|x\|`.

    Each vector is first divided by its largest magnitude, a constant to differentiation, so that the squares of tiny or
    huge entries stay in range; the direction does not depend on the scale.

    Args:
      x: vectors, of any float type.
      negligible: a vector with no entry above this has no direction.

    Returns:
      In float32, vectors of length 1 (a pure number), and whether each has a direction. One that has none comes back as
      zeros with derivative 0. NaN counts as a direction, so that it is seen. Derivatives are valid everywhere else, and
      grow like 1 / ‖x‖.
    """
    x = x.astype(jnp.float32)
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    known = ~(size <= negligible)
    # Zeros are replaced before the root: a `where` behind it would still multiply an infinite derivative by zero.
    x = jnp.where(known, x / jnp.where(known, size, 1), 1)
    return jnp.where(known, x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True)), 0), known[..., 0]


def centred(
    x: Float[Array, "*batch d"],
) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch"], Bool[Array, "*batch"]]:
    r"""Rows without their mean, and how far their entries spread.

    .. math:: x - \bar x, \qquad \sigma^2 = \frac{1}{d - 1} \sum_i (x_i - \bar x)^2

    Args:
      x: rows, of any float type.

    Returns:
      In float32: rows that sum to zero, in the unit of x; σ of each, in the same unit; and whether a row spreads at
      all. One whose σ is at most 1e-6 of its largest magnitude does not: the caller leaves it out, and its σ is 1, so
      that derivatives stay finite. NaN counts as spread, so that it is seen.
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.sum(x * x, axis=-1) / max(x.shape[-1] - 1, 1)
    known = ~(variance <= (_ROUNDING * largest) ** 2)
    # Replaced before the root: a `where` behind it would still multiply an infinite derivative by zero.
    return x, jnp.sqrt(jnp.where(known, variance, 1)), known


def inner_products(x: Float[Array, "*batch n d"], y: Float[Array, "*batch m d"]) -> Float[Array, "*batch n m"]:
    r"""Inner products :math:`\langle x_i, y_j \rangle` between the rows of x and of y.

    Args:
      x: n rows, of any float type.
      y: m rows.

    Returns:
      In float32, in the unit of x times that of y, a sum over d.
    """
    # The default would round to TF32 or bfloat16 on accelerators, a good part of the distance of close points.
    return jnp.einsum(
        "...nd,...md->...nm", x.astype(jnp.float32), y.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )


def squared_distances(x: Float[Array, "*batch n d"], y: Float[Array, "*batch m d"]) -> Float[Array, "*batch n m"]:
    r"""Squared Euclidean distances between the rows of x and of y.

    .. math:: \|x_i - y_j\|^2 = \|x_i\|^2 + \|y_j\|^2 - 2 \langle x_i, y_j \rangle

    Args:
      x: n rows, of any float type.
      y: m rows.

    Returns:
      In float32, in squared units of x, a sum over d. Right to 1e-6 of ‖x_i‖² + ‖y_j‖²: equal rows may be slightly
      apart, or below zero. Differentiable to any order.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.sum(x * x, axis=-1)[..., :, None] + jnp.sum(y * y, axis=-1)[..., None, :] - 2 * inner_products(x, y)


def cosines(x: Float[Array, "*batch n d"], y: Float[Array, "*batch m d"]) -> Float[Array, "*batch n m"]:
    r"""Cosines between the rows of x and of y.

    .. math:: \frac{\langle x_i, y_j \rangle}{\|x_i\| \, \|y_j\|}

    Args:
      x: n rows, of any float type.
      y: m rows.

    Returns:
      In float32, from -1 to 1 up to rounding; 0, with derivative 0, where one of the rows is zero (see `unit`).
    """
    return inner_products(unit(x)[0], unit(y)[0])
