"""The notebooks as files, and what their settings amount to without running them."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

nbformat = pytest.importorskip("nbformat")  # of the extra "notebooks"

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "notebooks"
NAMES = ("distil_on_colab_tpu", "the_gompertz_weight", "your_own_network_and_data")
SETTINGS = ("install", "parameters", "settings")


class Settings(NamedTuple):
    """What a notebook's cells set before anything is trained, and its configuration file by name."""

    names: dict[str, Any]
    files: dict[str, pathlib.Path]


def read(name: str) -> Any:
    """Returns a notebook."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def tagged(name: str, tag: str) -> str:
    """Returns the source of the one cell of a notebook that has a tag."""
    (found,) = (cell.source for cell in read(name).cells if tag in cell.metadata.get("tags", ()))
    return found


def settings(
    name: str,
    folder: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    smoke: bool,
    changed: Mapping[str, Any] | None = None,
) -> Settings:
    """Runs a notebook's cells that set names or write files, in a folder, and returns what they leave.

    Args:
      name: of the notebook.
      folder: to run in.
      monkeypatch: for environment and folder.
      smoke: whether to take the small settings.
      changed: parameters, in place of the notebook's.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GKD_SMOKE", "1" if smoke else "0")
    monkeypatch.setenv("GKD_RUNS", str(folder / "runs"))
    names: dict[str, Any] = {}
    files = {}
    for cell in read(name).cells:
        magic, _, body = cell.source.partition("\n")
        if magic.startswith("%%writefile "):
            file = folder / magic.removeprefix("%%writefile ")
            file.write_text(body)
            files[file.name] = file
        for tag in set(SETTINGS) & set(cell.metadata.get("tags", ())):
            exec(compile(cell.source, f"{name}:{tag}", "exec"), names)
            if tag == "parameters":
                names.update(changed or {})
    return Settings(names, files)
