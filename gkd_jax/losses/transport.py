"""Wasserstein distances between what teacher and student see as measures: pure functions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, ScalarLike

from gkd_jax.losses.fields import moments, pool_alike, tokens
from gkd_jax.losses.logit import softened
from gkd_jax.losses.pairwise import inner_products, squared_distances
from gkd_jax.losses.sinkhorn import Divergence, debiased, floored, relative_epsilon

# Inside the roots: the derivative at zero is 1e4 and not infinite, and lengths from 0.01 are right to 1e-4.
_TINY = 1e-8


def normalise(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Returns vectors divided by sqrt(their squared length + 1e-8), in float32 and without unit: zero stays zero."""
    # Not `pairwise.unit`, whose derivative grows like 1 / length down to lengths of 1e-30 and then jumps to 0: what a
    # ReLU leaves all but empty would steer the transport. With the constant inside the root, it fades into zero.
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _TINY)


def _between_points(
    x: Float[Array, "e n d"],
    y: Float[Array, "e n d"],
    extra: Float[Array, "n n"] | None,
    epsilon: float | int,
    iterations: int,
    solver: str,
) -> Divergence:
    """Returns the divergence of e pairs of n points of equal mass, with `extra` added to each ground cost."""
    x, y = normalise(x), normalise(jax.lax.stop_gradient(y))
    cost = squared_distances(jnp.concatenate([x, x, y]), jnp.concatenate([y, jax.lax.stop_gradient(x), y]))
    if extra is not None:
        cost = cost + extra[None]
    mass = jnp.full(x.shape[:2], 1 / x.shape[1], jnp.float32)
    return debiased(cost, mass, mass, relative_epsilon(cost[: x.shape[0]], epsilon), iterations, solver)


def sinkhorn_divergence(
    student: Float[Array, "b d"],
    teacher: Float[Array, "b d"],
    labels: Int[Array, " b"] | None = None,
    *,
    label_cost: float | int = 1.0,
    epsilon: float | int = 0.1,
    iterations: int = 10,
    solver: str = "ott",
) -> Divergence:
    r"""Sinkhorn divergence between the embeddings of a batch, as two sets of points of equal mass.

    With each row divided by its length, the ground cost is

    .. math:: C_{ij} = \|a_i - b_j\|^2 + \eta \, [y_i \ne y_j]

    for all three problems of the `debiased` divergence. η = 0 is the plain form, which only compares sets, and takes a
    permuted batch for the right one; the label cost is ours, after the class-aware cost of optimal transport dataset
    distances (Alvarez-Melis and Fusi, `Geometric Dataset Distances via Optimal
    Transport <https://arxiv.org/abs/2002.02923>`_, 2020).

    Args:
      student: embeddings, projected to the teacher's width, of any float type.
      teacher: embeddings, a constant.
      labels: y; None leaves the label cost out.
      label_cost: η >= 0.
      epsilon: the regularisation, in units of the mean cost between student and teacher.
      iterations: of Sinkhorn's algorithm.
      solver: "ott" or "unrolled".

    Returns:
      A float32 scalar for the batch, zero at equality, with its marginal error. It has no unit: a squared distance
      between vectors of length 1, plus η, averaged over the batch by the plan. Derivatives are of first order only; at
      the defaults they are within 3 % of those at convergence.

    Raises:
      ValueError: if the solver is unknown or `iterations` is not positive.
    """
    extra = None if labels is None else label_cost * (labels[:, None] != labels[None, :]).astype(jnp.float32)
    found = _between_points(student[None], teacher[None], extra, epsilon, iterations, solver)
    return Divergence(found.value[0], found.marginal_error[0])


