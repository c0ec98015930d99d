"""StableHLO by `jax.export`: for any number of images, on CPU, CUDA and TPU, read by JAX alone.

    from jax import export
    logits = export.deserialize(open("model.stablehlo", "rb").read()).call(images)

JAX promises to read such a file for six months after the version that wrote it.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

from gkd_jax.errors import UserError
from gkd_jax.interop import jax_alone
from gkd_jax.interop.answer import Answer, needed, refused
from gkd_jax.interop.served import Images, Served

EXTRA = "export"
PLATFORMS = ("cpu", "cuda", "tpu")


def require() -> None:
    """Raises `UserError` where what it takes is not installed."""
    needed("stablehlo", EXTRA, "flatbuffers")


def write(served: Served, path: pathlib.Path) -> None:
    """Writes the function.

    Raises:
      UserError: if it holds an operation that cannot be written, or that knows the number of images.
    """
    from jax import export

    (count,) = export.symbolic_shape("b")
    with refused("stablehlo", served.name), _no_paths():
        exported = export.export(jax.jit(served.logits), platforms=PLATFORMS)(served.images(count))
        content = exported.serialize()
    path.write_bytes(content)


@contextmanager
def _no_paths() -> Iterator[None]:
    """Leaves out where in which file each operation comes from: folders of this machine are nobody's business."""
    before = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def ask(path: pathlib.Path, images: Images) -> Answer:
    """Returns what the export says, in a process of its own on the CPU that does not import gkd_jax.

    Raises:
      UserError: if that process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answer = pathlib.Path(folder) / "images.npy", pathlib.Path(folder) / "answer.npz"
        np.save(given, images)
        # -P: the folder of that file, which is gkd_jax's, is not where it looks for modules
        command = [sys.executable, "-P", jax_alone.__file__, str(path), str(given), str(answer)]
        done = subprocess.run(
            command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise UserError(f"{path.name} cannot be run by JAX alone: {last}")
        with np.load(answer) as found:
            return Answer(found["logits"], float(found["milliseconds"]), str(found["runtime"]))
