"""Matching the map that the teacher's classifier is about to read."""

from jaxtyping import Array, Float, PRNGKeyArray

from gkd_jax.errors import UserError
from gkd_jax.losses import fields
from gkd_jax.losses.feature import mean_square
from gkd_jax.losses.term import Heads, State, Term, register
from gkd_jax.outputs import Batch, Outputs, Setup


def map_error(student: Float[Array, "b h w d"], teacher: Float[Array, "b u v d"]) -> Float[Array, " b"]:
    r"""Mean squared difference between two maps of each example.

    .. math:: \frac{1}{hwd} \| F_S - F_T \|^2

    where the larger map is first average-pooled to the smaller. Its unit is the squared unit of an entry of the maps;
    it is a mean over entries, and does not grow with their number.

    Args:
      student: F_S.
      teacher: F_T, a constant to differentiation.

    Returns:
      One float32 value an example.
    """
    return mean_square(*fields.pool_alike(student, teacher))


@register("simkd")
def simkd_term() -> Term:
    """The term "simkd": `map_error` between the student's projected map and the teacher's final map.

    For a student that reuses its teacher's classifier (`student.reuse_classifier`), whose final map is the projected
    one: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier" (CVPR 2022, arXiv 2203.14001),
    section 3.2. Its unit is one squared feature, the mean over positions and channels. In the authors' code it is the
    only loss: the weight of cross-entropy is 0.

    Raises:
      UserError: when it meets the networks, if the maps are of different width.
    """

    def init(key: PRNGKeyArray, student: Outputs, teacher: Outputs | None, setup: Setup) -> tuple[Heads, State]:
        ours, theirs = (fields.final(outputs).shape[-1] for outputs in (student, teacher))
        if ours != theirs:
            raise UserError(
                f"the student's final map has {ours} channels and the teacher's {theirs}; the term 'simkd' is for a "
                "student with a projector, see student.reuse_classifier"
            )
        return {}, ()

    def loss(
        heads: Heads, state: State, student: Outputs, teacher: Outputs | None, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, State]:
        return map_error(fields.final(student), fields.final(teacher)), state

    return Term("simkd", loss, frozenset({"teacher.final"}), init)
