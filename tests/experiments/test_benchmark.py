"""What the benchmark reports, and that it runs."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments import accelerator, benchmark
from experiments.bench import report
from gkd_jax.errors import UserError

READY = {"compile_seconds": 3.0, "dtype": "float32", "device": "cpu", "config": {}}
COUNTED = {"peak_bytes": 10**9, "flops": 4e9, "bytes": 1e9, "ops_per_step": 12}


def test_ratio_pairs_windows_that_were_next_to_each_other():
    # A machine that became half as fast in the third window slowed both sides of it
    assert report.ratio([100, 110, 50], [50, 50, 25]) == 2.0


def test_side_is_the_median_with_its_range():
    found = report.side([3.0, 1.0, 2.0], READY, COUNTED)
    assert found["images_per_second"] == 2.0
    assert found["spread"] == [1.0, 3.0]
    assert found["dtype"] == "float32"
    assert "config" not in found


def test_roofline_is_the_slower_of_the_two_rates():
    ours = report.side([100.0], READY, COUNTED)
    by_bytes = report.roofline(ours, 64, bytes_per_second=1e9, flops_per_second=1e12)
    assert by_bytes["images_per_second"] == pytest.approx(64)  # one second a step
    by_flops = report.roofline(ours, 64, bytes_per_second=1e12, flops_per_second=2e9)
    assert by_flops["images_per_second"] == pytest.approx(32)
    assert by_flops["share"] == pytest.approx(100 / 32)


def test_a_whole_run_has_its_fill_in_it():
    found = report.whole_run(1000.0, {"seconds": 500.0}, epochs=2, seeds=5)
    assert found["seconds"] == pytest.approx(2 * 50_000 * 5 / 1000 + 500)
    assert found["images_per_second"] == pytest.approx(500_000 / 1000.0)


def figures(**more):
    ours = report.side([120.0], READY, COUNTED)
    return {
        "setup": {
            "pair": ["a", "b"], "objective": "kd", "cache": "logits", "batch": 64, "student_only": False, "seeds": 1,
        },
        "device": "cpu x 2", "date": "2026-01-01", "command": "python -m experiments.benchmark",
        "ours": ours, "peers": {}, "roofline": report.roofline(ours, 64, 1e9, 1e10), **more,
    }  # fmt: skip


def test_the_table_says_what_was_extrapolated_and_what_is_not_supported():
    fill = {"how": "by epoch", "forwards": 8100, "images_per_second": 10.0, "seconds": 810.0, "extrapolated": True}
    peers = {
        "eager": {**report.side([60.0], READY, COUNTED), "ratio": 2.0},
        "compiled": {"unsupported": "no double backward"},
    }
    text = report.table(
        figures(fill=fill, whole_run={"epochs": 240, "images_per_second": 99.0, "seconds": 1.0}, peers=peers)
        | {"ratio": 2.0, "fastest": "eager", "ratio_fastest": 2.0}
    )
    assert "### a to b, kd, cache logits, batch 64\n" in text
    assert "extrapolated from a measured part" in text
    assert "| PyTorch, compiled | not supported: no double backward |" in text
    assert "Ours / the field's loop in its better layout: 2.00" in text
    assert "Ours" not in report.table(figures())


def test_a_trial_that_failed_is_a_line_of_the_table():
    trial = accelerator.Trial("x", "", 5.0)
    assert accelerator.row(trial, {"failed": "exit status 1"}).startswith("| x | exit status 1 |")
    found = figures(ratio=4.5) | {"setup": {"seeds": 2}}
    # 2 x 240 x 50,000 images at 120 a second and 3 s of compilation
    assert "| 3333.38 | 5.0 | 4.50 | " in accelerator.row(trial, found)
    names = [trial.name for trial in accelerator.TRIALS]
    assert len({*names}) == len(names)


def test_without_pytorch_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    assert benchmark.main([]) == 2
    assert "pip install -e '.[bench]'" in capsys.readouterr().err


@pytest.mark.slow
def test_our_side_is_measured_from_a_filled_cache(tmp_path, compilation_cache):
    file = tmp_path / "figures.json"
    flags = [
        *("--pair", "resnet8,resnet8", "--cache", "logits", "--peer", "none", "--batch", "16", "--images", "64"),
        *("--repeats", "2", "--seconds", "0.2", "--json", str(file), "--dry"),
        *("--compilation_cache", str(compilation_cache)),
    ]
    root = pathlib.Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", *flags], cwd=root, capture_output=True, text=True, check=True
    )
    found = json.loads(file.read_text())
    assert found["ours"]["images_per_second"] > 0
    assert found["fill"]["extrapolated"]
    assert found["whole_run"]["images_per_second"] < found["ours"]["images_per_second"]
    assert 0 < found["roofline"]["share"] < 2
    assert "resnet8 to resnet8" in ended.stdout


def test_what_needs_an_accelerator_says_so():
    assert accelerator.platform() == "cpu"
    with pytest.raises(UserError, match="there is no accelerator here"):
        accelerator.execute([])
    with pytest.raises(UserError, match="unknown trial .small-kdd. .*small-kd"):
        accelerator.execute(["--only", "small-kdd"])
    with pytest.raises(UserError, match="--minute"):
        accelerator.execute(["--minute", "3"])


def test_the_time_that_is_left_is_kept_to(monkeypatch, tmp_path):
    """Nothing is begun that has not a minute; what ran is in the table."""
    clock = iter([0.0, 0.0, 30.0, 61.0])
    ran = []

    def run(trial, seconds, torch, extra):
        ran.append((trial.name, seconds, extra))
        return {"failed": "exit status 1"}

    monkeypatch.setattr(accelerator, "FOLDER", tmp_path)
    monkeypatch.setattr(accelerator, "run", run)
    monkeypatch.setattr(accelerator.time, "monotonic", lambda: next(clock))
    table = accelerator.execute(["--rehearse", "--minutes", "2", "--extra", "--batch 8"])
    first, second, *_ = accelerator.TRIALS
    assert ran == [(first.name, 120.0, ["--batch", "8"]), (second.name, 90.0, ["--batch", "8"])]
    assert table.count("exit status 1") == 2
    assert (tmp_path / "table.md").read_text() == f"{table}\n"
