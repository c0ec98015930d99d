"""Contrastive distillation: telling an example from many others across the two networks, by a memory of them all."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gkd_jax.errors import UserError
from gkd_jax.losses.pairwise import inner_products, unit
from gkd_jax.losses.relation import common_heads, in_common
from gkd_jax.losses.term import Heads, State, Term, register
from gkd_jax.outputs import Batch, Outputs, Setup

# As published: added to the noise's share in the denominators.
_EPSILON = 1e-7


class Memory(NamedTuple):
    """What is remembered of the training split from step to step.

    Attributes:
      student, teacher: the embeddings in the common space, a row each example; of length 1 once it was seen.
      log_z: logarithms of the two constants that turn scores into probabilities, for the student's embeddings and for
        the teacher's.
      estimated: whether `log_z` holds anything yet.
    """

    student: Float[Array, "n d"]
    teacher: Float[Array, "n d"]
    log_z: Float[Array, "2"]
    estimated: Bool[Array, ""]


class ByClass(NamedTuple):
    """The training split in order of its classes.

    Attributes:
      order: places in the split, those of one class in a row.
      start: where in `order` each class begins.
      size: how many examples it has.
    """

    order: Int[Array, " n"]
    start: Int[Array, " c"]
    size: Int[Array, " c"]


def new_memory(key: PRNGKeyArray, examples: int, width: int) -> Memory:
    """Returns a memory of random rows, uniform within ±sqrt(3 / width), so that their expected squared length is 1."""
    bound = math.sqrt(3 / width)
    ours, theirs = (jax.random.uniform(k, (examples, width), jnp.float32, -bound, bound) for k in jax.random.split(key))
    return Memory(ours, theirs, jnp.zeros(2, jnp.float32), jnp.zeros((), bool))


def by_class(labels: Int[Array, " n"], num_classes: int) -> ByClass:
    """Returns the examples sorted by class."""
    size = jnp.bincount(labels, length=num_classes)
    return ByClass(jnp.argsort(labels), jnp.cumsum(size) - size, size)


def draw_negatives(key: PRNGKeyArray, labels: Int[Array, " b"], split: ByClass, count: int) -> Int[Array, "b {count}"]:
    """Draws examples of other classes, uniformly and with replacement.

    Args:
      key: of this draw.
      labels: classes of the batch.
      split: the examples to draw from.
      count: how many for each example of the batch; may exceed the size of the split.

    Returns:
      Places in the split. Where a class is the whole split, they are of that class.
    """
    start, size = split.start[labels][:, None], split.size[labels][:, None]
    n = split.order.shape[0]
    place = jax.random.randint(key, (labels.shape[0], count), 0, n - size)  # among those of other classes, in order
    return split.order[jnp.minimum(jnp.where(place < start, place, place + size), n - 1)]


def contrast(
    student: Float[Array, "b d"],
    teacher: Float[Array, "b d"],
    memory: Memory,
    index: Int[Array, " b"],
    negatives: Int[Array, "b k"],
    *,
    temperature: float | int = 0.07,
    momentum: float | int = 0.5,
) -> tuple[Float[Array, " b"], Memory]:
    r"""Noise-contrastive loss of telling each example among k others in the other network's memory, both ways.

    .. math:: L_i = \sum_{(v, M)} \Big( -\log \frac{P_{ii}}{P_{ii} + c}
       - \sum_{j} \log \frac{k / n}{P_{ij} + c} \Big), \qquad
       P_{ij} = \frac{1}{Z} e^{\langle v_i, M_j \rangle / \tau}, \quad c = \frac{k}{n} + 10^{-7}

    over the student's embeddings with the teacher's memory, and the teacher's with the student's; n examples in the
    memory, j over the k negatives of i (Tian, Krishnan and Isola, `Contrastive Representation
    Distillation <https://arxiv.org/abs/1910.10699>`_, 2020, equation 18, with the memory of their code). Each Z is n
    times the mean of the exponentials at the first step, and kept from then on. The memory is a constant to
    differentiation; after its use row i becomes the direction of :math:`m M_i + (1 - m) v_i`.

    The scores come from one product of the batch with the whole memory, [b n], and are gathered from there: the same
    numbers as from gathered rows, [b k d], without their memory (half a gigabyte a side for the published sizes).

    Args:
      student: v, of length 1, in the common space.
      teacher: v of the teacher, of length 1; differentiated too, as its projection is trained.
      memory: as the step before left it.
      index: place of each example of the batch in the split.
      negatives: places of its negatives.
      temperature: τ > 0.
      momentum: m, at least 0 and below 1.

    Returns:
      One float32 value an example in nats, a sum over 2 (1 + k) decisions, and the new memory. It is not zero at
      equality. Scores are compared by their logarithms, so that no temperature overflows.
    """
    n, k = memory.student.shape[0], negatives.shape[1]
    places = jnp.concatenate([index[:, None], negatives], axis=1)

    def scores(v: Array, bank: Array) -> Array:
        return jnp.take_along_axis(inner_products(v, jax.lax.stop_gradient(bank)) / temperature, places, axis=1)

    both = jnp.stack([scores(student, memory.teacher), scores(teacher, memory.student)])
    first = math.log(n) - math.log(places.size) + jax.nn.logsumexp(jax.lax.stop_gradient(both), axis=(1, 2))
    log_z = jnp.where(memory.estimated, memory.log_z, first)
    # log P - log c; the loss is a sum of softplus of that
    above = both - log_z[:, None, None] - math.log(k / n + _EPSILON)
    decisions = jax.nn.softplus(-above[..., 0]) + jnp.sum(jax.nn.softplus(above[..., 1:]), axis=2)
    values = jnp.sum(decisions + k * math.log1p(_EPSILON * n / k), axis=0)

    def moved(bank: Array, v: Array) -> Array:
        mixed = momentum * bank[index] + (1 - momentum) * jax.lax.stop_gradient(v)
        return bank.at[index].set(unit(mixed)[0])

    return values, Memory(moved(memory.student, student), moved(memory.teacher, teacher), log_z, jnp.ones((), bool))


@register("crd")
def crd_term(
    *, dim: int = 128, negatives: int = 16384, temperature: float | int = 0.07, momentum: float | int = 0.5
) -> Term:
    """The term "crd": `contrast` of the embeddings behind a trained linear head and a division by the length each.

    The memory of both networks is the term's state, on the device, 8 · examples · dim bytes. Negatives are drawn inside
    the step among the examples of other classes, with replacement (RepDistiller draws without where there are enough).
    The defaults are RepDistiller's.

    Its unit is nats, a sum over 2 (1 + k) decisions of each example.

    Args:
      dim: width of the common space.
      negatives: k, for each example; may exceed the size of the training split.
      temperature: τ, a number: no schedule, as the constants Z are means of exp(score / τ) at the first step. With
        another τ later the scores would no longer be probabilities (τ from 0.07 to 0.14 divides the probability of
        a score of 0.9 by 600).
      momentum: m of the memory.

    Raises:
      ValueError: if an option is out of range.
    """
    for option, size in {"dim": dim, "negatives": negatives}.items():
        if size < 1:
            raise ValueError(f"{option} is {size!r}; allowed: 1 or more")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; allowed: a positive number")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum!r}; allowed: 0 <= momentum < 1")

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        for_heads, for_memory = jax.random.split(key)
        return common_heads(for_heads, student, teacher, dim), new_memory(for_memory, setup.num_examples, dim)

    def constants(setup: Setup) -> ByClass:
        if setup.labels is None:
            raise UserError("term 'crd' needs the labels of the training split, and there are none")
        if setup.num_classes < 2:
            raise UserError(f"term 'crd' needs negatives of other classes, but there is {setup.num_classes} class")
        return by_class(setup.labels, setup.num_classes)

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        ours, theirs = (unit(x)[0] for x in in_common(heads, student, teacher))
        others = draw_negatives(key, batch.labels, batch.constants, negatives)
        return contrast(ours, theirs, state, batch.index, others, temperature=temperature, momentum=momentum)

    return Term("crd", loss, frozenset({"teacher.embedding"}), init, constants)
