"""Measures how long each method's step takes to compile, and writes its part of experiments/results/compile_times.md.

    python -m experiments.compile_times [--pair resnet56,resnet20] [--methods kd,dkd] [--repeats 2]

Each step is traced, lowered and compiled anew, at a batch of 64 CIFAR images, after one that is not counted. The
methods are gone through `--repeats` times, and the fastest time of each is told: other work only ever slows it.

Methods may take three times as long as kd; those that need a second backward pass may take longer. The exit status is 1
if another does. The file's part between two marks is replaced, once every method has a time; what stands beside it
stays. With `--methods` or another pair the table is printed and nothing is written.
"""

import argparse
import datetime
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

HERE = pathlib.Path(__file__).parent
FILE = HERE / "results" / "compile_times.md"
BEGIN, END = "<!-- measured: python -m experiments.compile_times replaces what is below -->", "<!-- measured: end -->"
LIMIT = 3.0  # times kd's
TWICE, VIEWS = "second backward pass", "two views"


def notes(objective: Mapping[str, Any]) -> str:
    """Returns what makes a method's step longer than kd's.

    Args:
      objective: resolved.

    Returns:
      `TWICE` and `VIEWS`, joined by a comma, or either, or "". A gradient in the last stage's map passes pooling and
      the classifier alone, and is none of the first kind.
    """
    from gkd_jax.objective.configuration import term_of
    from gkd_jax.outputs import Gradient

    lines = objective["terms"].values()
    asked = [need for line in lines for need in term_of(line).needs if isinstance(need, Gradient)]
    twice = any(need.at != "feature:-1" for need in asked)
    return ", ".join([TWICE] * twice + [VIEWS] * any(line["view"] != "weak" for line in lines))


def above(ratios: Mapping[str, float], said: Mapping[str, str]) -> list[str]:
    """Returns the methods that take more than `LIMIT` times kd's time and need no second backward pass.

    Args:
      ratios: each method's time over kd's.
      said: their `notes`.
    """
    return [method for method, ratio in ratios.items() if ratio > LIMIT and TWICE not in said.get(method, "")]


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


def section(
    found: Mapping[str, Mapping[str, float]], said: Mapping[str, str], pair: tuple[str, str], command: str
) -> str:
    """Returns the file's part that is measured, which names the `command` that measured it.

    Args:
      found: what `measure` returned of each method, kd among them.
      said: their `notes`.
      pair: teacher and student.
      command: as it was given.
    """
    from gkd_jax.training import summary

    device, versions = summary.device(), summary.versions()
    ratios = _ratios(found)
    rows = [
        f"| {method} | {times['trace']:.1f} | {times['compile']:.1f} | {ratios[method]:.1f} | {said[method]} |"
        for method, times in found.items()
    ]
    return "\n".join(
        [
            f"{pair[0]} to {pair[1]}, batch 64, {device['platform']} x {device['count']}, jax {versions['jax']}, "
            f"{datetime.date.today().isoformat()}: `{command}`",
            "",
            f"Limit: {LIMIT:g} times kd's, but for what needs a second backward pass. "
            f"Above it: {', '.join(above(ratios, said)) or 'none'}.",
            "",
            "| method | trace and lower (s) | compile (s) | / kd | |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def replaced(text: str, measured: str) -> str:
    """Returns a file's text with what is between its two marks replaced.

    Raises:
      ValueError: if the text has not each mark once, in order.
    """
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(f"{FILE.name} must have the lines {BEGIN!r} and {END!r} once each, in this order")
    return f"{before}{begin}\n{measured}\n\n{end}{after}"


def _ratios(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    kd = sum(found["kd"].values())
    return {method: sum(times.values()) / kd for method, times in found.items()}


def main() -> int:
    """Runs the command; returns its exit status."""
    from gkd_jax import machine, recipes
    from gkd_jax.training.resolve import resolve

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="resnet56,resnet20")
    parser.add_argument("--methods", default=None)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    whole = not given.methods and given.pair == parser.get_default("pair")
    machine.prepare()
    teacher, student = given.pair.split(",")
    methods = given.methods.split(",") if given.methods else recipes.names()
    methods = ["kd", *(name for name in methods if name not in ("kd", "alone", "label_smoothing"))]
    said = {
        method: notes(resolve(recipes.standard(teacher, student, "cifar100", method))["objective"])
        for method in methods
    }
    command = shlex.join(["python", "-m", "experiments.compile_times", *sys.argv[1:]])
    measure("kd", (teacher, student))
    found: dict[str, dict[str, float]] = {}
    for _ in range(given.repeats):
        for method in methods:
            times = measure(method, (teacher, student))
            found[method] = min(found.get(method, times), times, key=lambda each: sum(each.values()))
            told = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in times.items())
            sys.stderr.write(f"{method}: {told}\n")
        if whole:
            FILE.write_text(replaced(FILE.read_text(), section(found, said, (teacher, student), command)))
    sys.stdout.write(section(found, said, (teacher, student), command) + "\n")
    return int(bool(above(_ratios(found), said)))


if __name__ == "__main__":
    sys.exit(main())
