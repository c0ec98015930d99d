"""A run watched from a notebook's process: interrupted, killed, orphaned, and gone on with."""

import _thread
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import helpers
import numpy as np
import pytest

from gkd_jax import notebook
from gkd_jax.errors import UserError
from gkd_jax.notebook import runs
from gkd_jax.training import workdir as workdirs

pytest.importorskip("IPython")

pytestmark = pytest.mark.slow

CONFIG = '''
"""Two linear networks on noise: they compile at once."""

import flax.linen as nn

from gkd_jax import config, models, objective


class Small(nn.Module):
    num_classes: int
    compute: models.Compute

    @nn.compact
    def __call__(self, images, *, train, probes):
        taps = models.Taps(probes)
        return models.classify(taps(images.reshape(images.shape[0], 1, 1, -1)), taps, self.num_classes)


@models.register("small")
def small(num_classes, dtype, conv):
    return Small(num_classes, models.Compute(dtype, conv))


def get_config():
    c = config.default()
    c.data.source = "npz:images.npz"
    c.data.val_fraction = 0.2
    c.data.pad, c.data.flip = 1, False
    c.tensorboard = c.plots = False
    c.epochs, c.batch_size, c.teacher.epochs, c.teacher.batch_size = 80, 16, 2, 16
    c.teacher.model = c.student.model = "small"
    c.objective.terms.kd = objective.block("kd", weight=1.0)
    return c
'''


@pytest.fixture
def folder(tmp_path, monkeypatch, compilation_cache):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compilation_cache))
    np.savez("images.npz", **helpers.images())
    pathlib.Path("small.py").write_text(CONFIG)
    return tmp_path / "run"


def _epochs(folder):
    return [record["epoch"] for record in runs.records(folder)]


def _once(condition, act, seconds=120.0):
    """Starts a thread that acts as soon as a condition holds."""

    def watch():
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return act()
            time.sleep(0.02)
        return None

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_interrupted_then_killed_then_finished(folder, capsys, monkeypatch):
    started = []
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(start(*a, **k)) or started[-1])

    interrupt = _once(lambda: len(_epochs(folder)) >= 2, _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        notebook.train("small.py", folder, every=0.2)
    interrupt.join()
    assert started[0].wait() == 128 + signal.SIGINT  # saved
    assert "waiting until the run is saved" in capsys.readouterr().err
    first = runs.records(folder)
    assert 2 <= len(first) < 80
    teacher = (folder / "teacher" / "metrics.jsonl").read_bytes()

    kill = _once(lambda: len(_epochs(folder)) > len(first), lambda: started[-1].kill())
    with pytest.raises(UserError, match="ended by SIGKILL, .* run this cell again to go on"):
        notebook.train("small.py", folder, every=0.2)
    kill.join()
    second = runs.records(folder)
    assert second[: len(first)] == first

    summary = notebook.train("small.py", folder, every=0.2)
    assert _epochs(folder) == list(range(1, 81))
    assert runs.records(folder)[: len(first)] == first
    assert (folder / "teacher" / "metrics.jsonl").read_bytes() == teacher  # not trained again
    out = capsys.readouterr().out
    assert "student distilled (small)" in out
    assert "epoch 80/80" in out
    before = helpers.contents(folder / "checkpoints")

    assert notebook.train("small.py", folder) == summary == json.loads((folder / "summary.json").read_text())
    assert helpers.contents(folder / "checkpoints") == before
    assert "finished" in capsys.readouterr().out

    with pytest.raises(UserError, match="belongs to a run of another configuration"):
        notebook.train("small.py", folder, "--config.seed=5")


def test_an_interruption_that_a_picture_swallows_is_not_lost(folder, monkeypatch):
    plot = runs.plots.plot_losses

    def swallowing(*arguments):
        with contextlib.suppress(KeyboardInterrupt):
            _thread.interrupt_main()
            time.sleep(60)
        return plot(*arguments)

    monkeypatch.setattr(runs.plots, "plot_losses", swallowing)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        notebook.train("small.py", folder, "--config.epochs=200", every=0.2)
    assert signal.getsignal(signal.SIGINT) is before
    assert not workdirs.held(folder)


def test_a_run_does_not_outlive_its_notebook(folder):
    code = f"from gkd_jax import notebook; notebook.train('small.py', {str(folder)!r}, '--config.epochs=100000')"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        thread = _once(lambda: len(_epochs(folder)) >= 2 and workdirs.held(folder), parent.kill)
        assert parent.wait(timeout=120) == -signal.SIGKILL
        thread.join()
        end = time.monotonic() + 60
        while workdirs.held(folder) and time.monotonic() < end:
            time.sleep(0.1)
        assert not workdirs.held(folder)
    finally:
        parent.kill()
    latest = max(int(name) for name in os.listdir(folder / "checkpoints") if name.isdigit())
    assert latest >= runs.records(folder)[-1]["step"]  # saved where it was stopped
