"""The notebooks executed as a reader would, with their small settings; and again after the runtime was taken away."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import notebook_case
import pytest
from notebook_case import FOLDER, NAMES, nbformat

psutil = pytest.importorskip("psutil")
pytest.importorskip("nbmake")
pytest.importorskip("ipykernel")
pytest.importorskip("flatbuffers")  # by which StableHLO is exported

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 600


def _command(file):
    """Returns the command that executes a notebook in its folder and keeps its outputs."""
    # A plugin of the tests' own would be asked for by this repository's settings, and there are none in the folder
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", "--overwrite"] + [
        f"--nbmake-timeout={SECONDS}",
        f"--rootdir={file.parent}",
        str(file),
    ]


@pytest.fixture
def environment(compilation_cache):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    cache = {"JAX_COMPILATION_CACHE_DIR": str(compilation_cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    return {**os.environ, "GKD_SMOKE": "1", "PYTHONPATH": path, **cache}


def _outputs(file):
    """Returns the text of a notebook's outputs, and how many pictures there are."""
    text, pictures = "", 0
    for cell in nbformat.read(file, as_version=4).cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error"
            text += output.get("text", "") + output.get("data", {}).get("text/plain", "") + "\n"
            pictures += "image/png" in output.get("data", {})
    return text, pictures


SMALL = "epoch 3/3"  # by the settings of GKD_SMOKE
SAID = {
    "distil_on_colab_tpu": ("weight of each line at", "student distilled (resnet8_eighth)", "it is:"),
    "the_gompertz_weight": ("gompertz_adaptive", "validation (%)"),
    "your_own_network_and_data": ("student alone (two_stages)", "mean gain", "are: ", "model.stablehlo"),
}


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom(name, tmp_path, environment):
    file = pathlib.Path(shutil.copy(FOLDER / f"{name}.ipynb", tmp_path))
    done = subprocess.run(_command(file), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text, pictures = _outputs(file)
    assert not [said for said in (SMALL, *SAID[name]) if said not in text]
    assert pictures >= 2
    assert re.search(r"\d x cpu \(cpu\), jax .*: no TPU or GPU was found", text)


def test_the_runtime_is_taken_away_and_the_notebook_run_again(tmp_path, environment):
    name = "distil_on_colab_tpu"
    notebook = notebook_case.read(name)
    every = 'FLAGS.append("--config.checkpoint_every=1")'  # which no crash so soon would find by itself
    for tag, more in {"parameters": "EPOCHS = 40", "settings": every}.items():
        place = next(i for i, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", ()))
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(more))
    file = tmp_path / f"{name}.ipynb"
    nbformat.write(notebook, file)
    workdir = tmp_path / "runs" / "resnet8-resnet8_eighth-digits-gompertz_cnn-40ep"
    metrics = workdir / "metrics.jsonl"

    first = subprocess.Popen(_command(file), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + SECONDS
    while not (metrics.exists() and metrics.read_text().count("\n") >= 4):
        assert first.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    for process in [*psutil.Process(first.pid).children(recursive=True), first]:
        process.kill()
    first.wait()
    lost, teacher = metrics.read_text().splitlines(), (workdir / "teacher" / "metrics.jsonl").read_bytes()
    assert 4 <= len(lost) < 40

    done = subprocess.run(_command(file), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, 41))
    # The epoch under way, the one whose checkpoint was, and one that was recorded meanwhile are done again; the
    # others are what they were
    assert metrics.read_text().splitlines()[: len(lost) - 2] == lost[:-2]
    assert (workdir / "teacher" / "metrics.jsonl").read_bytes() == teacher
    assert "epoch 40/40" in _outputs(file)[0]
