"""PyTorch weights as a finished run, by the command a user gives."""

import contextlib
import hashlib
import io
import json
import pathlib
import subprocess
import sys

import helpers
import numpy as np
import pytest
from safetensors.numpy import save_file

sys.path.append(str(pathlib.Path(__file__).parents[1] / "interop"))
import state_dicts  # noqa: E402

from gkd_jax import data  # noqa: E402
from gkd_jax.training import finished, imported, teacher  # noqa: E402
from gkd_jax.training.workdir import alone_in  # noqa: E402

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture
def files(tmp_path):
    """Returns the paths of images, of weights that suit them, and of a directory that is not there."""
    np.savez(tmp_path / "images.npz", **helpers.images())
    save_file(state_dicts.resnet(classes=4), tmp_path / "weights.safetensors")
    return tmp_path / "images.npz", tmp_path / "weights.safetensors", tmp_path / "teachers" / "resnet8"


def _run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = imported.main(["torch", *map(str, arguments)])
    return helpers.Result(status, out.getvalue(), err.getvalue())


def _import(files, *more):
    images, weights, workdir = files
    return _run(weights, "--model=resnet8", f"--dataset=npz:{images}", f"--workdir={workdir}", *more)


def _by_hand(arrays, images):
    """Returns the logits of resnet8 in float64 NumPy, as PyTorch's documentation defines its layers."""

    def conv(x, name, stride=1):
        kernel = arrays[f"{name}.weight"].astype(np.float64)
        pad = kernel.shape[2] // 2
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (2, 3))[:, :, ::stride, ::stride]
        return np.einsum("bihwpq,oipq->bohw", windows, kernel, optimize=True)

    def norm(x, name):
        scale, shift, mean, var = (
            arrays[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + shift

    x = np.maximum(norm(conv(images, "conv1"), "bn1"), 0)
    for stage in (1, 2, 3):
        at, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        h = np.maximum(norm(conv(x, f"{at}.conv1", stride), f"{at}.bn1"), 0)
        h = norm(conv(h, f"{at}.conv2"), f"{at}.bn2")
        shortcut = x if stage == 1 else norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
        x = np.maximum(h + shortcut, 0)
    return x.mean((2, 3)) @ arrays["fc.weight"].T.astype(np.float64) + arrays["fc.bias"]


def test_a_finished_run_with_the_same_predictions(files):
    images, weights, workdir = files
    result = _import(files)
    assert (result.err, result.status) == ("", 0)
    network, dataset = finished.load(workdir), data.load(f"npz:{images}")
    pixels = (dataset.test_images / 255 - dataset.mean) / dataset.std
    logits = _by_hand(state_dicts.resnet(classes=4), pixels.transpose(0, 3, 1, 2))
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    np.testing.assert_allclose(network.predict(dataset.test_images), probabilities, atol=1e-5)
    accuracy = float(np.mean(logits.argmax(1) == dataset.test_labels))
    assert 0 < accuracy < 1
    lines = result.out.splitlines()
    assert lines[0] == f"{workdir}: resnet8 for npz:{images}, 77,652 parameters, from weights.safetensors"
    assert f"test accuracy   {100 * accuracy:.2f} %  (24 images)" in lines
    assert lines[-1] == f"as a teacher    --config.teacher.model=resnet8 --config.teacher.checkpoint={workdir}"
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["student"]["test_accuracy"] == pytest.approx(accuracy)
    assert network.record["imported"] == {
        "framework": "torch",
        "file": "weights.safetensors",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }

    # It teaches, and what it has seen is known
    assert teacher.prepare(workdir, "resnet8", dataset, "float32").kernel.shape == (64, 4)
    assert teacher.leak(dataset, network) is None
    held_out = data.load(f"npz:{images}", val_fraction=0.25)
    assert "was trained on 20 of the 20 validation images" in teacher.leak(held_out, network)

    # The configuration file of teachers reads it, to evaluate as to train
    given = "--config", f"{CONFIGS}/teacher.py:resnet8,npz:{images}", "--workdir", workdir
    evaluated = helpers.run(*given, "--mode=eval")
    assert (evaluated.status, evaluated.err) == (0, "")
    assert f"test accuracy        {100 * accuracy:6.2f} %  (24 images)" in evaluated.out
    before = helpers.contents(workdir)
    again = helpers.run(*given)
    assert again.status == 0
    assert f"{100 * accuracy:.2f}" in again.out
    assert helpers.contents(workdir) == before

    # Nothing is written over
    refused = _import(files)
    assert refused.status == 2
    assert refused.err == (
        f"gkd_jax: {workdir} holds a network already; choose another --workdir, or remove this one\n"
    )
    assert helpers.contents(workdir) == before


def test_without_reading_the_test_images(files):
    result = _import(files, "--no-evaluate")
    assert result.status == 0
    assert "accuracy" not in result.out
    assert not (files[2] / "summary.json").exists()
    assert finished.load(files[2]).class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model=resnet20",), "which the state_dict lacks; the arrays are those of resnet8"),
        (("--model=resnet9",), "student.model: unknown model 'resnet9' (did you mean"),
        (("--dataset=cifra100",), "unknown data source 'cifra100' (did you mean 'cifar100'?)"),
        (("--mean=0.5,0.5,0.5",), "--mean is 0.5, 0.5, 0.5, but the images of npz:"),
        (("--std=0.2,0.2",), "--std is 0.2, 0.2, but the images of npz:"),
        (("--mean=half",), "argument --mean: invalid _channels value: 'half'; --help shows all flags"),
        (("--modle=resnet8",), "unrecognized arguments: --modle=resnet8; --help shows all flags"),
    ],
)
def test_what_does_not_fit_leaves_nothing_behind(files, more, message):
    result = _import(files, *more)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("gkd_jax: ")
    assert message in result.err
    assert not files[2].exists()


def test_a_data_set_of_other_classes(files, tmp_path):
    np.savez(tmp_path / "more.npz", **helpers.images(classes=5))
    result = _import((tmp_path / "more.npz", *files[1:]))
    wanted = f"{files[1]}: fc.bias is [4], and should be [5]: the network knows 4 classes, not 5"
    assert (result.status, result.err) == (2, f"gkd_jax: {wanted}\n")


def test_the_constants_of_the_data_set_may_be_given_as_they_are_published(files):
    dataset = data.load(f"npz:{files[0]}")
    given = [f"--{name}={','.join(f'{x:.4f}' for x in getattr(dataset, name))}" for name in ("mean", "std")]
    assert _import(files, *given, "--no-evaluate").status == 0


def test_missing_arguments_and_files(files):
    result = _run()
    assert (result.status, result.out) == (2, "")
    assert "the following arguments are required: WEIGHTS, --model, --dataset, --workdir" in result.err
    files[1].unlink()
    assert _import(files).err == f"gkd_jax: {files[1]}: no such file\n"


def test_a_directory_in_use(files, tmp_path):
    taken = files[2]
    taken.mkdir(parents=True)
    with alone_in(taken):
        result = _import(files)
    assert result.status == 2
    assert "another process is at work on this run" in result.err
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"seed": 3}')
    result = _import((*files[:2], other))
    assert result.status == 2
    assert "belongs to a run of another configuration" in result.err
    assert [path.name for path in other.iterdir()] == ["config.json"]


@pytest.mark.slow
def test_the_command():
    command = [sys.executable, "-m", "gkd_jax.import_weights", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "WEIGHTS --model resnet32x4" in done.stdout
