"""How a batch, and several students, are shared among devices."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def mesh(devices: Sequence[jax.Device], seeds: int = 1) -> Mesh:
    """Returns the devices along the axes "seed", which has `seeds` places, and "data"."""
    shape = (seeds, len(devices) // seeds)
    return jax.make_mesh(shape, ("seed", "data"), devices=devices, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def evenly(count: int, most: int) -> int:
    """Returns the largest number up to `most` that divides `count`."""
    return max(n for n in range(1, most + 1) if count % n == 0)


def one_program_at_a_time(devices: Sequence[jax.Device]) -> bool:
    """Returns whether a program must end before the next may be dispatched.

    Several CPU devices share one pool of threads. With two programs in flight, the threads of the one can all wait for
    the other in a reduction across devices, and XLA aborts the process after 40 seconds.
    """
    return len(devices) > 1 and devices[0].platform == "cpu"
