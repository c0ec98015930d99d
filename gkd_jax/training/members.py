"""Several students of one run in one program, over a leading axis of everything that is their own.

They differ in initialisation, and in the order and views of their examples unless these are shared. Each does exactly
what it would do alone; what is chosen here is only how they share the machine.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gkd_jax.models.count import convolution_macs, macs
from gkd_jax.outputs import Model
from gkd_jax.training.devices import evenly
from gkd_jax.training.state import TrainState
from gkd_jax.training.step import Fixed, Plan, Step, TrainStep

Tree = Any

# Which parts of a state and of the constants each student has for itself. All are at the same step.
_PARTS = (field.name for field in dataclasses.fields(TrainState))
_OWN_STATE = TrainState(**{part: None if part == "step" else 0 for part in _PARTS})
_OWN_FIXED = Fixed(images=None, labels=None, teacher=None, frozen=0)  # type: ignore[arg-type]

# Below this share of dense convolutions their slower grouped form costs less than the rest gains
_FEW = 0.25


def one(tree: Tree, place: Any) -> Tree:
    """Returns what belongs to the student at `place` of a tree that all its leaves are stacked in."""
    return jax.tree.map(lambda x: x[place], tree)


def one_state(state: TrainState, place: Any) -> TrainState:
    """Returns the state of one student."""
    return jax.tree.map(
        lambda axis, part: part if axis is None else one(part, place), _OWN_STATE, state, is_leaf=lambda x: x is None
    )


def stack_init(build: Callable[[Any], tuple[TrainState, Tree]]) -> Callable[[Any], tuple[TrainState, Tree]]:
    """Returns the function that builds the states of all students from their keys, [s]."""
    return jax.vmap(build, out_axes=(_OWN_STATE, 0))


def state_specs(axis: str | None) -> TrainState:
    """Returns how a state is laid out where the students are shared out along the mesh's `axis`, part by part."""
    return jax.tree.map(
        lambda own: PartitionSpec() if own is None else PartitionSpec(axis), _OWN_STATE, is_leaf=lambda x: x is None
    )


def together(step: Step, count: int, strategy: str, *, shared: bool, mesh: Mesh) -> TrainStep:
    """Returns the step of `count` students at once.

    Args:
      step: of one.
      count: of students, the leading axis of the state, and of the plan unless it is `shared`.
      strategy: "vmap", one computation with a leading axis, in which dense convolutions become grouped ones; "unroll",
        one after the other in one program, whose compilation takes as many times as long; "shard", an equal part of
        them on each device along the axis "seed" of the mesh, one after the other there.
      shared: whether all see the same batches; the teacher is then asked once for all.
      mesh: of the devices.
    """
    if strategy == "vmap":
        return _vmapped(step, shared)
    if strategy == "unroll":
        return functools.partial(_unrolled, step, shared, count)
    parts = mesh.shape["seed"]
    plans = PartitionSpec() if shared else PartitionSpec("seed")
    fixed = Fixed(PartitionSpec(), PartitionSpec(), PartitionSpec(), PartitionSpec("seed"))  # type: ignore[arg-type]
    return jax.shard_map(
        functools.partial(_unrolled, step, shared, count // parts),
        mesh=mesh,
        in_specs=(state_specs("seed"), plans, fixed),
        out_specs=state_specs("seed"),
        axis_names={"seed"},
        check_vma=False,
    )


def _vmapped(step: Step, shared: bool) -> TrainStep:
    if not shared:
        return jax.vmap(step.__call__, in_axes=(_OWN_STATE, 0, _OWN_FIXED), out_axes=_OWN_STATE)

    def run(state: TrainState, plan: Plan, fixed: Fixed) -> TrainState:
        lesson = step.prepare(plan, fixed, state.step, state.key[0])
        update = jax.vmap(step.update, in_axes=(_OWN_STATE, None, _OWN_FIXED), out_axes=_OWN_STATE)
        return update(state, lesson, fixed)

    return run


def _unrolled(step: Step, shared: bool, count: int, state: TrainState, plan: Plan, fixed: Fixed) -> TrainState:
    lesson = step.prepare(plan, fixed, state.step, state.key[0]) if shared else None
    after = []
    for place in range(count):
        mine, constants = one_state(state, place), fixed._replace(frozen=one(fixed.frozen, place))
        if lesson is None:
            after.append(step(mine, one(plan, place), constants))
        else:
            after.append(step.update(mine, lesson, constants))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *after)
    return stacked.replace(step=after[0].step)


def strategy(count: int, devices: int, platform: str, student: Model, image_shape: tuple[int, ...]) -> str:
    """Returns the strategy that is expected to be the fastest.

    On several devices that can share the students out, "shard": nothing is exchanged between them. On one, "vmap" where
    little of the network is dense convolutions, which it turns into grouped ones; otherwise, and on any CPU, "unroll".
    """
    if devices > 1 and evenly(count, min(devices, count)) > 1:
        return "shard"
    if platform == "cpu":
        return "unroll"
    total, dense = macs(student, image_shape), convolution_macs(student, image_shape)
    return "vmap" if dense < _FEW * total else "unroll"