def sinkhorn_tokens(
    student: Float[Array, "b h w k"],
    teacher: Float[Array, "b u v k"],
    *,
    grid: int = 4,
    epsilon: float | int = 0.1,
    iterations: int = 10,
    solver: str = "ott",
) -> Divergence:
    """Sinkhorn divergence between the positions of two feature maps, for each example.

    The maps are average-pooled to the smaller of the two and to at most `grid` x `grid`; each position is a point,
    divided by its length, and all have equal mass. Cost and divergence are those of `sinkhorn_divergence` without
    labels (transport between sets of features: Lohit and Jones, `Model Compression Using Optimal Transport
    <https://arxiv.org/abs/2012.03907>`_, 2020). Places are not compared: where a feature stands does not matter.

    Args:
      student: maps, projected to the teacher's channels, of any float type.
      teacher: maps, a constant.
      grid: the most positions a side.
      epsilon: the regularisation, in units of each example's mean cost between student and teacher.
      iterations: of Sinkhorn's algorithm.
      solver: "ott" or "unrolled".

    Returns:
      One float32 value an example, zero at equality, with its marginal error. It has no unit: a squared distance
      between vectors of length 1, averaged over the positions by the plan. Derivatives are of first order only.

    Raises:
      ValueError: if the solver is unknown or `iterations` is not positive.
    """
    x, y = pool_alike(student, teacher, grid)
    return _between_points(tokens(x), tokens(y), None, epsilon, iterations, solver)


def gaussian(
    student: Float[Array, "b h w k"], teacher: Float[Array, "b u v k"], *, ratio: float | int = 1.0
) -> Float[Array, " b"]:
    r"""Squared 2-Wasserstein distance between normal distributions fitted to the positions of two feature maps.

    .. math:: \rho \, \|\mu_S - \mu_T\|^2 + \|\sigma_S - \sigma_T\|^2

    with mean and standard deviation of each channel over space (WKD-F: Lv, Yang and Li, `Wasserstein Distance Rivals
    Kullback-Leibler Divergence for Knowledge Distillation <https://arxiv.org/abs/2412.08139>`_, 2024, the
    diagonal form); for ρ = 1 it is the distance itself. The norms are sums over channels.

    Args:
      student: maps, projected to the teacher's channels, of any float type.
      teacher: maps, a constant, of any height and width.
      ratio: ρ >= 0.

    Returns:
      One float32 value an example, in squared features: a sum over channels. Zero at equality. The standard deviation
      is sqrt(variance + 1e-8), so derivatives are finite everywhere.
    """
    both = (student, jax.lax.stop_gradient(teacher))
    (mean_s, std_s), (mean_t, std_t) = (moments(tokens(x), _TINY) for x in both)
    return ratio * jnp.sum((mean_s - mean_t) ** 2, axis=1) + jnp.sum((std_s - std_t) ** 2, axis=1)


def sliced(
    student: Float[Array, "*e n d"], teacher: Float[Array, "*e n d"], key: PRNGKeyArray, *, projections: int = 64
) -> Float[Array, "*e"]:
    r"""Sliced squared 2-Wasserstein distance between sets of points of equal mass.

    .. math:: \frac1L \sum_l \frac1n \sum_i \big( (\theta_l \cdot a)_{(i)} - (\theta_l \cdot b)_{(i)} \big)^2

    with :math:`x_{(i)}` the sorted values and θ directions drawn uniformly (Bonneel et al., `Sliced and Radon
    Wasserstein Barycenters of Measures <https://doi.org/10.1007/s10851-014-0506-3>`_, 2015). Points are divided by
    their lengths. Its size falls like 1 / d. It sees no labels: a permuted batch is the same set.

    Args:
      student: points [n d] of a batch, or [b n d] of each example, projected to the teacher's width, of any float type.
      teacher: as many points, a constant.
      key: draws the directions.
      projections: L.

    Returns:
      A float32 value for each pair of sets, zero at equality. It has no unit: a squared difference along a direction
      between vectors of length 1, averaged over points and directions. Derivatives are valid except where two values
      tie.
    """
    theta = normalise(jax.random.normal(key, (projections, student.shape[-1]), jnp.float32)).T

    def sorted_along(x: Array) -> Array:
        return jnp.sort(jnp.matmul(normalise(x), theta, precision=jax.lax.Precision.HIGHEST), axis=-2)

    difference = sorted_along(student) - sorted_along(jax.lax.stop_gradient(teacher))
    return jnp.mean(difference**2, axis=(-2, -1))


