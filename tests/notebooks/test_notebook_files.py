"""The notebooks as they lie in the repository: one source, no outputs, an honest header, the same installation."""

import contextlib
import importlib.metadata
import io
import re
import subprocess
import sys
import types

import notebook_case
import pytest
from notebook_case import FOLDER, NAMES

jupytext = pytest.importorskip("jupytext")

PLACEHOLDER = "git+https://github.com/OWNER/gkd_jax"


def test_every_notebook_is_known_here():
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == set(NAMES)
    assert {file.stem for file in FOLDER.glob("*.py")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_text_and_the_notebook_are_one(name):
    text = jupytext.read(FOLDER / f"{name}.py")
    cells = [
        [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in nb.cells]
        for nb in (text, notebook_case.read(name))
    ]
    assert cells[0] == cells[1]
    assert text.metadata["jupytext"]["formats"] == "ipynb,py:percent"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped(name):
    notebook = notebook_case.read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
        assert set(cell.metadata) <= {"tags"}
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("name", NAMES)
def test_the_header_has_a_badge_and_says_what_it_was_executed_on(name):
    title, badge, executed, *_ = notebook_case.read(name).cells[0].source.split("\n\n")
    assert title.startswith("# ")
    address = f"https://colab.research.google.com/github/OWNER/gkd_jax/blob/main/experiments/notebooks/{name}.ipynb"
    assert badge == f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"
    assert executed.startswith("Executed on: ")
    assert "ever yet on a TPU" in executed
    assert badge in (FOLDER / "README.md").read_text()


def test_the_first_notebook_asks_colab_for_a_tpu():
    assert notebook_case.read("distil_on_colab_tpu").metadata["accelerator"] == "TPU"


# ------------------------------------------------------------------------------------------------ installation


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """Colab as the install cell sees it; returns what it mounted and the pip commands it gave."""
    mounted, commands = [], []
    drive = types.SimpleNamespace(mount=mounted.append)
    package = types.ModuleType("google.colab")
    package.drive = drive
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.chdir(tmp_path)

    def run(arguments, **_):
        commands.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return mounted, commands


def _install(source, folder="/content/drive/MyDrive/gkd_jax_runs"):
    code = notebook_case.tagged(NAMES[0], "install").replace(PLACEHOLDER, source)
    code = code.replace("/content/drive/MyDrive/gkd_jax_runs", folder)
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "install", "exec"), names)
    return names


def test_all_notebooks_install_alike():
    assert len({notebook_case.tagged(name, "install") for name in NAMES}) == 1
    assert PLACEHOLDER in notebook_case.tagged(NAMES[0], "install")


def test_elsewhere_nothing_is_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("GKD_RUNS", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was installed"))
    assert _install(PLACEHOLDER)["RUNS"] == tmp_path


def test_the_placeholder_says_what_to_do(colab):
    with pytest.raises(ValueError, match="no public address yet. Put the git address .* or copy its folder to Drive"):
        _install(PLACEHOLDER)
    assert colab == ([], [])


@pytest.mark.parametrize(
    ("source", "folder", "mounts"),
    [
        ("/content/drive/MyDrive/gkd_jax", "/content/runs", 1),
        ("git+https://example.org/gkd_jax", "/content/drive/MyDrive/runs", 1),
        ("git+https://example.org/gkd_jax", "/content/runs", 0),
    ],
)
def test_colab_keeps_the_jax_it_has(colab, tmp_path, source, folder, mounts):
    mounted, (command,) = colab[0], [_install(source, folder) and None] and colab[1]
    assert mounted == ["/content/drive"] * mounts
    assert command[-4:] == ["--constraint", "kept.txt", source, "flatbuffers"]
    kept = (tmp_path / "kept.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==\S+", line) for line in kept)
    for package in ("jax", "jaxlib", "flax", "numpy"):
        assert f"{package}=={importlib.metadata.version(package)}" in kept
