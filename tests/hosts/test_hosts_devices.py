"""One process on other numbers of devices: what goes on there, what cannot be shared among them, what is said."""

import json

import helpers
import jax
import numpy as np
import pytest

import gkd_jax
from gkd_jax import command, hosts
from gkd_jax.errors import UserError
from gkd_jax.training import experiment, sharing
from gkd_jax.training.loop import METRICS
from gkd_jax.training.resolve import resolve
from gkd_jax.training.stop import Interrupted

ALONE = ["--config.teacher.model=none", "--config.objective.terms.kd.weight=0", "--config.epochs=1"]


@pytest.fixture
def whole(start, run_here, folder):
    """A run on the two devices of the tests' own process."""
    result = run_here("whole")
    assert result.status == 0, result.err
    return folder / "whole"


def stopped(folder, name):
    """Begins the same run here, and stops it within the student's second epoch."""
    given = resolve(command.parse(["gkd_jax", f"--config={folder / 'several.py'}"]).config)
    with pytest.raises(Interrupted) as caught:
        experiment.run(given, folder / name, helpers.StopAt(10))
    assert str(caught.value).startswith("student: stopped by SIGTERM after step 7, which is saved")


def assert_alike(ours, theirs):
    """Compares two runs to 1e-5: sums over the batch are added in another order, and float32 has 1e-7."""
    for x, y in zip(*(jax.tree.leaves(gkd_jax.load(path).variables) for path in (ours, theirs)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)
    records = [[json.loads(line) for line in (path / METRICS).read_text().splitlines()] for path in (ours, theirs)]
    assert [record["step"] for record in records[0]] == [4, 8, 12, 16]
    for a, b in zip(*records, strict=True):
        assert (a["step"], a["train_accuracy"], a["val_accuracy"]) == (
            b["step"],
            b["train_accuracy"],
            b["val_accuracy"],
        )
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


@pytest.mark.slow
def test_a_run_of_two_devices_goes_on_with_one(whole, run, folder):
    stopped(folder, "two, one")
    (result,) = run("two, one", 1, "--config.cpu_devices=1")  # where there is no second device
    assert result.status == 0, result.err
    assert_alike(folder / "two, one", whole)


@pytest.mark.slow
def test_a_run_of_one_device_goes_on_with_two(whole, run_here, folder, monkeypatch):
    first = jax.devices()[:1]
    with monkeypatch.context() as patched:
        patched.setattr(jax, "devices", lambda *_: first)
        stopped(folder, "one, two")
    result = run_here("one, two")
    assert result.status == 0, result.err
    assert "devices are used" not in result.err
    assert_alike(folder / "one, two", whole)


@pytest.mark.parametrize(
    ("seeds", "batch", "devices", "said"),
    [
        (2, 15, 2, None),
        (4, 16, 2, None),
        (2, 6, 4, None),
        (2, 7, 4, "batch_size is 7, which the 4 devices, 2 for each of 2 groups of seeds cannot share evenly; it must"),
        (3, 16, 1, None),
        (
            3,
            16,
            2,
            "seed_strategy is 'shard', but the 2 devices cannot share 3 seeds evenly; a multiple of 2 seeds can",
        ),
        (2, 16, 3, "the 3 devices cannot share 2 seeds"),
        (6, 16, 4, "the 4 devices cannot share 6 seeds"),
    ],
)
def test_seeds_that_are_to_be_sharded(seeds, batch, devices, said):
    given = {"seeds": list(range(seeds)), "batch_size": batch, "seed_strategy": "shard"}
    sharing.check_shared({**given, "seed_strategy": "auto"}, devices)  # which may leave devices idle
    if said is None:
        sharing.check_shared(given, devices)
        return
    with pytest.raises(UserError, match=said):
        sharing.check_shared(given, devices)


def test_seeds_that_are_to_be_sharded_by_several_processes(monkeypatch):
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "count", lambda: 2)
    given = {"seeds": [0, 1, 2], "batch_size": 16, "seed_strategy": "shard"}
    with pytest.raises(UserError, match="the 2 devices of 2 processes cannot share 3 seeds evenly"):
        sharing.check_shared(given, 2)
    sharing.check_shared({**given, "seed_strategy": "auto"}, 2)
    sharing.check_shared({**given, "seeds": [0, 1]}, 2)


def test_it_is_said_by_the_command(start, run_here, folder):
    given = [*ALONE, "--config.seeds=(0,1,2)"]
    result = run_here("uneven", *given, "--config.seed_strategy=shard")
    assert (result.status, result.out) == (2, "")
    assert result.err == (
        "gkd_jax: seed_strategy is 'shard', but the 2 devices cannot share 3 seeds evenly; a multiple of 2 seeds can "
        "be shared, and 'auto' chooses another way\n"
    )
    assert not (folder / "uneven" / METRICS).exists()


def test_where_the_images_are_is_said_with_the_reason(start, run_here):
    result = run_here("said", *ALONE)
    assert result.status == 0, result.err
    reason = "speck: images on the device: the images take 0.00 GB; of the host's memory, which the device shares, "
    assert result.err.count(reason) == 1
    again = run_here("said", *ALONE)
    assert (again.status, again.err) == (0, "")  # nothing was left to do
