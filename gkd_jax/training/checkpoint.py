"""Checkpoints of a run: orbax v1, asynchronous, the last one and the best on validation."""

import contextlib
import errno
import gc
import hashlib
import logging
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from gkd_jax import hosts
from gkd_jax.errors import UserError
from gkd_jax.training.devices import fetch

Tree = Any
_METRIC = "val_accuracy"


def _unheard(record: logging.LogRecord) -> bool:
    # Orbax logs the traceback of what its threads raise, and raises it again where it can be caught
    return not (record.exc_info and "orbax" in record.pathname)


logging.getLogger("absl").addFilter(_unheard)


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
        found = self._best
        return None if found is None else found[1]

    @property
    def best_accuracy(self) -> float | None:
        """The accuracy on validation of `best`, None without validation."""
        found = self._best
        return None if found is None else found[0]

    @property
    def _best(self) -> tuple[float, int] | None:
        if not self.folder.is_dir():
            return None
        rated = [(c.metrics[_METRIC], c.step) for c in self._checkpointer().checkpoints if c.metrics]
        return max(rated, default=None)

    def save(
        self, step: int, state: Tree, val_accuracy: float | None = None, note: Mapping[str, Any] | None = None
    ) -> None:
        """Saves in the background; the state may be donated as soon as this returns.

        Args:
          step: the number of steps that the state has behind it.
          state: a pytree of arrays.
          val_accuracy: of the state; the checkpoint is no candidate for the best without it.
          note: what else to keep with it, as JSON can hold it.

        Raises:
          UserError: if the folder cannot be written to.
        """
        metrics = None if val_accuracy is None else {_METRIC: float(val_accuracy)}
        try:
            self._checkpointer().save_async(
                step, state, metrics=metrics, force=True, overwrite=True, custom_metadata=note and dict(note)
            )
        except (OSError, ValueError) as error:
            raise _cannot_write(self.folder, error) from error

    def note(self, step: int) -> dict[str, Any]:
        """Returns what `save` was given beside the state of a step."""
        held = self._checkpointer().metadata(step).custom_metadata
        return dict(held or {})

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

    def leave(self) -> None:
        """Closes without waiting; what was being saved may never be complete."""
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
        where = self.folder / str(step)
        context = ocp.Context()
        context.pytree.loading.partial_load = partial
        with _quiet():
            reason = ""
            try:
                if hosts.first():  # where it finds damage it ends the others too
                    _read_through(where)
                if partial:
                    _same_leaves(where, self._checkpointer().metadata(step).metadata, abstract)
                with context:
                    tree = self._checkpointer().load(step, abstract)
            except UserError:
                raise
            # Orbax and TensorStore raise whatever the damaged file leads them to
            except Exception as error:
                reason = _first_cause(error)
            if reason:
                gc.collect()  # what is left of the attempt complains when it is collected, and now nobody hears it
        if reason:  # not from the error itself, which would keep all that alive
            raise UserError(f"{where}: the checkpoint is damaged, cut short or of another architecture ({reason})")
        _same_types(where, tree, abstract)
        return tree


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the tasks that Orbax abandons when it finds a file damaged from printing their tracebacks."""
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook

    def unheard(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(unheard)
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.removeFilter(unheard)


def _read_through(folder: pathlib.Path) -> None:
    """Reads every byte once; raises where one is missing.

    Orbax reads in threads of its own, and where one of them fails the others complain on the terminal.
    """
    for manifest in folder.glob("*/manifest.ocdbt"):
        store = tensorstore.KvStore.open(
            {"driver": "ocdbt", "base": {"driver": "file", "path": f"{manifest.parent}/"}}
        ).result()
        for name in store.list().result():
            store.read(name).result()


def _first_cause(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _same_leaves(where: pathlib.Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises `UserError` unless a checkpoint holds the arrays of `wanted`, and no others beside them."""
    found, expected = (
        {"/".join(k): v.shape for k, v in _leaves({n: t.get(n, {}) for n in wanted})} for t in (held, wanted)
    )
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            here, there = (str(list(s[name])) if name in s else "not there" for s in (found, expected))
            raise UserError(
                f"{where}: {name} is {here}, and should be {there}; the checkpoint is of another architecture"
            )


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        for name, child in tree.items():
            yield from _leaves(child, (*path, name))
    elif tree is not None:
        yield path, tree


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


def abstract_like(tree: Tree, sharding: jax.sharding.Sharding | None = None) -> Tree:
    """Returns the shapes and types of a tree, to be restored onto `sharding`; by default where its arrays lie."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree)


def sha256(params: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(fetch(leaf)).tobytes())
    return digest.hexdigest()
