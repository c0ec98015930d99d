"""Data sets of TFDS, prepared with a TensorFlow that the notebook's own packages never meet."""

import os
import subprocess
import sys
import tempfile

from gkd_jax.data import tfds
from gkd_jax.errors import UserError

# As one list, so that pip finds versions that suit one another; what the runtime has stays as it is
PACKAGES = (
    "tensorflow-cpu>=2.20",
    "tensorflow-datasets>=4.9.10",
    "array-record>=0.5",
    "importlib-resources",
    "pillow>=10",
)
_SCRIPT = """
import sys
import tensorflow_datasets as tfds
tfds.builder(sys.argv[1], data_dir=sys.argv[2], file_format="array_record").download_and_prepare()
"""


def prepare(source: str, data_dir: str) -> None:
    """Prepares a data set of TFDS in `data_dir`, unless it is there, and says what it does.

    TFDS downloads and prepares with TensorFlow, which a TPU runtime of Colab has not: it is installed into a folder of
    its own for this, and removed again. Data that need no preparing (digits, an npz) are left alone.

    Args:
      source: as in `data.source`: "cifar10", "cifar100" or "tfds:NAME".
      data_dir: of TFDS.

    Raises:
      UserError: if TFDS has no such set, or it cannot be prepared.
    """
    name = source.removeprefix("tfds:")
    if name == source and name not in ("cifar10", "cifar100"):
        return
    if tfds.shapes(name, data_dir) is not None:
        sys.stdout.write(f"{name} is prepared in {data_dir}\n")
        return
    sys.stdout.write(f"preparing {name} in {data_dir}: a few minutes, once\n")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder]
        _call("pip", [*pip, *PACKAGES])
        _call("TFDS", [sys.executable, "-c", _SCRIPT, name, data_dir], PYTHONPATH=folder)


def _call(what: str, arguments: list[str], **environment: str) -> None:
    done = subprocess.run(arguments, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(f"{what} failed: {lines[-1] if lines else f'status {done.returncode}'}")
