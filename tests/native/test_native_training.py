"""A run on one CPU device, whose convolutions are kernels of our own, from the command line."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from gkd_jax import native

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
    *("--config.student.model=resnet8_eighth", "--config.teacher.model=resnet8"),
    *("--config.epochs=2", "--config.teacher.epochs=1", "--config.compare_alone=false", "--config.data.num_train=320"),
    *("--config.objective.terms.wasserstein.solver=unrolled", "--config.plots=false", "--config.tensorboard=false"),
]


@pytest.fixture
def trained(tmp_path, compilation_cache):
    """Returns a function that trains in a process of its own and returns its summary and the losses of its epochs."""

    def train(name, **variables):
        env = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", native.SWITCH)}
        env |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(compilation_cache), **variables}
        command = [sys.executable, "-m", "gkd_jax.main", "--config", str(ROOT / "configs" / "digits.py"), *SMALL]
        done = subprocess.run(
            [*command, f"--workdir={tmp_path / name}"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return json.loads((tmp_path / name / "summary.json").read_text()), [record["loss"] for record in records]

    return train


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
def test_a_run_with_kernels_of_our_own(trained):
    ours, losses = trained("ours")
    again, _ = trained("again")
    theirs, others = trained("theirs", GKD_JAX_NATIVE="off", JAX_NUM_CPU_DEVICES="1")
    assert ours["device"]["convolutions"] == "native"
    assert theirs["device"]["convolutions"] == "cpu"
    for part in ("teacher", "student"):
        assert ours[part]["params_sha256"] == again[part]["params_sha256"]  # however threads shared the work
        assert ours[part]["params_sha256"] != theirs[part]["params_sha256"]
    assert losses == pytest.approx(others, rel=1e-3)
