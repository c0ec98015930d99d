"""A small pair on real CIFAR images, for every method."""

import functools
import pathlib
import runpy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import helpers
import jax
import numpy as np
import pytest

from gkd_jax import command, models
from gkd_jax.outputs import Outputs
from gkd_jax.training import experiment
from gkd_jax.training.resolve import resolve

CIFAR = pathlib.Path(__file__).parents[2] / "configs" / "cifar.py"
TEACHER, STUDENT = "stairs_wide", "stairs"
TRAIN, BATCH = 64, 32
# What a method needs on so few images and steps: as many negatives for each as there are on CIFAR, and no drop at 150
LATE = "--config.optimizer.drops=('62.5%', '75%', '87.5%')"
FLAGS = {"crd": ("--config.objective.terms.crd.negatives=21",), "mlkd": (LATE,), "mlkd_ls": (LATE,)}


class Stairs(nn.Module):
    """A convolution and BatchNorm for the stem and each of three stages: all that a method may look at."""

    foldable: ClassVar[bool] = True
    num_classes: int
    width: int
    compute: models.Compute

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, probes: Mapping[str, jax.Array]) -> Outputs:
        taps, x = models.Taps(probes), images
        for stage in range(4):
            width, stride = self.width * (1, 1, 2, 4)[stage], (1, 1, 2, 2)[stage]
            conv = models.ConvNorm(width, stride=stride, compute=self.compute, name=f"stage{stage}")
            preact = conv(x, train=train)
            x = taps(nn.relu(preact), preact)
        return models.classify(x, taps, self.num_classes)

    def preact_norms(self) -> tuple[str, ...]:
        """Returns the path of each stage's BatchNorm."""
        return tuple(f"stage{stage}/norm" for stage in range(4))


@pytest.fixture(scope="package", autouse=True)
def _registrations() -> Iterator[None]:
    with helpers.registrations():
        for name, width in {STUDENT: 4, TEACHER: 6}.items():

            @models.register(name)
            def build(num_classes: int, dtype: Any, conv: str, width: int = width) -> Stairs:
                return Stairs(num_classes, width, models.Compute(dtype, conv))

        yield


@pytest.fixture(scope="package")
def images(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An npz of the first CIFAR-100 images, at half their size."""
    module = runpy.run_path(str(data_dir / "unpack.py"))
    arrays, _ = module["load"]("cifar100")
    small = {name: arrays[name][:TRAIN] for name in arrays}
    for name in ("x_train", "x_test"):
        blocks = small[name].reshape(-1, 16, 2, 16, 2, 3)
        small[name] = blocks.mean((2, 4)).astype(np.uint8)
    file = tmp_path_factory.mktemp("cifar") / "images.npz"
    np.savez(file, **small)
    return file


@pytest.fixture(scope="package")
def resolved(images: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Returns a function that gives the configuration of a method, with a teacher that was trained for two steps."""

    @functools.cache
    def given(method: str, *flags: str) -> dict[str, Any]:
        small = (
            f"--config={CIFAR}:{TEACHER},{STUDENT},npz:{images},{method}",
            *("--config.epochs=5", f"--config.batch_size={BATCH}", "--config.teacher.epochs=1"),
            *(f"--config.teacher.batch_size={BATCH}", "--config.data.num_classes=100", "--config.data.pad=2"),
            *("--config.plots=false", "--config.tensorboard=false", "--config.cpu_devices=1"),
            *("--config.optimizer.learning_rate=0.01", *FLAGS.get(method, ()), *flags),
        )
        return resolve(command.parse(["gkd_jax", *small]).config)

    taught = tmp_path_factory.mktemp("taught") / "teacher"
    experiment.run(experiment.of_teacher(given("kd")), taught)

    def find(method: str, *flags: str) -> dict[str, Any]:
        checkpoint = () if method in ("alone", "label_smoothing") else (f"--config.teacher.checkpoint={taught}",)
        return given(method, *checkpoint, *flags)

    return find
