"""WKD-F: normal distributions fitted to the cells of feature maps, by their Wasserstein distance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gkd_jax.losses import fields
from gkd_jax.losses.feature import regressed
from gkd_jax.losses.term import Term, register

_EPSILON = 1e-5  # under the root, as published


def gaussian_cells(
    student: Float[Array, "b h w k"], teacher: Float[Array, "b u v k"], *, grid: int = 1, ratio: float | int = 1.0
) -> Float[Array, " b"]:
    r"""Squared 2-Wasserstein distance between normal distributions in the cells of two feature maps, averaged.

    .. math:: \frac1{g^2} \sum_{ij} \rho \, \|\mu^S_{ij} - \mu^T_{ij}\|^2 + \|\sigma^S_{ij} - \sigma^T_{ij}\|^2

    with mean and standard deviation of each channel over the positions of cell (i, j) of g x g, which are the windows
    of `fields.pool` (WKD-F: Lv, Yang and Li, `Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
    Distillation <https://arxiv.org/abs/2412.08139>`_, 2024, the diagonal form). As in the published code the norms are
    sums over channels, cells are averaged, and σ is the root of the unbiased variance + 1e-5.

    Args:
      student: maps, projected to the teacher's channels, of any float type.
      teacher: maps, a constant, of any height and width.
      grid: g; at most the smaller side of either map (ours: the published code gives NaN for cells of one position;
        here their σ is a constant).
      ratio: ρ >= 0.

    Returns:
      One float32 value an example, in squared features: a sum over channels, a mean over cells. Zero at equality, with
      finite derivatives everywhere.
    """
    side = min(grid, *student.shape[1:3], *teacher.shape[1:3])

    def moments(x: Array) -> tuple[Array, Array]:
        cells = [
            fields.moments(fields.tokens(x[:, rows, columns]), _EPSILON, unbiased=True)
            for rows in fields.windows(x.shape[1], side)
            for columns in fields.windows(x.shape[2], side)
        ]
        mean, std = zip(*cells, strict=True)
        return jnp.stack(mean, axis=1), jnp.stack(std, axis=1)

    (mean_s, std_s), (mean_t, std_t) = moments(student), moments(jax.lax.stop_gradient(teacher))
    cost = ratio * jnp.sum((mean_s - mean_t) ** 2, axis=2) + jnp.sum((std_s - std_t) ** 2, axis=2)
    return jnp.mean(cost, axis=1)


@register("wkd_f")
def wkd_f_term(*, stage: int = -1, grid: int = 1, ratio: float | int = 4.0) -> Term:
    """The term "wkd_f": `gaussian_cells` between the student's regressed features and the teacher's, at one stage.

    The regressor is `heads.regressor`, published as "conv1x1": a convolution (1x1 where the sizes are equal), BatchNorm
    and ReLU, at equal widths too, so the value is not zero for a copy of the teacher. The term "wasserstein" of kind
    "gaussian" is the same distance with a plain projection and the biased variance. Its unit is one squared feature: a
    sum over channels, the mean over cells.

    Published weights, cosine-decayed to 0 from epoch 150 of 240: 0.08 with `grid` 1 and `ratio` 4, or 0.3 with 4 and 3.

    Args:
      stage: which feature map; the published one is the last.
      grid: cells a side.
      ratio: the weight of the means against the standard deviations.

    Raises:
      ValueError: if `grid` is not positive or `ratio` is negative.
    """
    if grid < 1:
        raise ValueError(f"grid is {grid!r}; allowed: 1 or more")
    if not ratio >= 0:
        raise ValueError(f"ratio is {ratio!r}; allowed: 0 or more")

    return regressed("wkd_f", stage, lambda x, y: gaussian_cells(x, y, grid=grid, ratio=ratio))
