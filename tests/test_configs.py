"""Every file under configs/ says how it is run, can be run so, and takes a step."""

import ast
import json
import pathlib
import re
import shlex

import helpers
import numpy as np
import pytest

from gkd_jax import command as command_line
from gkd_jax.training.resolve import resolve

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))
# Whose images are no arrays, and whose teacher is another run
OWN_TESTS = {"imagenet", "assistant"}

# What a file's argument is replaced by, and flags for one that names networks which take long to compile
ARGUMENTS = {"cifar": ":speck_wide,speck,cifar100", "teacher": ":speck,cifar10"}
FLAGS = {"digits": ["--config.teacher.model=speck_wide"]}


@pytest.fixture(scope="module", autouse=True)
def _registrations():
    with helpers.registrations():
        yield


def _docstring(file):
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def _commands():
    for file in FILES:
        for command in re.findall(r"python -m gkd_jax\.main [^\n]*", _docstring(file)):
            if not re.search(r"\.py:[A-Z,]+( |$)", command):  # a pattern, no command
                yield pytest.param(file, command, id=f"{file.stem}: {command.removeprefix('python -m gkd_jax.main ')}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_says_how_it_is_run(file):
    assert f"python -m gkd_jax.main --config configs/{file.name}" in _docstring(file)


@pytest.mark.parametrize(("file", "command"), list(_commands()))
def test_the_commands_in_its_docstring_work(file, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = command_line.parse(["gkd_jax", *shlex.split(command)[3:]])
    assert parsed is not None
    resolved = resolve(parsed.config)
    assert json.loads(json.dumps(resolved)) == resolved


@pytest.mark.parametrize("file", [file for file in FILES if file.stem not in OWN_TESTS], ids=lambda file: file.stem)
def test_it_takes_a_step(file, tmp_path):
    helpers.write_config(tmp_path, **helpers.images(train=18, test=8))
    workdir = tmp_path / "run"
    found = helpers.run(
        *("--config", f"{file}{ARGUMENTS.get(file.stem, '')}", "--workdir", workdir, *FLAGS.get(file.stem, [])),
        *(f"--config.data.source=npz:{tmp_path / 'images.npz'}", "--config.epochs=1", "--config.batch_size=16"),
        *("--config.teacher.epochs=1", "--config.teacher.batch_size=16", "--config.compare_alone=false"),
        "--config.plots=false",
    )
    assert found.status == 0, found.err
    (record,) = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    assert record["step"] == 1
    assert np.isfinite([record["loss"], *(term["value"] for term in record["terms"].values())]).all()
    summary = json.loads((workdir / "summary.json").read_text())
    assert (summary["teacher"] is None) == (set(record["terms"]) == {"ce"})


@pytest.mark.parametrize(
    ("file", "argument"),
    [
        ("cifar", "resnet20,resnet8"),
        ("teacher", "resnet20"),
        ("imagenet", "resnet34"),
        ("assistant", "resnet110,resnet20,resnet8"),
    ],
)
def test_an_argument_of_another_form_is_explained(file, argument):
    found = helpers.run("--config", ROOT / "configs" / f"{file}.py:{argument}", "--mode=print")
    assert found.status == 2
    assert f"stands behind the colon, not {argument!r}" in found.err


def test_an_assistant_teaches_what_it_was_taught(tmp_path, monkeypatch):
    """Two commands without a workdir: the second finds the first one's student."""
    helpers.write_config(tmp_path, **helpers.images(train=16, test=8))
    monkeypatch.chdir(tmp_path)
    flags = [f"--config.{name}=1" for name in ("epochs", "teacher.epochs", "data.pad")]
    flags += [
        "--config.batch_size=16",
        "--config.teacher.batch_size=16",
        f"--config.data.source=npz:{tmp_path}/images.npz",
    ]
    flags += ["--config.plots=false", "--config.tensorboard=false"]
    summaries = []
    for links in ("cifar.py:speck_wide,speck", "assistant.py:speck_wide,speck,speck"):
        found = helpers.run("--config", f"{ROOT / 'configs' / links},cifar100,kd", *flags)
        assert found.status == 0, found.err
        workdir = tmp_path / "runs" / re.sub(r"\W+", "-", links.replace(".py", "") + "-cifar100-kd")
        summaries.append(json.loads((workdir / "summary.json").read_text()))
    first, second = summaries
    assert second["teacher"]["params_sha256"] == first["student"]["params_sha256"]
    assert (first["teacher"]["model"], second["teacher"]["model"]) == ("speck_wide", "speck")
    assert not (workdir / "teacher").exists()


def test_without_the_first_command_the_assistant_is_missing(tmp_path, monkeypatch):
    helpers.write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    argument = f"speck_wide,speck,speck,npz:{tmp_path}/images.npz"
    found = helpers.run("--config", f"{ROOT / 'configs' / 'assistant.py'}:{argument}")
    assert found.status == 2
    assert re.search(r"runs/cifar-speck_wide-speck-npz-.*images.npz", found.err), found.err
