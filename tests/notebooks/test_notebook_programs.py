"""What can be proven of the notebooks without a TPU: their steps lower for one, and eight devices do what one does."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import notebook_case
import numpy as np
import pytest

import gkd_jax
from gkd_jax import command, config, models
from gkd_jax.data.checks import Arrays
from gkd_jax.data.dataset import build
from gkd_jax.training.finished import Finished
from gkd_jax.training.program import Job, Program
from gkd_jax.training.resolve import resolve
from gkd_jax.training.teacher import Teacher


def _job(found, arguments, shape, classes, folder):
    """Returns the job of a notebook's student, with noise for images and zeros for a teacher."""
    parsed = command.parse(["gkd_jax", "--workdir", str(folder), *arguments, "--config.dtype=bfloat16"])
    config.check(parsed.config)
    resolved = resolve(parsed.config)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, *shape), dtype=np.uint8)
    labels = np.arange(200, dtype=np.int32) % classes
    names = tuple(map(str, range(classes)))
    given = resolved["data"]
    dataset = build(
        "noise",
        Arrays(images, labels, images[:20], labels[:20], names),
        val_fraction=given["val_fraction"],
        split_seed=0,
        pad=given["pad"],
        flip=given["flip"],
    )
    model = models.create(resolved["teacher"]["model"], num_classes=classes)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
    known = Finished({}, names, shape, dataset.mean, dataset.std, model, variables, 0, {})
    return Job("student", resolved, folder, dataset, Teacher(model, variables, *model.classifier(variables), known))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    [("distil_on_colab_tpu", (32, 32, 3)), ("your_own_network_and_data", (8, 8, 1))],
)
def test_the_step_lowers_for_a_tpu(name, shape, tmp_path, monkeypatch):
    """The notebook's own networks, objective and program of many steps, in the type that is computed in there."""
    names = notebook_case.settings(name, tmp_path, monkeypatch, smoke=False).names
    job = _job(names, ["--config", names["CONFIG"], *names["FLAGS"]], shape, 10, tmp_path / "run")
    program = Program(job, devices=jax.devices()[:1], platform="tpu")
    state, frozen = jax.eval_shape(program.initial)
    plan, fixed = program.plan(0), program.fixed(frozen)
    count = program.call_at(0)
    assert count > 1
    text = program.jitted_step_at(0, count).trace(state, plan, fixed).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.while" in text  # the steps of one call
    assert text.count("stablehlo.convolution") > 5
    assert "bf16" in text


@pytest.mark.slow
def test_eight_devices_do_what_one_does(tmp_path, monkeypatch, compilation_cache):
    """The first notebook's run as on a TPU of eight cores: each takes an eighth of the batch."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compilation_cache))
    name = "distil_on_colab_tpu"
    taught = tmp_path / "one"

    def run(devices, workdir, **changed):
        small = {"EPOCHS": 1, "TEACHER_EPOCHS": 1, **changed}
        names = notebook_case.settings(name, tmp_path, monkeypatch, smoke=True, changed=small).names
        flags = [*names["FLAGS"], "--config.data.num_train=256", f"--config.cpu_devices={devices}"]
        arguments = ["--config", names["CONFIG"], "--workdir", str(workdir), *flags, "--config.plots=false"]
        done = subprocess.run([sys.executable, "-m", "gkd_jax.main", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "devices are used" not in done.stderr
        return json.loads((workdir / "metrics.jsonl").read_text()), json.loads((workdir / "summary.json").read_text())

    (one, summary), (eight, summary_of_eight) = (
        run(1, taught),
        run(8, tmp_path / "eight", TEACHER_RUN=str(taught / "teacher")),
    )
    assert (summary["device"]["count"], summary_of_eight["device"]["count"]) == (1, 8)
    np.testing.assert_allclose(eight["loss"], one["loss"], rtol=1e-4)
    for term in ("ce", "kd", "wasserstein", "gradient"):
        np.testing.assert_allclose(eight["terms"][term]["value"], one["terms"][term]["value"], rtol=1e-3)
    a, b = (gkd_jax.load(folder).variables for folder in (taught, tmp_path / "eight"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), a, b)
