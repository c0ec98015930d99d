"""The student that is exported, and what it is compared with: its own logits on the test images."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gkd_jax.data import AnyDataset
from gkd_jax.errors import UserError
from gkd_jax.export import images
from gkd_jax.export.images import Asked
from gkd_jax.interop.served import Images, Logits, Served, network, serve
from gkd_jax.outputs import Model, Variables
from gkd_jax.training import experiment, finished, summary
from gkd_jax.training.evaluate import Evaluator
from gkd_jax.training.finished import Finished
from gkd_jax.training.workdir import same_images, same_run


class Student(NamedTuple):
    """A finished student with all that its export needs.

    Attributes:
      finished: as it was loaded.
      seed: of its training.
      dataset: its data.
      test: the images that it is asked about.
      served: the function to export: plain convolutions, float32, preprocessing inside.
      final: of the map that the classifier of its teacher reads, where it speaks through that one.
      logits: its own on the test images, computed in float32 by the network as this machine runs it.
    """

    finished: Finished
    seed: int
    dataset: AnyDataset
    test: Asked
    served: Served
    final: tuple[int, int, int] | None
    logits: Logits

    def ask(self, model: Model, variables: Variables) -> Logits:
        """Returns the logits of such a network on the test images."""
        return _asked(self.finished, self.test, model, variables)

    def calibration(self) -> Images:
        """Returns the training images, as they are, by which to quantise."""
        return images.for_calibration(self.dataset)

    def accuracy(self, logits: Logits) -> float:
        """Returns the share of the test images that logits are right about."""
        return float(np.mean(logits.argmax(-1) == self.test.labels))


def opened(workdir: pathlib.Path, resolved: Mapping[str, Any], seed: int | None) -> Student:
    """Returns the student of a finished run; the averages, where the run kept any.

    Args:
      workdir: of the run.
      resolved: the configuration that the run is believed to have, perhaps with another compute type or data folder.
      seed: which of the students that were trained together; the first by default.

    Raises:
      UserError: if the directory holds no such run, it has not finished, or its test images are not there.
    """
    found = finished.load(workdir, seed=seed)
    same_run(workdir, {**resolved, "dtype": found.config["dtype"]}, found.config)
    dataset = experiment.load_data(resolved)
    if not dataset.sizes.test:
        raise UserError(f"{dataset.name} has no test images, and an export is verified on them")
    same_images(workdir, dataset, found.record["digest"])
    if seed is None:
        seed = next(iter(found.config.get("seeds") or [found.config["seed"]]))
    name = found.config["student"]["model"]
    final = tuple(found.record[finished.REUSED]) if finished.reuses(found.config) else None
    plain = network(name, len(found.class_names), final=final)
    test = images.of_test(dataset)
    own = _asked(found, test, here(found), found.variables)
    return Student(found, seed, dataset, test, _served(found, plain), final, own)


def here(found: Finished) -> Model:
    """Returns the network as this machine runs it best, in float32."""
    return finished.rebuilt({**found.config, "dtype": "float32"}, found.record, len(found.class_names))


def _served(found: Finished, model: Model) -> Served:
    name, names = found.config["student"]["model"], found.class_names
    return serve(name, model, found.variables, names, found.image_shape, found.mean, found.std)


def _asked(found: Finished, test: Asked, model: Model, variables: Variables) -> Logits:
    # In full precision, which on accelerators is not what convolutions have by themselves
    with jax.default_matmul_precision("highest"):
        evaluator = Evaluator(model, test.images, test.labels, found.mean, found.std, [_processor()])
        return evaluator.logits(variables)


def runner(found: Finished) -> Callable[[np.ndarray], Any]:
    """Returns a network as this machine runs it best, on the CPU, images to logits: what its latency is taken of."""
    function = jax.jit(_served(found, here(found)).logits)
    device = _processor()
    return lambda images: function(jax.device_put(images, device)).block_until_ready()


@functools.cache
def _processor() -> jax.Device:
    """Returns the CPU, on which all that is compared runs; the first accelerator where JAX was told to have no CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def size(found: Finished) -> int:
    """Returns how many bytes its variables are."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(found.variables))


def measured_before(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the summary of a run; empty for one that was imported without being evaluated."""
    file = workdir / summary.SUMMARY
    return finished.read(file) if file.exists() else {}
