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
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from gkd_jax.models.count import mostly_pointwise
from gkd_jax.outputs import Model
from gkd_jax.training.devices import evenly, mesh
from gkd_jax.training.state import TrainState
from gkd_jax.training.step import Fixed, Plan, Step, TrainStep

Tree = Any
Carried = Any  # from step to step of a program: a state of all students, or a tuple with a state for each

# Which parts of a state and of the constants each student has for itself. All are at the same step.
_PARTS = (field.name for field in dataclasses.fields(TrainState))
_OWN_STATE = TrainState(**{part: None if part == "step" else 0 for part in _PARTS})
_OWN_FIXED = Fixed(images=None, labels=None, teacher=None, frozen=0, constants=None)  # type: ignore[arg-type]


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


@dataclasses.dataclass(frozen=True)
class Together:
    """How several students do their steps in one program.

    Where they take turns, a program carries a state for each from step to step. It takes the stacked state apart at its
    start and joins the parts at its end, however many steps lie between: none of them slices or stacks.

    Attributes:
      count: of students, the leading axis of the state, and of the plan unless it is `shared`.
      strategy: "vmap", one computation with a leading axis, in which dense convolutions become grouped ones; "unroll",
        one after the other in one program, whose compilation takes as many times as long; "shard", an equal part of
        them on each device along the axis "seed" of the mesh, one after the other there.
      shared: whether all see the same batches; the teacher is then asked once for all, by all devices.
      mesh: of the devices.
    """

    count: int
    strategy: str
    shared: bool
    mesh: Mesh

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the mesh that a batch is shared out along when it is made."""
        return ("seed", "data") if self.shared else ("data",)

    def step(self, one_step: Step) -> Callable[[Carried, Plan, Fixed], Carried]:
        """Returns the step of all students, on what is carried, from that of one."""
        if self.strategy == "vmap":
            return _vmapped(one_step, self.shared)
        run: Callable[..., Carried] = functools.partial(_in_turn, one_step, self.shared)
        if self.strategy == "shard":
            own = PartitionSpec("seed")
            fixed = Fixed(PartitionSpec(), PartitionSpec(), PartitionSpec(), own, PartitionSpec())  # type: ignore[arg-type]
            seen = PartitionSpec() if self.shared else own
            run = self._by_seed(run, (self._apart_specs, seen, fixed), self._apart_specs)
        if not self.shared:
            return run

        def taught(states: Carried, plan: Plan, fixed: Fixed) -> Carried:
            lesson = one_step.prepare(plan, fixed, states[0].step)
            return run(states, jax.tree.map(self._in_each_group, lesson), fixed)

        return taught

    def stacked(self, run: Callable[[Carried, Plan, Fixed], Carried]) -> TrainStep:
        """Returns what `run` does with what is carried as a function of the students' state."""
        if self.strategy == "vmap":
            return run
        apart: Callable[..., Carried] = functools.partial(_apart, self.count // self.mesh.shape["seed"])
        joined: Callable[..., TrainState] = _joined
        if self.strategy == "shard":
            apart = self._by_seed(apart, (state_specs("seed"),), self._apart_specs)
            joined = self._by_seed(joined, (self._apart_specs,), state_specs("seed"))
        return lambda state, plan, fixed: joined(run(apart(state), plan, fixed))

    @property
    def _apart_specs(self) -> tuple[TrainState, ...]:
        return (state_specs("seed"),) * (self.count // self.mesh.shape["seed"])

    def _by_seed(self, function: Callable[..., Tree], in_specs: Tree, out_specs: Tree) -> Callable[..., Tree]:
        """Returns a function of the part of the students that a group of devices has; within it nothing is shared."""
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, axis_names={"seed"}, check_vma=False
        )

    def _in_each_group(self, x: Array) -> Array:
        """Returns one array of a lesson, made by all devices together, where every group of them has all its rows."""
        if not x.ndim:
            return x
        # Said of both sides, or the compiler may decide to have every group make all of it
        for axes in (self.axes, ("data",)):
            x = jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(axes)))
        return x


def _vmapped(step: Step, shared: bool) -> TrainStep:
    if not shared:
        return jax.vmap(step.__call__, in_axes=(_OWN_STATE, 0, _OWN_FIXED), out_axes=_OWN_STATE)

    def run(state: TrainState, plan: Plan, fixed: Fixed) -> TrainState:
        lesson = step.prepare(plan, fixed, state.step)
        update = jax.vmap(step.update, in_axes=(_OWN_STATE, None, _OWN_FIXED), out_axes=_OWN_STATE)
        return update(state, lesson, fixed)

    return run


def _in_turn(step: Step, shared: bool, states: Carried, seen: Any, fixed: Fixed) -> Carried:
    """Returns the states after a step on what is `seen`: one lesson where it is shared, otherwise a plan for each."""
    after = []
    for place, state in enumerate(states):
        mine, constants = one_state(state, 0), fixed._replace(frozen=one(fixed.frozen, place))
        new = step.update(mine, seen, constants) if shared else step(mine, one(seen, place), constants)
        after.append(one_state(new, None))
    return tuple(after)


def _apart(count: int, state: TrainState) -> Carried:
    """Returns a state for each student, in which the leading axis is kept, so that a mesh can share out even these."""
    return tuple(one_state(state, slice(place, place + 1)) for place in range(count))


def _joined(states: Carried) -> TrainState:
    return jax.tree.map(
        lambda axis, *parts: parts[0] if axis is None else jax.tree.map(lambda *x: jnp.concatenate(x), *parts),
        _OWN_STATE,
        *states,
        is_leaf=lambda x: x is None,
    )


def strategy(count: int, devices: int, platform: str, student: Model, image_shape: tuple[int, ...]) -> str:
    """Returns the strategy that is expected to be the fastest.

    On several devices that can share the students out, "shard": nothing is exchanged between them. On one, "vmap" where
    little of the network is dense convolutions, which it turns into grouped ones; otherwise, on any CPU, and with a jax
    that cannot differentiate convolutions so (`vmaps_convolutions`), "unroll".
    """
    if devices > 1 and evenly(count, min(devices, count)) > 1:
        return "shard"
    if platform == "cpu" or not vmaps_convolutions():
        return "unroll"
    return "vmap" if mostly_pointwise(student, image_shape) else "unroll"


@functools.cache
def vmaps_convolutions() -> bool:
    """Returns whether this jax differentiates convolutions of arrays on a mesh under `vmap`; 0.7.2 does not."""
    where = NamedSharding(mesh(jax.devices()[:1]), PartitionSpec())
    x, kernel = jax.device_put((jnp.zeros((2, 1, 4, 4, 1)), jnp.zeros((2, 3, 3, 1, 1))), where)

    def loss(kernel: Array, x: Array) -> Array:
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(y)

    try:
        jax.jit(jax.vmap(jax.grad(loss))).lower(kernel, x)
    except NotImplementedError:
        return False
    return True
