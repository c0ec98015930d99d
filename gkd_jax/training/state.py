"""What changes from step to step, and how it begins."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from gkd_jax import objective
from gkd_jax.objective import Lines
from gkd_jax.outputs import Model, Outputs, Setup, Variables
from gkd_jax.training.forward import forward_shapes
from gkd_jax.training.frozen import not_trained

Tree = Any  # of arrays, or of their shapes: states are also built abstractly

# What the seed's key is folded with for each use.
PARAMETERS, HEADS, STEPS, PLAN, STRONG = range(5)


def run_key(seed: int) -> PRNGKeyArray:
    """Returns the key of a run's seed, of a kind that gives the same numbers everywhere."""
    return jax.random.key(seed, impl="threefry2x32")


@flax.struct.dataclass
class LineMetrics:
    """A line's raw values, summed over the epoch's steps at which it was computed, and the number of these."""

    value: Tree
    count: Tree


@flax.struct.dataclass
class Metrics:
    """What an epoch adds up on the device: loss and correct predictions, examples and steps, and each line."""

    loss: Tree
    correct: Tree
    examples: Tree
    steps: Tree
    lines: Mapping[str, LineMetrics]

    @classmethod
    def zero(cls, lines: Lines) -> "Metrics":
        """Returns the sums before the first step."""

        def nothing() -> Array:
            return jnp.zeros((), jnp.float32)

        per_line = {name: LineMetrics(nothing(), nothing()) for name in lines}
        return cls(nothing(), nothing(), nothing(), nothing(), per_line)


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint holds.

    Attributes:
      step: of the next batch, from 0.
      params, batch_stats: of the student.
      heads: parameters of the terms, by line.
      terms: states of the terms, by line.
      weights: parameters of the weights, by line.
      opt: of the optimiser.
      ema: the moving average of params and batch_stats; {} without.
      history: accuracy on the training images of each epoch, filled as they end; the rest is NaN.
      metrics: of the running epoch.
      first_nonfinite: (step, place of the line) of the first value that was not finite; (-1, -1) before. The place
        after the last line stands for the gradient of the whole objective.
      key: drawn from by `fold_in(key, step)`.
    """

    step: Tree
    params: Tree
    batch_stats: Tree
    heads: Tree
    terms: Tree
    weights: Tree
    opt: Tree
    ema: Tree
    history: Tree
    metrics: Tree  # Metrics, or one thing that stands for all of it
    first_nonfinite: Tree
    key: Tree

    @property
    def trained(self) -> Tree:
        """What the optimiser moves: the student's parameters and the terms' heads."""
        return {"params": self.params, "heads": self.heads}

    def evaluated(self, frozen: Variables) -> Variables:
        """Returns the variables to evaluate: the averages, where there are any."""
        return {"params": self.params, "batch_stats": self.batch_stats, **self.ema, **frozen}


class Networks(NamedTuple):
    """The two networks of a run; without a teacher, None and no variables."""

    student: Model
    teacher: Model | None = None
    teacher_variables: Variables = {}


def init_state(
    key: PRNGKeyArray,
    networks: Networks,
    lines: Lines,
    optimizer: optax.GradientTransformation,
    images: jax.ShapeDtypeStruct,
    setup: Setup,
    *,
    epochs: int,
    ema: bool,
) -> tuple[TrainState, Variables]:
    """Builds the first state. Call it under `jax.jit`, so that no two of its leaves share a buffer.

    Args:
      key: of the run's seed.
      networks: both.
      lines: of the objective.
      optimizer: of the student's parameters and the terms' heads.
      images: shape and type of a batch of normalised images.
      setup: what the terms may know.
      epochs: of the run.
      ema: whether to keep moving averages.

    Returns:
      The state, and what of the student's variables is not trained ("frozen").
    """
    blank = jnp.zeros(images.shape, images.dtype)
    variables = networks.student.init(jax.random.fold_in(key, PARAMETERS), blank)
    wanted = objective.gradients(lines)
    student = forward_shapes(networks.student, variables, images, wanted, train=True)
    teacher: Outputs | None = None
    if networks.teacher is not None:
        teacher = forward_shapes(networks.teacher, networks.teacher_variables, images, wanted, train=False)
    heads, states = objective.init(jax.random.fold_in(key, HEADS), lines, student, teacher, setup)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # A copy: on CPU too, a donated state must not hold one buffer twice.
    average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else {}
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        heads=heads,
        terms=states,
        weights={name: line.weight.init for name, line in lines.items()},
        opt=optimizer.init({"params": params, "heads": heads}),
        ema=average,
        history=jnp.full((epochs,), jnp.nan, jnp.float32),
        metrics=Metrics.zero(lines),
        first_nonfinite=jnp.full((2,), -1, jnp.int32),
        key=jax.random.fold_in(key, STEPS),
    )
    return state, not_trained(variables)
