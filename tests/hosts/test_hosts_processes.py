"""Two processes of one run are what one is; together they stop, fail, die and come back."""

import json
import signal
import time

import jax
import numpy as np
import pytest
import together

import gkd_jax
from gkd_jax.training import finished
from gkd_jax.training.loop import METRICS

pytestmark = pytest.mark.slow

TIMES = ("seconds", "seconds_cache", "seconds_compile", "images_per_second")
ONE_EACH = "--config.cpu_devices=1"
AT_ONCE = 20.0  # seconds in which a process ends after another one was killed, of which 3 are spent on listening


def records(workdir):
    lines = [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def hashes(workdir):
    found = summary(workdir)
    return {network: found[network]["params_sha256"] for network in ("teacher", "student")}


@pytest.fixture(scope="module")
def straight(run, folder):
    """A run by two processes of one device each."""
    results = run("straight", 2, ONE_EACH)
    assert [result.status for result in results] == [0, 0], results
    return folder / "straight", results


def test_the_first_process_alone_writes_and_speaks(straight):
    workdir, (first, second) = straight
    assert "student distilled (speck)" in first.out
    assert "student  epoch 4/4" in first.err
    assert (second.out, second.err) == ("", "")
    assert [record["epoch"] for record in records(workdir)] == [1, 2, 3, 4]
    assert summary(workdir)["device"]["processes"] == 2
    assert summary(workdir)["device"]["count"] == 2
    assert not list(workdir.rglob(".*.tmp"))


def test_two_processes_equal_one_on_as_many_devices_to_the_last_bit(straight, run_here, folder):
    result = run_here("two devices")
    assert result.status == 0, result.err
    assert hashes(straight[0]) == hashes(folder / "two devices")
    assert records(straight[0]) == records(folder / "two devices")
    ours, theirs = (summary(path) for path in (straight[0], folder / "two devices"))
    for network in ("teacher", "student"):
        assert {k: v for k, v in ours[network].items() if k not in ("seconds", "workdir")} == {
            k: v for k, v in theirs[network].items() if k not in ("seconds", "workdir")
        }


def test_two_processes_equal_one_device_with_the_whole_batch(straight, run, folder):
    """Sums over the batch, those of BatchNorm among them, are added in another order: 1e-5 of float32's 1e-7."""
    (result,) = run("one device", 1, ONE_EACH)
    assert result.status == 0, result.err
    ours, theirs = (gkd_jax.load(path).variables for path in (straight[0], folder / "one device"))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(records(straight[0]), records(folder / "one device"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["train_accuracy"] == theirs["train_accuracy"]


@pytest.mark.parametrize("victim", [0, 1])
def test_one_is_killed_and_the_run_goes_on_with_one_or_two(straight, start, run, run_here, folder, victim):
    name = f"killed {victim}"
    workdir = folder / name
    processes = start(name, 2, ONE_EACH)
    metrics = workdir / METRICS
    together.wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 1, processes)
    processes[victim].process.kill()
    killed = time.monotonic()
    left = processes[1 - victim].result(AT_ONCE)
    assert time.monotonic() - killed < AT_ONCE
    assert processes[victim].result().status == -signal.SIGKILL
    assert left.status != 0
    if victim == 1:
        assert left.status == 1
        assert "gkd_jax: process 1 of 2 is gone, the run ends; start it again to go on" in left.err
        assert "Traceback" not in left.err
    else:  # which keeps the store: JAX's own word may come first
        assert "is gone" in left.err or "cannot be reached" in left.err or "another task died" in left.err
    assert not (workdir / "summary.json").exists()
    if victim == 0:
        result = run_here(name)
        assert result.status == 0, result.err
    else:
        results = run(name, 2, ONE_EACH)
        assert [result.status for result in results] == [0, 0], results
    assert hashes(workdir) == hashes(straight[0])
    assert records(workdir) == records(straight[0])


def test_a_signal_to_one_stops_both_at_one_step(straight, start, run_here, folder):
    workdir = folder / "stopped"
    processes = start("stopped", 2, ONE_EACH)
    metrics = workdir / METRICS
    together.wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 1, processes)
    processes[1].process.send_signal(signal.SIGTERM)
    results = [process.result(60) for process in processes]
    assert [result.status for result in results] == [128 + signal.SIGTERM] * 2, results
    said = [result.err.split("gkd_jax: ")[-1].split(";")[0] for result in results]
    assert said[0] == said[1]
    assert "student: stopped by SIGTERM after step" in said[0]
    step = int(said[0].split("after step ")[1].split(",")[0])
    assert (workdir / finished.CHECKPOINTS / str(step)).is_dir()
    result = run_here("stopped")
    assert result.status == 0, result.err
    assert hashes(workdir) == hashes(straight[0])
    assert records(workdir) == records(straight[0])


def test_several_seeds_and_a_cache_that_is_not_shared(run, run_here, folder):
    """Each student on a process of its own, and the rows on the disk of each: those of the first alone are written."""
    given = ["--config.seeds=(0,1)", "--config.teacher.cache=logits", "--config.epochs=2", "--config.tensorboard=true"]
    each = [f"--config.teacher.cache_dir={folder / name}" for name in ("rows 0", "rows 1")]
    results = run("seeds", 2, ONE_EACH, *given, each=each)
    assert [result.status for result in results] == [0, 0], results
    result = run_here("seeds here", *given, f"--config.teacher.cache_dir={folder / 'rows here'}")
    assert result.status == 0, result.err
    ours, theirs = (summary(folder / name) for name in ("seeds", "seeds here"))
    for found in (ours, theirs):
        assert found["teacher_cache"]["from_disk"] == 0
    assert ours["teacher_cache"]["computed"] == theirs["teacher_cache"]["computed"]
    for seed in "01":
        assert ours["student"]["seeds"][seed]["params_sha256"] == theirs["student"]["seeds"][seed]["params_sha256"]
    assert records(folder / "seeds") == records(folder / "seeds here")
    assert list((folder / "rows 0").rglob("*.npz"))
    assert not list((folder / "rows 1").rglob("*.npz"))
    assert len(list((folder / "seeds" / "tensorboard").iterdir())) == 1


def test_processes_with_different_configurations(run, folder):
    each = ["--config.optimizer.momentum=0.9", "--config.optimizer.momentum=0.8"]
    results = run("different", 2, ONE_EACH, each=each)
    said = (
        "gkd_jax: the 2 processes of a run must be given the same: optimizer.momentum is 0.9 in process 0 and 0.8 in "
        "process 1\n"
    )
    assert [(result.status, result.err.lstrip("\n")) for result in results] == [(2, said)] * 2
    assert not (folder / "different").exists()
