"""What of a network's variables is not trained: kept once in its run's directory, beside the checkpoints."""

import pathlib

import jax
import numpy as np

from gkd_jax.errors import UserError
from gkd_jax.outputs import Variables
from gkd_jax.training.checkpoint import Checkpoints, abstract_like, sha256

FOLDER = "frozen"
TRAINED = ("params", "batch_stats")
"""The collections that training changes; all others are frozen."""


def not_trained(variables: Variables) -> Variables:
    """Returns the collections that are not trained; none for most networks."""
    return {name: tree for name, tree in variables.items() if name not in TRAINED}


def keep(workdir: pathlib.Path, frozen: Variables) -> Variables:
    """Returns a run's frozen variables as its directory holds them; the first call writes them there.

    Args:
      workdir: of the run.
      frozen: as the run builds them.

    Raises:
      UserError: if they cannot be written, or what is there is damaged or of another architecture.
    """
    if not jax.tree.leaves(frozen):
        return frozen
    store = Checkpoints(workdir / FOLDER)
    try:
        if store.latest is not None:
            return _read(store, frozen)
        store.save(0, {**frozen, "sha256": _digest(frozen)})
        store.wait()
        return frozen
    finally:
        store.close()


def read(workdir: pathlib.Path, shapes: Variables, where: jax.sharding.Sharding) -> Variables:
    """Returns the frozen variables that a run's directory holds.

    Args:
      workdir: of the run.
      shapes: of what should be there, with the types; where it is nothing, nothing is read.
      where: to put them.

    Raises:
      UserError: if they are missing, damaged or of another architecture.
    """
    if not jax.tree.leaves(shapes):
        return shapes
    store = Checkpoints(workdir / FOLDER)
    try:
        return _read(store, abstract_like(shapes, where))
    finally:
        store.close()


def _read(store: Checkpoints, like: Variables) -> Variables:
    digest = np.zeros(32, np.uint8)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {**abstract_like(like), "sha256": abstract_like(digest, device)}
    found = dict(store.load(wanted, partial=True))
    if not np.array_equal(found.pop("sha256"), _digest(found)):
        raise UserError(f"{store.folder}: the checkpoint is damaged: it is not what was written")
    return found


def _digest(frozen: Variables) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(sha256(frozen)), np.uint8)
