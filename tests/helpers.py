"""The command line run inside the test's own process, on networks and images that take a second."""

import contextlib
import hashlib
import io
import pathlib
import signal
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import numpy as np
import pytest
from jax import Array

from gkd_jax import main, models
from gkd_jax.losses import term
from gkd_jax.models import registry
from gkd_jax.outputs import Outputs
from gkd_jax.training import members
from gkd_jax.training.stop import Stop

# The configuration of most tests: KD alone, one convolution a network
CONFIG = '''
"""A run of a test."""

from gkd_jax import config, objective


def get_config():
    c = config.default()
    c.epochs, c.batch_size = 2, 16
    c.data.source = "npz:{source}"
    c.data.val_fraction = 0.2
    c.data.pad, c.data.flip = 1, False
    c.teacher.model, c.teacher.epochs, c.teacher.batch_size = "speck_wide", 1, 16
    c.student.model = "speck"
    c.plots = c.tensorboard = False
    rise = config.schedule("gompertz", inflection=0.3, rate=10.0)
    c.objective.terms.kd = objective.block("kd", weight=0.5, schedule=rise)
    c.objective.terms.wasserstein = objective.block("wasserstein", weight=0.0, solver="unrolled", schedule=rise)
    c.objective.terms.gradient = objective.block("gradient", weight=0.0, schedule=rise)
    {more}
    return c
'''


class Speck(nn.Module):
    """One convolution, and a classifier that reads every position: it learns within an epoch, and compiles at once."""

    foldable: ClassVar[bool] = True
    num_classes: int
    width: int
    compute: models.Compute

    @nn.compact
    def __call__(self, images: Array, *, train: bool, probes: Mapping[str, Array]) -> Outputs:
        taps = models.Taps(probes)
        preact = models.ConvNorm(self.width, compute=self.compute, name="stem")(images, train=train)
        x = taps(nn.relu(preact), preact)
        x = taps(nn.avg_pool(x, (2, 2), (2, 2)))
        return models.classify(x.reshape(x.shape[0], 1, 1, -1), taps, self.num_classes)


class Result(NamedTuple):
    """What a command returned and said."""

    status: int
    out: str
    err: str


def run(*arguments: Any) -> Result:
    """Runs `python -m gkd_jax.main` with these arguments in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.main(["gkd_jax", *map(str, arguments)])
    return Result(status, out.getvalue(), err.getvalue())


def images(classes: int = 4, train: int = 80, test: int = 24, shape: tuple[int, ...] = (8, 8, 3)) -> dict[str, Any]:
    """Returns the arrays of an npz: noise around a pattern for each class, so that there is something to learn."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (classes, *shape))

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % classes
        return (patterns[labels] * 0.6 + rng.integers(0, 102, (count, *shape))).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = split(train), split(test)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def write_config(folder: pathlib.Path, more: str = "pass", **arrays: Any) -> pathlib.Path:
    """Writes images and a configuration of a run on them with `more` at its end; `arrays` replace those of `images`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "images.npz", **{**images(), **arrays})
    file = folder / "small.py"
    file.write_text(CONFIG.format(source=folder / "images.npz", more=more))
    return file


def skip_if_not_vmapped(strategy: str | None) -> None:
    """Skips a test of the strategy "vmap" where `members.strategy` never chooses it."""
    if strategy == "vmap" and not members.vmaps_convolutions():
        pytest.skip("this jax cannot differentiate convolutions under vmap on a mesh")


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Returns the hash of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class StopAt(Stop):
    """Asks to stop when it was asked so often."""

    def __init__(self, polls: int):
        self._polls = polls

    @property
    def requested(self) -> int | None:
        self._polls -= 1
        return signal.SIGTERM if self._polls < 0 else None


@contextlib.contextmanager
def registrations() -> Iterator[None]:
    """Knows the networks "speck" and "speck_wide" while entered, and forgets what was registered meanwhile."""
    networks, terms = dict(registry._BUILDS), dict(term._FACTORIES)
    for name, width in {"speck": 6, "speck_wide": 10}.items():

        @models.register(name)
        def build(num_classes: int, dtype: Any, conv: str, width: int = width) -> Any:
            return Speck(num_classes, width, models.Compute(dtype, conv))

    try:
        yield
    finally:
        registry._BUILDS.clear()
        registry._BUILDS.update(networks)
        term._FACTORIES.clear()
        term._FACTORIES.update(terms)
