"""What a step starts on an accelerator that is not there."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from experiments.bench.kernels import started

ROOT = pathlib.Path(__file__).parents[2]

# As XLA writes an optimised program for a GPU: a loop of 8 turns, and in it one of 3
PROGRAM = """\
HloModule jit_f, is_scheduled=true

%fused (p: bf16[4,2]) -> bf16[4,2] {
  %p = bf16[4,2]{1,0} parameter(0)
  ROOT %neg = bf16[4,2]{1,0} negate(%p)
}

%inner (t: (s32[], f32[5])) -> (s32[], f32[5]) {
  %t = (s32[], f32[5]{0}) parameter(0)
  %x = f32[5]{0} get-tuple-element(%t), index=1
  %twice = f32[5]{0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %out = (s32[], f32[5]{0}) tuple(%x, %twice)
}

%called (q: bf16[4,2]) -> bf16[4,2] {
  %q = bf16[4,2]{1,0} parameter(0)
  ROOT %copied = bf16[4,2]{1,0} copy(%q)
}

%body (s: (s32[], bf16[4,2], f32[5])) -> (s32[], bf16[4,2], f32[5]) {
  %s = (s32[], bf16[4,2]{1,0}, /*index=2*/f32[5]{0}) parameter(0)
  %a = bf16[4,2]{1,0} get-tuple-element(%s), index=1
  %b = f32[5]{0} get-tuple-element(%s), index=2
  %c = bf16[4,2]{1,0} fusion(%a), kind=kLoop, calls=%fused
  %conv = (bf16[4,2]{1,0}, u8[1024]{0}) custom-call(%c, %a), custom_call_target="__cudnn$convForward"
  %d = bf16[4,2]{1,0} get-tuple-element(%conv), index=0
  %e = bf16[4,2]{1,0} call(%d), to_apply=%called
  %w = (s32[], f32[5]{0}) while(%b), condition=%no, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %r = (s32[], bf16[4,2]{1,0}, f32[5]{0}) tuple(%s, %e, %b)
}

ENTRY %main (m: (s32[], bf16[4,2], f32[5])) -> (s32[], bf16[4,2], f32[5]) {
  %m = (s32[], bf16[4,2]{1,0}, f32[5]{0}) parameter(0)
  ROOT %loop = (s32[], bf16[4,2]{1,0}, f32[5]{0}) while(%m), body=%body, backend_config={"known_trip_count":{"n":"8"}}
}
"""


def test_what_a_turn_starts():
    found = started(PROGRAM)
    assert found.launches == {"fusion": 1 + 3, "__cudnn$convForward": 1, "copy": 1}
    assert found.total == 6
    # %c 16 + 16, %conv 16 + 16 + 16 without its working memory, %copied 16 + 16, and three times %twice 20 + 20
    assert found.bytes == 32 + 48 + 32 + 3 * 40


def test_a_program_without_the_loop():
    with pytest.raises(ValueError, match="is no loop"):
        started("ENTRY %main (m: f32[5]) -> f32[5] {\n  ROOT %m = f32[5]{0} parameter(0)\n}")


def launches(python, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [python, "-m", "experiments.launches", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_what_to_install_is_said():
    if importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("it is installed")
    run = launches(sys.executable, "--pair", "resnet8,resnet8")
    assert run.returncode == 2
    assert "pip install -c constraints.txt -e '.[aot]'" in run.stderr
    assert "Traceback" not in run.stderr


def test_an_unknown_method():
    run = launches(sys.executable, "--pair", "resnet8,resnet8", "--method", "kdd")
    assert run.returncode == 2
    assert "kdd" in run.stderr
    assert "'kd'" in run.stderr


@pytest.fixture(scope="module")
def python():
    """A Python that compiles for what is not there."""
    if "GKD_AOT_PYTHON" not in os.environ:
        pytest.skip("nothing to compile for a GPU or TPU with; set GKD_AOT_PYTHON to a Python that has '.[aot]'")
    return os.environ["GKD_AOT_PYTHON"]


def counted(python, *arguments):
    """Returns the launches of a step."""
    run = launches(python, *arguments)
    assert run.returncode == 0, run.stderr
    cells = run.stdout.splitlines()[-1].split("|")
    assert "XLA ends" not in run.stdout, run.stderr
    return int(cells[5].replace(",", ""))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "objective", "most"),
    [
        # What the project promises a time for; most of it is launches
        ("resnet50,mobilenetv2_half", "kd", 850),
        ("resnet32x4,resnet8x4", "kd", 250),
        # Gradients of gradients; grouped products
        pytest.param("resnet20,resnet8", "full", 500, marks=pytest.mark.exhaustive),
        pytest.param("wrn_16_2,shufflenetv2", "kd", 1500, marks=pytest.mark.exhaustive),
    ],
)
def test_a_step_compiles_for_a_gpu_that_is_not_there(python, pair, objective, most):
    assert 100 < counted(python, "--pair", pair, "--objective", objective) <= most


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_step_compiles_for_a_tpu_that_is_not_there(python):
    assert counted(python, "--target", "v5e", "--pair", "resnet8,resnet8_eighth", "--objective", "kd+gm") > 100
