"""What a training step starts on an accelerator, counted where there is none: XLA compiles for a device that is absent.

python -m experiments.launches [--target h200|v5e] [--pair TEACHER,STUDENT --objective kd --cache none]
python -m experiments.launches [--target h200|v5e] --pair TEACHER,STUDENT --method METHOD,METHOD|all

A step of small maps is mostly launches: the kernels that a GPU starts one after the other, some microseconds each
however little they do. This counts them, and the bytes that they read and write, in the step that a run in bfloat16
would take on one device, and finds out whether XLA compiles it at all. Nothing runs, so nothing is a time; what XLA
finds out on a device by trying is left to its default. Without --pair it counts what the project promises a time for
and every method, and writes experiments/results/launches-TARGET.md.

It needs what compiles for the target, and no device, in an environment of its own, since JAX would look for one:

    pip install -c constraints.txt -e '.[aot]'
"""

import argparse
import concurrent.futures
import datetime
import multiprocessing
import pathlib
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from experiments.bench.absent import STEPS, TARGETS, compiled
from experiments.bench.kernels import started
from experiments.bench.protocol import OBJECTIVES
from gkd_jax.arguments import Parser, status
from gkd_jax.config import CACHES, NO_CACHE, NO_TEACHER
from gkd_jax.errors import unknown

RESULTS = pathlib.Path(__file__).parent / "results"
_SMALL, _WIDE, _METHODS = "resnet50,mobilenetv2_half", "resnet32x4,resnet8x4", "resnet56,resnet20"
_HEAD = (
    "| pair | objective or method | cache | students | launches a step | calls of libraries | GB a step | memory (MB) |"
)


class Case(NamedTuple):
    """One step.

    Attributes:
      pair: teacher and student, with a comma.
      what: an objective of `experiments.benchmark`, or a method.
      cache: of the teacher, with an objective.
      students: that train together, with an objective.
      batch: images of each, with an objective.
    """

    pair: str
    what: str
    cache: str = NO_CACHE
    students: int = 1
    batch: int = 64


PROMISED = (
    Case(_SMALL, "kd"),
    Case(_SMALL, "kd", "logits"),
    Case(_SMALL, "kd+w"),
    Case(_SMALL, "kd+cg"),
    Case(_SMALL, "kd+w+cg"),
    Case(_SMALL, "kd+gm"),
    Case(_SMALL, "kd", "logits", 8),
    Case(_WIDE, "kd"),
    Case(_METHODS, "full"),
)


def row(case: Case, target: str) -> str:
    """Returns a line of the table.

    Raises:
      UserError: if XLA cannot compile for the target here.
    """
    program = compiled(_configuration(case), target)
    found = started(program.text)
    libraries = sum(number for kind, number in found.launches.items() if kind.startswith("__"))
    return f"{_begun(case)} {found.total:,} | {libraries} | {found.bytes / 1e9:.2f} | {program.temporary / 1e6:,.0f} |"


def _begun(case: Case) -> str:
    return f"| {case.pair.replace(',', ' to ')} | {case.what} | {case.cache} | {case.students} |"


def _configuration(case: Case) -> dict[str, Any]:
    import jax

    jax.config.update("jax_platforms", "cpu")  # or JAX would look for what it has a plugin for
    from experiments.bench.ours import configuration
    from gkd_jax import recipes
    from gkd_jax.training.resolve import resolve

    if case.what not in OBJECTIVES:
        given = recipes.standard(*case.pair.split(","), "cifar100", case.what)
        given.dtype, given.steps_per_call = "bfloat16", STEPS
        return resolve(given)
    return configuration(
        {
            "pair": case.pair.split(","),
            "objective": case.what,
            "batch": case.batch,
            "cache": case.cache,
            "student_only": False,
            "seeds": case.students,
            "seed_strategy": "auto",
            "solver": "unrolled",
            "dtype": "bfloat16",
            "steps_per_call": STEPS,
            "epochs": 240,
        }
    )


def _apart(case: Case, target: str) -> str:
    """Returns a line by a process of its own: XLA ends one that it cannot compile in."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(row, case, target).result()
        except BrokenProcessPool:
            return f"{_begun(case)} XLA ends the process | | | |"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m experiments.launches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--target", default="h200", choices=TARGETS)
    parser.add_argument("--pair", default=None)
    parser.add_argument("--objective", default="kd", choices=OBJECTIVES)
    parser.add_argument("--cache", default=NO_CACHE, choices=CACHES)
    parser.add_argument("--students", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--method", default=None)
    return parser


def execute(argv: Sequence[str]) -> str:
    """Counts what was asked for, and returns the table.

    Raises:
      UserError: if XLA cannot compile for the target here, or there is no such method.
    """
    import jax

    from gkd_jax import recipes

    given = _parser().parse_args(argv)
    standard = {name: recipes.standard(*_METHODS.split(","), "cifar100", name) for name in recipes.names()}
    known = [name for name, config in standard.items() if config.teacher.model != NO_TEACHER]
    names = known if given.method in (None, "all") else given.method.split(",")
    for name in names:
        if name not in known:
            raise unknown("method", name, known)
    methods = [Case(given.pair or _METHODS, name) for name in names]
    if given.pair and not given.method:
        methods = [Case(given.pair, given.objective, given.cache, given.students, given.batch)]
    lines = [_HEAD, "|---|---|---|---|---|---|---|---|"]
    for case in methods if given.pair else (*PROMISED, *methods):
        lines.append(_apart(case, given.target))
        sys.stderr.write(lines[-1] + "\n")
    text = "\n".join(lines)
    if not given.pair:
        command = shlex.join(["python", "-m", "experiments.launches", *argv])
        said = f"bfloat16, jax {jax.__version__}, {datetime.date.today().isoformat()}: `{command}`"
        file = RESULTS / f"launches-{given.target}.md"
        file.write_text(f"# What a training step starts on one {given.target}\n\n{_SAID}\n\n{said}\n\n{text}\n")
    return text


_SAID = """Compiled for a device that was not there, and counted in the program's text: **no time was measured**. In
objectives Sinkhorn is `unrolled`. GB a step are what all kernels read and write, each its whole operands and results,
caches not considered; memory is what a step takes beside its arguments."""


if __name__ == "__main__":
    sys.exit(status(lambda: execute(sys.argv[1:])))
