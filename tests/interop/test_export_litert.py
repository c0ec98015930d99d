"""LiteRT, float32 and int8, by a Python that has TensorFlow: this one, or that of GKD_LITERT_PYTHON."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import export_case
import helpers
import numpy as np
import pytest

import gkd_jax
from gkd_jax import export
from gkd_jax.errors import UserError
from gkd_jax.interop import answer, litert

# Dense, grouped and depthwise convolutions, shuffled channels, both kinds of pooling. Of each, how far the logits of
# int8 must correlate with its own: weights are random, so each layer multiplies the rounding of those before. Measured
# were 0.9994 (resnet8) and 0.9996 (vgg8), which are shallow, 0.90 (both shufflenets) and 0.60 (mobilenetv2_half, of 53
# layers); other weights may give a little less.
NETWORKS = {"resnet8": 0.998, "mobilenetv2_half": 0.5, "shufflenetv1": 0.85}
MORE = {"vgg8": 0.998, "shufflenetv2": 0.85}
HERE = pathlib.Path(__file__).parent
LOAD = """
import json, numpy, sys
images = numpy.load("images.npy")
exec(open("code.py").read())
print(json.dumps(names))
"""


@pytest.fixture(scope="module")
def python():
    """A Python with gkd_jax, TensorFlow and the interpreter."""
    if "GKD_LITERT_PYTHON" in os.environ:
        return os.environ["GKD_LITERT_PYTHON"]
    if all(importlib.util.find_spec(name) for name in ("tensorflow", "ai_edge_litert")):
        return sys.executable
    return pytest.skip("no TensorFlow to convert with; set GKD_LITERT_PYTHON")


def started(*command, **more):
    """Runs a process with the folders of the tests' modules, and returns what it printed."""
    paths = [str(HERE), str(HERE.parent), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(list(map(str, command)), env=given, capture_output=True, text=True, check=False, **more)


@pytest.fixture(scope="module")
def said(python, request):
    networks = [*NETWORKS, *(MORE if request.config.getoption("--all") else [])]
    done = started(python, HERE / "litert_case.py", ",".join(networks))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in MORE)])
def test_networks(name, said):
    single, quantised = said["networks"][name]["float"], said["networks"][name]["int8"]
    assert single["difference"] < 1e-4
    assert quantised["alike"] > {**NETWORKS, **MORE}[name]
    assert quantised["difference"] > 1e-4
    assert quantised["int8"] > 0 == single["int8"]
    assert quantised["bytes"] < 0.45 * single["bytes"]
    for found in (single, quantised):
        assert tuple(found["names"]) == export_case.NAMES
        assert found["given"] == ["uint8", [1, 16, 16, 3]]
        assert found["made"] == ["float32", [1, 4]]
        assert found["signature"] == {"serving_default": {"inputs": ["images"], "outputs": ["logits"]}}
        assert found["runtime"].startswith("ai-edge-litert ")
        assert found["milliseconds"] > 0


@pytest.mark.slow
def test_an_operation_that_litert_lacks(said):
    assert said["caller"].startswith("--format litert: the network 'caller' cannot be written in this format (")
    assert said["caller"].endswith("leave litert out")


@pytest.mark.slow
def test_a_damaged_file(said):
    assert re.fullmatch("model.tflite cannot be run by the LiteRT interpreter: .+", said["damaged"])


@pytest.mark.slow
def test_the_command_and_its_card(python, tmp_path):
    file = helpers.write_config(tmp_path, class_names=np.array(export_case.NAMES))
    flags = ["--config", file, "--workdir", tmp_path / "run", "--config.student.model=resnet8_eighth"]
    flags += ["--config.teacher.model=none", "--config.objective.terms.kd.weight=0"]
    assert helpers.run(*flags).status == 0
    flags += ["--mode=export", "--format=safetensors,litert", "--quantize=int8", "--max_drop=1"]
    done = started(python, "-m", "gkd_jax.main", *flags)
    assert done.returncode == 0, done.stderr
    # Of what TensorFlow says in C++ nothing is left
    assert [line for line in done.stderr.splitlines() if not line.startswith("gkd_jax: ")] == []
    rows = {row["kind"]: row for row in export.read(tmp_path / "run")["rows"]}
    assert list(rows)[1:] == ["safetensors", "safetensors, PyTorch", "litert", "litert, int8"]
    assert rows["litert"]["difference"] < 1e-4 < rows["litert, int8"]["difference"]
    assert rows["litert, int8"]["bytes"] < rows["litert"]["bytes"]
    folder = tmp_path / "run" / "export"
    text = (folder / "README.md").read_text()
    assert "by the ranges of 64 training images (seed 0)" in text
    # Without it, as with the run's own Python: what needs TensorFlow stays as it was
    code = text.split("### LiteRT")[1].split("```python\n")[1].split("\n```")[0]
    assert len(code.splitlines()) == 5
    images = helpers.images()["x_test"][:5]
    np.save(folder / "images.npy", images)
    (folder / "code.py").write_text(code)
    done = started(python, "-c", LOAD, cwd=folder)
    assert done.returncode == 0, done.stderr
    expected = gkd_jax.load(tmp_path / "run").predict(images).argmax(-1)
    assert json.loads(done.stdout.splitlines()[-1]) == [export_case.NAMES[i] for i in expected]


@pytest.mark.parametrize("missing", ["tensorflow", "ai_edge_litert"])
def test_a_missing_extra_is_named(missing, monkeypatch):
    monkeypatch.setattr(answer.importlib.util, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(UserError, match=rf"--format litert needs {missing}, .* pip install 'gkd_jax\[export-litert\]'"):
        litert.require()
