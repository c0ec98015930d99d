"""How a batch, and several students, are shared among devices."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from gkd_jax.models.count import mostly_pointwise
from gkd_jax.outputs import Model

# Of XLA's CPU backend: its library for matrix products alone, not for sums as well, which it cannot fuse with what is
# summed. On several devices, each with one thread, the library's sums are the faster ones.
_FUSED_SUMS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def mesh(devices: Sequence[jax.Device], seeds: int = 1) -> Mesh:
    """Returns the devices along the axes "seed", which has `seeds` places, and "data"."""
    shape = (seeds, len(devices) // seeds)
    return jax.make_mesh(shape, ("seed", "data"), devices=devices, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, sharding: Sharding) -> Any:
    """Returns arrays that every process holds whole on a sharding, of which a process may have a part alone.

    Args:
      tree: of arrays on the host or on devices of this process, equal on all processes, or already on all devices.
      sharding: of each.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # `jax.device_put` would send each array through the network, to compare what the processes gave
    return jax.tree.map(lambda x: _spread(x, sharding), tree)


def _spread(x: Any, sharding: Sharding) -> Any:
    if isinstance(x, jax.Array):
        if x.sharding == sharding:
            return x
        if not x.is_fully_addressable:
            return _moving(sharding)(x)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = _spread(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    held = np.asarray(x)
    return jax.make_array_from_callback(held.shape, sharding, lambda place: held[place])


def fetch(tree: Any) -> Any:
    """Returns arrays on the host, as `jax.device_get`, also those of which other processes hold a part."""
    return jax.device_get(jax.tree.map(_whole, tree))


def _whole(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    return _moving(replicated(x.sharding.mesh))(x)  # type: ignore[attr-defined]


@functools.cache
def _moving(sharding: Sharding) -> Any:
    return jax.jit(lambda x: x, out_shardings=sharding)


def evenly(count: int, most: int) -> int:
    """Returns the largest number up to `most` that divides `count`."""
    return max(n for n in range(1, most + 1) if count % n == 0)


def faster_alone(devices: Sequence[jax.Device], student: Model, image_shape: tuple[int, ...]) -> bool:
    """Returns whether the first of the devices trains the student faster than all: of a CPU, a mostly pointwise one.

    XLA's threads do one 3x3 convolution's weight gradient less well together than two of half the batch. Products and
    depthwise convolutions they do well, and every BatchNorm would wait for the other device's sums: a step of
    mobilenetv2_half with input gradients takes 1.4 times as long on two devices as on one.
    """
    return len(devices) > 1 and devices[0].platform == "cpu" and mostly_pointwise(student, image_shape)


def fuses_sums(devices: Sequence[jax.Device], student: Model, image_shape: tuple[int, ...]) -> bool:
    """Returns whether the student's step should be compiled by `with_fused_sums`: a mostly pointwise one on one CPU."""
    return len(devices) == 1 and devices[0].platform == "cpu" and mostly_pointwise(student, image_shape)


def with_fused_sums(lowered: Any) -> Any:
    """Returns the compiled step, with its sums fused with what is summed if jaxlib can be told."""
    try:
        return lowered.compile(compiler_options=_FUSED_SUMS)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()


def one_program_at_a_time(devices: Sequence[jax.Device]) -> bool:
    """Returns whether a program must end before the next may be dispatched.

    Several CPU devices share one pool of threads. With two programs in flight, the threads of the one can all wait for
    the other in a reduction across devices, and XLA aborts the process after 40 seconds.
    """
    return len(devices) > 1 and devices[0].platform == "cpu"
