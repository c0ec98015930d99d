"""One training step, where the picture closes.

row of the plan -> batch -> teacher's outputs -> student's outputs -> lines -> gradient -> update
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped, UInt8

from gkd_jax import objective
from gkd_jax.objective import Lines, Reading
from gkd_jax.outputs import Batch, Outputs, Variables, stop_gradient
from gkd_jax.training.forward import forward
from gkd_jax.training.state import LineMetrics, Metrics, Networks, TrainState
from gkd_jax.training.views import by_view, key_of

Tree = Any


class Pixels(NamedTuple):
    """What of a plan's examples is on no device before: where images are streamed, or lie in the host's memory.

    Attributes:
      images: the crops, or the whole images with their borders.
      flip: whether crops are to be mirrored; None of whole images, of which the view says it.
      labels: their classes; None where all labels are on the devices.
    """

    images: UInt8[Array, "*seeds s b h w c"]
    flip: Bool[Array, "s b"] | None
    labels: Int[Array, "s b"] | None


class Plan(NamedTuple):
    """The examples of an epoch: which, and in which view.

    Attributes:
      index, view: [steps, batch] each; [seeds, steps, batch] where students see batches of their own.
      teacher: what a cache holds of the teacher's outputs on them, of the same leading shape each; {} without one.
      key: what the view "strong" is drawn from, by the number of the step; [seeds] where students see batches of their
        own. None where nothing sees that view: it is then not made.
      pixels: the examples themselves, where they come with the plan, which is then one row, of the step at hand.
    """

    index: Int[Array, "*seeds s b"]  # type: ignore[assignment]  # hides tuple.index
    view: Int[Array, "*seeds s b"]
    teacher: Mapping[str, Array] = {}
    key: PRNGKeyArray | Shaped[PRNGKeyArray, " seeds"] | None = None
    pixels: Pixels | None = None


class Fixed(NamedTuple):
    """What every step reads and none changes: arguments of the step, never part of a checkpoint.

    Attributes:
      images: of the training split, padded once, [n h w k].
      labels: of the training split, [n].
      teacher: the teacher's variables; {} without one. A step that is given rows drops them when it is compiled, unless
        a line on another view asks it too.
      frozen: what of the student's variables is not trained.
      constants: of the terms, by line.
    """

    images: UInt8[Array, "n h w k"]
    labels: Int[Array, " n"]
    teacher: Variables = {}
    frozen: Variables = {}
    constants: Mapping[str, Any] = {}


class Lesson(NamedTuple):
    """What is learnt at one step, before any student has looked at it.

    Attributes:
      batch: the examples.
      teacher: the teacher's outputs by view; empty without a teacher, or where each student asks it.
      row: of the epoch's plan; an epoch's sums begin anew at 0.
      epoch: of the run, from 0.
    """

    batch: Batch
    teacher: Mapping[str, Outputs]
    row: Int[Array, ""]
    epoch: Int[Array, ""]


MakeBatch = Callable[[Plan, Fixed, Int[Array, ""]], Batch]
TrainStep = Callable[[TrainState, Plan, Fixed], TrainState]


class Step(NamedTuple):
    """The two halves of a step, both pure: what several students may share, and what each does for itself.

    Attributes:
      prepare: `(plan, fixed, step) -> Lesson`.
      update: `(state, lesson, fixed) -> state`.
    """

    prepare: Callable[[Plan, Fixed, Int[Array, ""]], Lesson]
    update: Callable[[TrainState, Lesson, Fixed], TrainState]

    def __call__(self, state: TrainState, plan: Plan, fixed: Fixed) -> TrainState:
        """Does both for one student."""
        return self.update(state, self.prepare(plan, fixed, state.step), fixed)


def make_step(
    networks: Networks,
    lines: Lines,
    optimizer: optax.GradientTransformation,
    make_batch: MakeBatch,
    *,
    ema: float = 0.0,
    every: Lines | None = None,
    steps_per_epoch: int | None = None,
) -> Step:
    """Returns the step that computes `lines`, to be jitted with its state donated.

    Args:
      networks: the student, and the teacher if any line needs it (its variables are read from `Fixed`).
      lines: those active at this step.
      optimizer: of the student's parameters and the terms' heads.
      make_batch: `(plan, fixed, step) -> Batch`, with the teacher's outputs in it where they are looked up.
      ema: decay of the moving averages; 0 keeps none.
      every: all the lines of the run, where `lines` are but some of them.
      steps_per_epoch: where a plan is no whole epoch.
    """
    order = tuple(lines if every is None else every)
    seen = by_view(lines)
    wanted = {view: objective.gradients(mine) for view, mine in seen.items()}
    taught = [view for view, mine in seen.items() if any(map(objective.needs_teacher, mine.values()))]
    # Students may share what the teacher says of a batch, but not what it draws by the key of one of them
    drawn = any(not gradient.cacheable for gradients in wanted.values() for gradient in gradients)

    def teach(batch: Batch, fixed: Fixed, key: Array) -> Mapping[str, Outputs]:
        model = networks.teacher
        if model is None:
            return {}

        def ask(view: str) -> Outputs:
            return forward(
                model,
                fixed.teacher,
                batch.images[view],
                wanted[view],
                train=False,
                batch=batch,
                key=key_of(key, view),
            )[0]

        # A cache holds the view "weak" alone
        return {view: stop_gradient(batch.teacher[view] if view in batch.teacher else ask(view)) for view in taught}

    def prepare(plan: Plan, fixed: Fixed, step: Int[Array, ""]) -> Lesson:
        batch, steps = make_batch(plan, fixed, step), steps_per_epoch or plan.index.shape[0]
        # Nothing is drawn here: any key will do
        teacher = {} if drawn else teach(batch, fixed, jax.random.key(0))
        return Lesson(batch, teacher, step % steps, step // steps)

    def update(state: TrainState, lesson: Lesson, fixed: Fixed) -> TrainState:
        batch, row = lesson.batch, lesson.row
        key = jax.random.fold_in(state.key, state.step)
        teacher = teach(batch, fixed, key) if drawn else lesson.teacher

        def loss_of(trained: Tree) -> tuple[Array, tuple[dict[str, Reading], Tree, Tree, Array]]:
            statistics, student = state.batch_stats, {}
            for view in seen:
                variables = {"params": trained["params"], "batch_stats": statistics, **fixed.frozen}
                student[view], statistics = forward(
                    networks.student,
                    variables,
                    batch.images[view],
                    wanted[view],
                    train=True,
                    batch=batch,
                    teacher_logits=teacher[view].logits if view in teacher else None,
                    key=key_of(key, view),
                )
            loss, (readings, terms) = objective.total(
                lines, trained["heads"], state.terms, state.weights, fixed.constants, student, teacher, batch, key
            )
            correct = jnp.sum(jnp.argmax(student[next(iter(seen))].logits, -1) == batch.labels)
            return loss, (readings, terms, statistics, correct)

        (loss, (readings, terms, statistics, correct)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.trained)
        updates, opt = optimizer.update(grads, state.opt, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        metrics = _added(state.metrics, loss, correct, batch.labels.shape[0], readings, fresh=row == 0)
        return dataclasses.replace(
            state,
            step=state.step + 1,
            params=trained["params"],
            heads=trained["heads"],
            batch_stats=statistics,
            terms=terms,
            opt=opt,
            ema=_averaged(state, {"params": trained["params"], "batch_stats": statistics}, ema),
            metrics=metrics,
            # Over an epoch the running accuracy; what stands there at its end is the epoch's
            history=state.history.at[lesson.epoch].set(metrics.correct / metrics.examples),
            first_nonfinite=_first_nonfinite(state, order, readings, optax.tree.norm(grads)),
        )

    return Step(prepare, update)


def _averaged(state: TrainState, new: Tree, decay: float) -> Tree:
    if not decay:
        return state.ema
    # The average warms up, so that the first steps' parameters do not weigh on it for 1 / (1 - decay) steps.
    count = state.step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
    return optax.incremental_update(new, state.ema, 1.0 - decay_now)


def _added(
    old: Metrics, loss: Array, correct: Array, examples: int, readings: dict[str, Reading], fresh: Array
) -> Metrics:
    """Adds one step to the epoch's sums, which begin anew at a `fresh` epoch."""
    old = jax.tree.map(lambda x: jnp.where(fresh, jnp.zeros_like(x), x), old)
    lines = {
        name: LineMetrics(sums.value + readings[name].value, sums.count + 1.0) if name in readings else sums
        for name, sums in old.lines.items()
    }
    return Metrics(
        loss=old.loss + loss,
        correct=old.correct + correct,
        examples=old.examples + examples,
        steps=old.steps + 1.0,
        lines=lines,
    )


def _first_nonfinite(
    state: TrainState, order: tuple[str, ...], readings: dict[str, Reading], gradient_norm: Array
) -> Array:
    """Returns where the first value that is not finite was seen, over the whole run so far."""
    bad = [
        ~(jnp.isfinite(readings[name].value) & jnp.isfinite(readings[name].weight))
        if name in readings
        else jnp.array(False)
        for name in order
    ]
    all_bad = jnp.stack([*bad, ~jnp.isfinite(gradient_norm)])
    here = jnp.stack([state.step, jnp.argmax(all_bad).astype(jnp.int32)])
    return jnp.where((state.first_nonfinite[0] < 0) & jnp.any(all_bad), here, state.first_nonfinite)
