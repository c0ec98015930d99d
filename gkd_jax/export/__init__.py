"""A finished student out to the device: files of other runtimes, each verified by its own, and a model card.

  python -m gkd_jax.main --config FILE --mode=export --workdir RUN --format stablehlo,safetensors,onnx,litert

`gkd_jax.interop` has the formats; here is the command that ties them to a run.
"""

import pathlib
from typing import Any

FOLDER, RECORD, CARD, CLASSES = "export", "export.json", "README.md", "classes.json"
"""In the directory of a run, and in that folder: what was measured, the model card, the names of the classes."""

__all__ = ["CARD", "CLASSES", "FOLDER", "RECORD", "read"]


def read(workdir: str | pathlib.Path) -> dict[str, Any] | None:
    """Returns what was measured when a run was exported, None if it was not.

    Args:
      workdir: of the run.

    Returns:
      The content of `export.json`: "rows" for `gkd_jax.export.table.table`, of the teacher, of the student and of each
      file; "test_images", how many there were; "seed", "params_sha256" and "config_hash" of what was exported;
      "versions" and "device".

    Raises:
      UserError: if it cannot be read.
    """
    from gkd_jax.training import finished

    file = pathlib.Path(workdir) / FOLDER / RECORD
    return finished.read(file) if file.exists() else None
