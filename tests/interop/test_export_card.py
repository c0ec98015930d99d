"""What a model card says how to load is done, word by word; and what else it says is so."""

import json
import re

import helpers
import numpy as np
import pytest

import gkd_jax
from gkd_jax.export import card, files, options
from gkd_jax.interop import answer

CLASSES = ["ape", "bee", "crow d'été", "dog"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of a network that PyTorch has, on images with class names."""
    file = helpers.write_config(tmp_path_factory.mktemp("card"), class_names=np.array(CLASSES))
    flags = ["--config.teacher.model=none", "--config.student.model=resnet8_eighth"]
    flags += ["--config.objective.terms.kd.weight=0", "--workdir", file.parent / "run"]
    told = helpers.run("--config", file, *flags)
    assert told.status == 0, told.err
    return ["--config", file, *flags, "--mode=export"], file.parent / "run"


@pytest.fixture(scope="module")
def everything(trained):
    """The folder of an export to what is installed here, LiteRT left out."""
    flags, workdir = trained
    formats = ["safetensors"]
    for name, module in {"stablehlo": "flatbuffers", "onnx": "jax2onnx"}.items():
        if answer.importlib.util.find_spec(module):
            formats.append(name)
    found = helpers.run(*flags, f"--format={','.join(formats)}")
    assert found.status == 0, found.err
    return workdir / "export", formats


def blocks(folder):
    """Returns the code of a card by its heading."""
    return dict(re.findall(r"### (.+?)\n.+?```python\n(.+?)\n```", (folder / "README.md").read_text(), re.DOTALL))


@pytest.mark.slow
def test_the_lines_work(everything, monkeypatch):
    folder, formats = everything
    images = helpers.images()["x_test"][:5]
    expected = gkd_jax.load(folder.parent).predict(images).argmax(-1)
    found = blocks(folder)
    wanted = {"stablehlo": "StableHLO", "onnx": "ONNX", "safetensors": "safetensors"}
    assert set(found) == {*(wanted[name] for name in formats), "safetensors for PyTorch"}
    monkeypatch.chdir(folder)
    for title, code in found.items():
        given = {"images": images}
        if "PyTorch" in title:
            pytest.importorskip("torch")
            import torch_networks

            given["network"] = torch_networks.create("resnet8_eighth", 4)
        assert len(code.splitlines()) <= 5
        with answer.unheard():  # files that the five lines leave open
            exec(code, given)
        assert given["names"] == [CLASSES[i] for i in expected], title


def test_it_says_what_the_network_is(everything):
    folder, _ = everything
    text, record = (folder / "README.md").read_text(), json.loads((folder / "export.json").read_text())
    known = json.loads((folder.parent / "data.json").read_text())
    assert text.startswith("# resnet8_eighth for npz:")
    assert "uint8 [n, 8, 8, 3] (height, width, channels; 0 to 255)" in text
    assert "64 training, 16 validation, 24 test images" in text
    assert known["digest"] in text
    assert "2 epochs (8 steps) of batches of 16, SGD at a learning rate of 0.05" in text
    assert "| ce | ce | 1 | constant (value 1.0) |" in text
    assert "| kd |" not in text  # of no weight
    for row in record["rows"]:
        assert f"| {row['kind']} | {row.get('file') or '-'} | {100 * row['test_accuracy']:.2f} |" in text
    summary = json.loads((folder.parent / "summary.json").read_text())
    assert f"accuracy {summary['student']['test_accuracy']:.4f}, calibration error" in text
    assert json.loads((folder / "classes.json").read_text()) == CLASSES


@pytest.mark.slow
def test_stablehlo_runs_without_us(everything):
    folder, formats = everything
    if "stablehlo" not in formats:
        pytest.skip("flatbuffers is not installed")
    record = json.loads((folder / "export.json").read_text())
    (row,) = (row for row in record["rows"] if row["kind"] == "stablehlo")
    assert row["difference"] < 1e-4
    assert row["milliseconds"] > 0


def test_every_kind_has_its_lines():
    assert set(card._LOADING) == {*options.FORMATS, files.TORCH}
