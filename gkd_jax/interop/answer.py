"""What every format has in common: the answer of its runtime, and what is said where something cannot be."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from gkd_jax.errors import UserError
from gkd_jax.interop.jax_alone import BATCH, median_milliseconds
from gkd_jax.interop.served import Images


class Answer(NamedTuple):
    """What an export says of images, asked through its own runtime.

    Attributes:
      logits: [n c].
      milliseconds: for one image; the median of many calls. None where it is not the runtime that computes.
      runtime: its name and version.
      class_names: those that travel in the file; None where the format has no place.
    """

    logits: Float32[np.ndarray, "n c"]
    milliseconds: float | None
    runtime: str
    class_names: tuple[str, ...] | None = None


def answer(
    run: Callable[[Images], np.ndarray],
    images: Images,
    runtime: str,
    class_names: tuple[str, ...] | None = None,
    batch: int = BATCH,
) -> Answer:
    """Asks a runtime about all images, and times it on the first of them.

    Args:
      run: images to logits.
      images: of which there is one or more.
      runtime: its name, that of its package.
      class_names: see `Answer`.
      batch: how many images it takes at once.
    """
    parts = [np.asarray(run(images[start : start + batch]), np.float32) for start in range(0, len(images), batch)]
    took = median_milliseconds(lambda: run(images[:1]))
    return Answer(np.concatenate(parts), took, f"{runtime} {importlib.metadata.version(runtime)}", class_names)


def needed(kind: str, extra: str, *modules: str) -> None:
    """Raises `UserError`, with what to install, unless all modules are there."""
    for module in modules:
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # of the package that should hold it
            found = False
        if not found:
            raise UserError(
                f"--format {kind} needs {module.split('.')[0]}, which is not installed: pip install 'gkd_jax[{extra}]'"
            )


@contextlib.contextmanager
def unheard(*loggers: str) -> Iterator[None]:
    """Keeps what libraries warn of, and these loggers tell below errors, from a user who cannot change it."""
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(found, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def refused(kind: str, name: str) -> Iterator[None]:
    """Raises `UserError` for whatever a converter raises, which says it in types of its own."""
    with _in_one_line(
        lambda said: (
            f"--format {kind}: the network {name!r} cannot be written in this format ({said}); leave {kind} out"
        )
    ):
        yield


@contextlib.contextmanager
def not_run(file: str, runtime: str) -> Iterator[None]:
    """Raises `UserError` for whatever a runtime raises that is given a file."""
    with _in_one_line(lambda said: f"{file} cannot be run by {runtime}: {said}"):
        yield


@contextlib.contextmanager
def _in_one_line(sentence: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(sentence(said[:300])) from error
