"""Checkpoints of a run: orbax v1, asynchronous, the last one and the best on validation."""

import errno
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from gkd_jax.errors import UserError

Tree = Any
_METRIC = "val_accuracy"


class Checkpoints:
    """The checkpoints in one folder, by step."""

    def __init__(self, folder: pathlib.Path):
        """Opens the folder; nothing is created before the first `save`."""
        self.folder = folder.absolute()
        self._open: ocp.training.Checkpointer | None = None

    def _checkpointer(self) -> ocp.training.Checkpointer:
        if self._open is None:
            policies = ocp.training.preservation_policies
            self._open = ocp.training.Checkpointer(
                self.folder,
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(1),
                        policies.BestN(
                            n=1, get_metric_fn=lambda metrics: metrics[_METRIC], keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
            )
        return self._open

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, None if there is none."""
        if not self.folder.is_dir():
            return None
        newest = self._checkpointer().latest
        return None if newest is None else newest.step

    @property
    def best(self) -> int | None:
        """The step of the kept checkpoint with the highest accuracy on validation, None without validation."""
        if not self.folder.is_dir():
            return None
        rated = [(c.metrics[_METRIC], c.step) for c in self._checkpointer().checkpoints if c.metrics]
        return max(rated)[1] if rated else None

    def save(self, step: int, state: Tree, val_accuracy: float | None = None) -> None:
        """Saves in the background; the state may be donated as soon as this returns.

        Args:
          step: the number of steps that the state has behind it.
          state: a pytree of arrays.
          val_accuracy: of the state; the checkpoint is no candidate for the best without it.

        Raises:
          UserError: if the folder cannot be written to.
        """
        metrics = None if val_accuracy is None else {_METRIC: float(val_accuracy)}
        try:
            self._checkpointer().save_async(step, state, metrics=metrics, force=True, overwrite=True)
        except (OSError, ValueError) as error:
            raise _cannot_write(self.folder, error) from error

    def wait(self) -> None:
        """Waits until what was saved is on the disk.

        Raises:
          UserError: if it could not be written.
        """
        if self._open is None:
            return
        try:
            self._open.wait()
        except (OSError, ValueError) as error:
            raise _cannot_write(self.folder, error) from error

    def close(self) -> None:
        """Waits as `wait` does, and closes."""
        self.wait()
        if self._open is not None:
            self._open.close()
            self._open = None

    def load(self, abstract: Tree, step: int | None = None, *, partial: bool = False) -> Tree:
        """Returns a checkpoint as a tree like `abstract`, on its shardings.

        Args:
          abstract: of `jax.ShapeDtypeStruct`s with shardings.
          step: which one; the newest by default.
          partial: whether the checkpoint may hold more than `abstract` asks for.

        Raises:
          UserError: if there is none, it is damaged, or it holds something else.
        """
        step = self.latest if step is None else step
        if step is None:
            raise UserError(f"{self.folder}: no checkpoint here")
        context = ocp.Context()
        context.pytree.loading.partial_load = partial
        try:
            with context:
                tree = self._checkpointer().load(step, abstract)
        # Orbax and TensorStore raise whatever the damaged file leads them to
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{self.folder / str(step)}: the checkpoint is damaged, cut short or of another architecture ({reason})"
            ) from error
        _same_types(self.folder / str(step), tree, abstract)
        return tree


def _same_types(where: pathlib.Path, tree: Tree, abstract: Tree) -> None:
    """Raises `UserError` where shapes differ; orbax casts types, and slices shapes, without a word."""
    for (path, leaf), (_, expected) in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree_util.tree_leaves_with_path(abstract), strict=True
    ):
        if leaf.shape != expected.shape or leaf.dtype != expected.dtype:
            raise UserError(
                f"{where}: {jax.tree_util.keystr(path)} is {leaf.dtype}{list(leaf.shape)}, "
                f"not {expected.dtype}{list(expected.shape)}; the checkpoint is of another architecture"
            )


def _cannot_write(folder: pathlib.Path, error: Exception) -> UserError:
    full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "RESOURCE_EXHAUSTED" in str(error)
    reason = os.strerror(errno.ENOSPC) if full else str(error).strip().splitlines()[0]
    return UserError(f"{folder}: cannot write the checkpoint ({reason})")


def abstract_like(tree: Tree, sharding: jax.sharding.Sharding) -> Tree:
    """Returns the shapes and types of a tree, to be restored onto `sharding`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def sha256(params: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()
