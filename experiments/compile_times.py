"""Measures how long each method's step takes to compile, and writes experiments/results/compile_times.md.

    python -m experiments.compile_times [--pair resnet56,resnet20] [--methods kd,dkd] [--repeats 2]

Each step is traced, lowered and compiled anew, at a batch of 64 CIFAR images, after one that is not counted. The
methods are gone through `--repeats` times, and the fastest time of each is told: other work only ever slows it.
"""

import argparse
import datetime
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping

HERE = pathlib.Path(__file__).parent
FILE = HERE / "results" / "compile_times.md"
_TWICE = dict.fromkeys(
    ("input_grad", "feature_grad", "jacobian", "sobolev", "lwm", "gompertz_cnn"), "second backward pass"
)
NOTES = {**_TWICE, "mlkd": "two views", "mlkd_ls": "two views"}


def measure(method: str, pair: tuple[str, str]) -> dict[str, float]:
    """Returns the seconds that tracing and lowering, and compiling, a method's step take."""
    from experiments import synthetic
    from gkd_jax import recipes
    from gkd_jax.training.program import Program
    from gkd_jax.training.resolve import resolve

    resolved = resolve(recipes.standard(*pair, "cifar100", method))
    program = Program(synthetic.job(resolved, pair[0], images=640, classes=100))
    state, frozen = program.initial()
    plan, fixed = program.plan(0), program.fixed(frozen)
    start = time.perf_counter()
    lowered = program.jitted_step_at(0).lower(state, plan, fixed)
    traced = time.perf_counter()
    lowered.compile()
    return {"trace": traced - start, "compile": time.perf_counter() - traced}


def table(found: Mapping[str, Mapping[str, float]], pair: tuple[str, str], command: str) -> str:
    """Returns the file's text, which names the `command` that measured it."""
    from gkd_jax.training import summary

    device, versions = summary.device(), summary.versions()
    kd = sum(found["kd"].values())
    rows = []
    for method, times in found.items():
        parts = f"{times['trace']:.1f} | {times['compile']:.1f} | {sum(times.values()) / kd:.1f}"
        rows.append(f"| {method} | {parts} | {NOTES.get(method, '')} |")
    return "\n".join(
        [
            "# How long each method's step takes to compile",
            "",
            f"{pair[0]} to {pair[1]}, batch 64, {device['platform']} x {device['count']}, jax {versions['jax']}, "
            f"{datetime.date.today().isoformat()}: `{command}`",
            "",
            "| method | trace and lower (s) | compile (s) | / kd | |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Runs the command."""
    from gkd_jax import machine, recipes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="resnet56,resnet20")
    parser.add_argument("--methods", default=None)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    machine.prepare()
    teacher, student = given.pair.split(",")
    methods = given.methods.split(",") if given.methods else recipes.names()
    methods = ["kd", *(name for name in methods if name not in ("kd", "alone", "label_smoothing"))]
    command = shlex.join(["python", "-m", "experiments.compile_times", *sys.argv[1:]])
    measure("kd", (teacher, student))
    found: dict[str, dict[str, float]] = {}
    for _ in range(given.repeats):
        for method in methods:
            times = measure(method, (teacher, student))
            found[method] = min(found.get(method, times), times, key=lambda each: sum(each.values()))
            told = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in times.items())
            sys.stderr.write(f"{method}: {told}\n")
            FILE.write_text(table(found, (teacher, student), command))


if __name__ == "__main__":
    main()
