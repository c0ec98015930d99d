"""How a batch is shared among devices."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Returns the devices along one axis, "data"."""
    return jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def one_program_at_a_time(devices: Sequence[jax.Device]) -> bool:
    """Returns whether a program must end before the next may be dispatched.

    Several CPU devices share one pool of threads. With two programs in flight, the threads of the one can all wait for
    the other in a reduction across devices, and XLA aborts the process after 40 seconds.
    """
    return len(devices) > 1 and devices[0].platform == "cpu"
