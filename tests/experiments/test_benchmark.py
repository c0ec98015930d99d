"""What the benchmark reports, and that it runs."""

import json
import pathlib
import subprocess
import sys
import types

import pytest

from experiments import accelerator, benchmark
from experiments.bench import compare, report, work
from experiments.bench import ours as our_side
from experiments.bench.protocol import OBJECTIVES
from gkd_jax.errors import UserError

READY = {"compile_seconds": 3.0, "dtype": "float32", "device": "cpu", "config": {}}
COUNTED = {"peak_bytes": 10**9, "flops": 4e9, "bytes": 1e9, "ops_per_step": 12, "evaluation_seconds": 2.5}


def test_ratio_pairs_windows_that_were_next_to_each_other():
    # A machine that became half as fast in the third window slowed both sides of it
    assert report.ratio([100, 110, 50], [50, 50, 25]) == 2.0


def peers(ours, rates):
    return {
        name: {"unsupported": "no"} if theirs is None else {"name": name, "ratio": report.ratio(ours, theirs)}
        for name, theirs in rates.items()
    }


def test_what_ours_is_compared_with():
    """Three windows by hand; the second of ours was slow, and that of its neighbours with it."""
    ours = [100, 80, 120]
    rates = {
        "eager": [50, 40, 40],  # 2, 2, 3: 2, where the medians' ratio would be 2.5
        "channels_last": [40, 50, 30],  # 2.5, 1.6, 4: 2.5
        "compiled": None,
        "bf16": [80, 100, 100],  # 1.25, 0.8, 1.2: 1.2
        "bf16, channels_last": [50, 160, 90],  # 2, 0.5, 1.33
    }
    found = report.verdict(peers(ours, rates), benchmark.FIELD)
    assert (found["better_layout"], found["ratio"], found["peer"]["name"]) == ("eager", 2.0, "eager")
    assert (found["fastest"], found["ratio_fastest"]) == ("bf16", 1.2)
    # The other layout, now the faster one of the field's, is the fastest of all
    other = rates | {"channels_last": [100, 80, 100], "bf16": None}  # 1, 1, 1.2
    found = report.verdict(peers(ours, other), benchmark.FIELD)
    assert (found["better_layout"], found["ratio"], found["peer"]["name"]) == ("channels_last", 1.0, "channels_last")
    assert (found["fastest"], found["ratio_fastest"]) == ("channels_last", 1.0)
    assert report.verdict(peers(ours, {"eager": None}), benchmark.FIELD) == report.verdict({}, benchmark.FIELD) == {}


# Steps a second: those that a window's length is chosen by, then three windows
SPEEDS = {
    "ours": [10, 10, 8, 12],
    "eager": [5, 5, 4, 4],
    "channels_last": [4, 4, 5, 3],
    "bf16": [8, 8, 10, 10],
    "bf16, channels_last": [5, 5, 16, 9],
}


class Process:
    """A benchmarked process that only says that it worked; its standard input and output are itself."""

    def __init__(self, command, **_):
        self.stdin = self.stdout = self
        self._ours = command[-1] == "experiments.bench.ours"

    def write(self, line):
        request = json.loads(line)
        if "pair" in request:
            setting = request.get("setting")
            name = "ours" if self._ours else next(n for n, known in benchmark.SETTINGS.items() if known == setting)
            self._speeds = iter(SPEEDS.get(name, ()))
            ready = READY | {"devices": 2, "seed_strategy": "unroll", "fill": None}
            self._answer = ready if name in SPEEDS else {"unsupported": "no"}
        elif "steps" in request:
            self._answer = {"steps": request["steps"], "seconds": request["steps"] / next(self._speeds)}
        else:
            self._answer = COUNTED

    def readline(self):
        return json.dumps(self._answer)

    def close(self):
        pass

    def wait(self):
        pass


def test_the_file_says_what_was_compared_and_how(monkeypatch, tmp_path):
    """Of windows by hand, in which ours, of two students, sees twice the images of a step."""
    rates = {"platform": "cpu", "rates": {"bytes_per_second": 1e9, "flops_per_second": 1e10}}
    monkeypatch.setattr(benchmark, "_rates", lambda dtype: rates)
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(compare, "subprocess", types.SimpleNamespace(Popen=Process, PIPE=None))
    monkeypatch.setattr(compare, "_PAUSE", 0.0)
    file = tmp_path / "figures.json"
    assert benchmark.main(["--batch", "10", "--seeds", "2", "--repeats", "3", "--json", str(file), "--dry"]) == 0
    found = json.loads(file.read_text())
    top = {"ratio", "ratio_fastest", "ours", "peer", "device", "versions", "date", "command"}
    assert top - found.keys() == set()
    for side in ("ours", "peer"):
        assert {"images_per_second", "spread", "compile_seconds", "peak_bytes"} - found[side].keys() == set()
    assert (found["ours"]["images_per_second"], found["ours"]["spread"]) == (200, [160, 240])
    # 200 / 50, 160 / 40, 240 / 40 are 4 in the middle, over channels_last 5, 3.2, 8; over bf16 2.5, 1.6, 2.4
    assert (found["better_layout"], found["ratio"]) == ("eager", pytest.approx(4))
    assert (found["peer"]["images_per_second"], found["peer"]["spread"]) == (40, [40, 50])
    assert (found["fastest"], found["ratio_fastest"]) == ("bf16", pytest.approx(2.4))
    assert found["peers"]["compiled"] == {"unsupported": "no"}


PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused_add (p.1: f32[64,16]) -> f32[64,16] {
  %p.1 = f32[64,16]{1,0} parameter(0)
  ROOT %add.1 = f32[64,16]{1,0} add(%p.1, %p.1)
}

ENTRY %main {
  %images = bf16[8,8,8,4]{3,2,1,0} parameter(0), metadata={op_name="x(y)"}
  %kernel.2 = bf16[3,3,4,4]{3,2,1,0} parameter(1)
  %conv.1 = (bf16[8,8,8,4]{3,2,1,0}, /*index=1*/u8[9]{0}) custom-call(%images, %kernel.2), custom_call_target="conv"
  %get = bf16[8,8,8,4]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %a = f32[8,4]{1,0} parameter(2)
  ROOT %dot = f32[8,8]{1,0} custom-call(f32[8,4]{1,0} %a, f32[8,4]{1,0} %a), custom_call_target="gemm"
}
"""


def test_the_bytes_of_library_calls_are_counted():
    """Those of a convolution and of a product, whose operands stand with and without their types."""
    conv = 2 * 8 * 8 * 8 * 4 * 2 + 3 * 3 * 4 * 4 * 2  # images and result, kernel
    assert work.library_bytes(PROGRAM) == conv + 1 + (2 * 8 * 4 + 8 * 8) * 4 + 1


@pytest.mark.slow
def test_the_operations_of_a_step_are_counted_by_another_process():
    """Of resnet8 in images of 32 x 32: 12.5 million multiply-adds, three times that with the pass back."""
    setup = vars(benchmark.arguments(["--pair", "resnet8,resnet8", "--cache", "logits", "--batch", "4"]))
    setup = benchmark._setup(types.SimpleNamespace(**setup))
    forward = 2 * 4 * 12.5e6
    found = work.flops(setup)
    assert 2.7 * forward < found < 3.3 * forward
    assert work.flops(setup, devices=2) == found / 2
    assert work.flops(setup | {"objective": "none"}) is None


def test_how_a_cache_is_filled():
    """Of 162 views of 50,000 images in batches of 128."""
    whole = {"views": 162 * 50_000, "per_epoch": 781 * 64, "seeds": 1, "batch": 128}
    # One epoch asks for each of its 49,984 views once: 390.5 batches
    assert our_side.fill(**whole, epochs=1) == ("by epoch", 391 * 128)
    # 240 epochs see 77 % of the views, and half a batch is padding in each
    how, forwards = our_side.fill(**whole, epochs=240)
    seen = 162 * 50_000 * (1 - (1 - 49_984 / 8_100_000) ** 240)
    assert (how, forwards) == ("by epoch", pytest.approx(seen + 240 * 64, rel=1e-3))
    # In ten times as many all are seen, so that the padding alone differs: 63,281.25 batches
    assert our_side.fill(**whole, epochs=2400) == ("up front", 63_282 * 128)


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


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("solver", ["ott", "unrolled"])
def test_the_solver_of_wasserstein_is_named(objective, solver):
    found = figures()
    found["setup"] = found["setup"] | {"objective": objective, "solver": solver}
    first = report.table(found).splitlines()[0]
    if objective in ("kd", "kd+cg", "kd+gm"):
        assert "olver" not in first
    else:
        assert first.endswith(f", batch 64; Sinkhorn's solver: {solver}")
        found["peers"] = {"eager": {"unsupported": "no"}}
        assert report.table(found).splitlines()[0].endswith(f": {solver}, the peer's a loop in PyTorch")


def test_a_trial_that_failed_is_a_line_of_the_table():
    trial = accelerator.Trial("x", "", 5.0)
    assert accelerator.row(trial, {"failed": "exit status 1"}).startswith("| x | exit status 1 |")
    found = figures(ratio=4.5) | {"setup": {"seeds": 2}}
    # 2 x 240 x 50,000 images at 120 a second, 240 evaluations of 2.5 s and 3 s of compilation
    assert "| 3343.38 | 5.0 | 4.50 | " in accelerator.row(trial, found)
    found["fill"] = {"seconds": 90.0}
    assert "| 3343.38 + 1.5 fill | 5.0 | 4.50 | " in accelerator.row(trial, found)
    names = [trial.name for trial in accelerator.TRIALS]
    assert len({*names}) == len(names)


def test_what_terms_add_to_a_step():
    def at(rate):
        return {"ours": {"images_per_second": rate}}

    # Of times a step, 1 / 1,000 is 1.1 of 1 / 1,100, and 1 / 880 is 1.25 of it
    found = {"small-kd": at(1100.0), "small-w": at(1000.0), "small-cg": at(880.0)}
    assert accelerator.additions(found) == [
        "Wasserstein: +10.0 % of the time of a KD step (small-w over small-kd); promised: 10 % at most.",
        "Classifier gradients: +25.0 % of the time of a KD step (small-cg over small-kd); promised: 5 % at most.",
    ]
    assert len(accelerator.additions(found | {"small-w": {"failed": "exit status 1"}})) == 1
    assert accelerator.additions({"small-w": at(1.0)}) == []
    trials = {trial.name: trial.arguments for trial in accelerator.TRIALS}
    for each, objective in zip(accelerator.ADDITIONS, ("kd+w", "kd+cg"), strict=True):
        assert trials[each.more].startswith(f"--pair resnet50,mobilenetv2_half --objective {objective} ")
        assert trials[each.base].startswith("--pair resnet50,mobilenetv2_half --objective kd ")
        assert "--cache" not in trials[each.base] + trials[each.more]


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
    assert found["ours"]["evaluation_seconds"] > 0
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