SIMILARITIES = ("cosine", "cka")


def check_similarity(similarity: str) -> None:
    """Raises `ValueError` unless `class_cost` knows the similarity."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"unknown similarity {similarity!r}; known: {', '.join(SIMILARITIES)}")


def class_cost(
    kernel: Float[Array, "d c"], *, similarity: str = "cosine", sharpen: float | int = 0.0
) -> Float[Array, "c c"]:
    r"""Cost between classes by the similarity s of their weights in a classifier: similar classes are near.

    .. math:: C_{ij} = 1 - s_{ij} \quad\text{or, with } \kappa > 0, \quad C_{ij} = 1 - e^{-\kappa (1 - s_{ij})}

    with s at most 1 (Lv, Yang and Li, `Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
    Distillation <https://arxiv.org/abs/2412.08139>`_, 2024, section 3.1).

    Args:
      kernel: the classifier's weights, a column each class.
      similarity: "cosine" of the columns, or "cka": the linear centred kernel alignment of two columns, as d samples of
        one feature each, which is their squared correlation, so that opposite classes are near too.
      sharpen: κ >= 0; 0 leaves the cost as it is.

    Returns:
      A symmetric float32 matrix, zero on the diagonal, without unit: from 0 to 2, or to less than 1 if sharpened.

    Raises:
      ValueError: if the similarity is unknown.
    """
    check_similarity(similarity)
    kernel = kernel.astype(jnp.float32)
    if similarity == "cka":
        kernel = kernel - jnp.mean(kernel, axis=0, keepdims=True)
    directions = normalise(kernel.T)
    similar = inner_products(directions, directions)
    if similarity == "cka":
        similar = similar**2
    cost = jnp.maximum(1 - similar, 0)
    if sharpen:
        cost = -jnp.expm1(-sharpen * cost)
    return cost * (1 - jnp.eye(kernel.shape[1], dtype=jnp.float32))


def sinkhorn_logits(
    student_logits: Float[Array, "b c"],
    teacher_logits: Float[Array, "b c"],
    cost: Float[Array, "c c"],
    *,
    temperature: ScalarLike = 1.0,
    epsilon: float | int = 0.5,
    iterations: int = 10,
    solver: str = "ott",
) -> Divergence:
    """Sinkhorn divergence between the class probabilities of each example.

    Probability that moves between similar classes costs little, which a Kullback-Leibler divergence cannot see (after
    WKD-L: Lv, Yang and Li, `Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation
    <https://arxiv.org/abs/2412.08139>`_, 2024; debiased, and without its separate target class).
    Probabilities p become p (1 - c 1e-6) + 1e-6.

    Args:
      student_logits: of any float type.
      teacher_logits: a constant.
      cost: between classes, a constant: symmetric, zero on the diagonal; see `class_cost`.
      temperature: T > 0, divides the logits; there is no factor T².
      epsilon: the regularisation, in units of the mean cost. Between separate classes all costs are near the mean, so
        that 0.1 would need hundreds of iterations: ten leave errors of 4 to 50 % in the derivatives, against 2 % at
        most at 0.5.
      iterations: of Sinkhorn's algorithm.
      solver: "ott" or "unrolled".

    Returns:
      One float32 value an example, zero at equality, with its marginal error, in units of the cost: what the plan moves
      between classes, a sum over them. Derivatives are of first order only.

    Raises:
      ValueError: if the solver is unknown or `iterations` is not positive.
    """
    cost = jax.lax.stop_gradient(cost).astype(jnp.float32)[None]
    p, q = (floored(jax.nn.softmax(softened(z, temperature))) for z in (student_logits, teacher_logits))
    return debiased(cost, p, q, jnp.repeat(relative_epsilon(cost, epsilon), p.shape[0]), iterations, solver)
