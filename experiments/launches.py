"""What a training step starts on an accelerator, counted where there is none: XLA compiles for a device that is absent.

python -m experiments.launches [--target h200|v5e] [--pair TEACHER,STUDENT --objective kd --cache none] [--batch 64]

A step of small maps is mostly launches: the kernels that a GPU starts one after the other, a few microseconds each
however little they do. This counts them, and the bytes that they read and write, in the step that a run of bfloat16
would take on one device. Nothing runs, so nothing is a time; what XLA finds out on a device by trying is left to its
defaults. Without --pair it counts what the project promises a time for, and writes
experiments/results/launches-TARGET.md.

It needs what compiles for the target and no device, in an environment of its own, since JAX would look for one:

    pip install -e . jax-cuda12-plugin jax-cuda12-pjrt     # h200; with the versions of jaxlib
    pip install -e . libtpu                                # v5e
"""

import argparse
import datetime
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from experiments.bench.absent import TARGETS, compiled
from experiments.bench.kernels import Started, started
from experiments.bench.protocol import OBJECTIVES
from gkd_jax.arguments import Parser, status
from gkd_jax.config import CACHES, NO_CACHE

RESULTS = pathlib.Path(__file__).parent / "results"
_SMALL, _WIDE = "resnet50,mobilenetv2_half", "resnet32x4,resnet8x4"
# Pair, objective, cache, students that train together
_PROMISED = (
    (_SMALL, "kd", NO_CACHE, 1),
    (_SMALL, "kd", "logits", 1),
    (_SMALL, "kd+w", NO_CACHE, 1),
    (_SMALL, "kd+cg", NO_CACHE, 1),
    (_SMALL, "kd+w+cg", NO_CACHE, 1),
    (_SMALL, "kd+gm", NO_CACHE, 1),
    (_SMALL, "kd", "logits", 8),
    (_WIDE, "kd", NO_CACHE, 1),
)
_HEAD = (
    "| pair | objective | cache | students | launches a step | of which calls of libraries | GB a step | memory (MB) |"
)


def count(pair: str, objective: str, cache: str, students: int, batch: int, target: str) -> tuple[Started, int]:
    """Returns what a step starts, and the bytes of memory that it takes beside its arguments."""
    setup = {
        "pair": pair.split(","),
        "objective": objective,
        "batch": batch,
        "num_classes": 100,
        "cache": cache,
        "student_only": False,
        "seeds": students,
        "seed_strategy": "auto",
        "solver": "unrolled",
        "epochs": 240,
        "cpu_devices": 1,
    }
    program = compiled(setup, target)
    return started(program.text, program.steps), program.temporary


def row(pair: str, objective: str, cache: str, students: int, found: Started, temporary: int) -> str:
    """Returns a line of the table."""
    libraries = sum(n for kind, n in found.launches.items() if kind.startswith("__"))
    return (
        f"| {pair.replace(',', ' to ')} | {objective} | {cache} | {students} | {found.total:,} | {libraries} | "
        f"{found.bytes / 1e9:.2f} | {temporary / 1e6:,.0f} |"
    )


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
    return parser


def execute(argv: Sequence[str]) -> str:
    """Counts what was asked for, and returns the table.

    Raises:
      UserError: if XLA cannot compile for the target here.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")
    given = _parser().parse_args(argv)
    asked: Any = _PROMISED
    if given.pair:
        asked = ((given.pair, given.objective, given.cache, given.students),)
    lines = [_HEAD, "|---|---|---|---|---|---|---|---|"]
    for each in asked:
        lines.append(row(*each, *count(*each, given.batch, given.target)))
        sys.stderr.write(lines[-1] + "\n")
    text = "\n".join(lines)
    if not given.pair:
        command = shlex.join(["python", "-m", "experiments.launches", *argv])
        said = f"Batch {given.batch}, bfloat16, jax {jax.__version__}, {datetime.date.today().isoformat()}: `{command}`"
        file = RESULTS / f"launches-{given.target}.md"
        file.write_text(f"# What a training step starts on one {given.target}\n\n{_SAID}\n\n{said}\n\n{text}\n")
    return text


_SAID = """Compiled for a device that was not there, and counted in the program's text: **no time was measured**.
Sinkhorn is `unrolled`. GB a step are what all kernels read and write, each its whole operands and results, caches not
considered."""


if __name__ == "__main__":
    sys.exit(status(lambda: execute(sys.argv[1:])))
