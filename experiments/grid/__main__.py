"""Runs every cell of a grid: pair x data x method x schedule, with its seeds.

From the repository's root:

    python -m experiments.grid --grid experiments/grids/NAME.py[:ARGUMENT] --out DIR
        [--only REGEX] [--shard i/n] [--workers N] [--engine local|ray] [--resources num_cpus=2,num_gpus=1] [--dry]

  --grid       the grid's file; its first lines say what it compares, and which argument it takes
  --out        where everything is kept, and found again
  --only       the cells in whose name this regular expression is found
  --shard      the i-th of n equal parts, to be started on n machines; see below
  --workers    processes at once on this machine (1); they share its cores, and an accelerator's memory
  --engine     local (default), or ray: one Ray task for each run, in the cluster of RAY_ADDRESS or one on this machine
  --resources  what each Ray task reserves
  --dry        say what would be run, and write nothing

Cells with the same teacher share it, and the cache of its outputs: it is trained once, in DIR/teachers. Cells that are
one run, such as the student alone of two pairs, are run once. Started again,
the command goes on: finished runs are left as they are, others continue from their last checkpoint, failed ones are
tried again. DIR may be renamed or moved meanwhile. A run that fails is written down in DIR/failed, the others go on,
and the exit code is 1. Ctrl-C stops at the next step of what runs, saved. `python -m experiments.report DIR` makes the
report, also of what there is so far.

Machines that see DIR by a shared file system split a grid by `--shard 1/3`, `--shard 2/3`, `--shard 3/3`, with nothing
else in common. Cells are dealt out in their order. A teacher that several need is trained by whoever comes first: it
holds the lock of the run's folder (`flock`, which Linux's NFS passes on), the others do what needs no waiting
meanwhile, and look every two seconds whether the teacher is finished. If its process or machine died, the lock is free,
and the next one goes on from the teacher's last checkpoint. Give every machine the same DIR relative to its working
directory, or the same absolute path, since configurations name the teacher's folder.

On a terminal a table shows what runs, elsewhere each run that ends is a line. The ETA is the work that is left (epochs
x seeds) at the mean pace of the runs so far that train the same network, over the number of processes.
"""

import argparse
import pathlib
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging

from experiments.grid import cells, plan, tasks
from experiments.grid.cells import Grid
from experiments.grid.engine import Engine
from experiments.grid.local import LocalEngine
from experiments.grid.run import DONE, FAILED, Run
from experiments.grid.watch import watching
from gkd_jax.arguments import Parser
from gkd_jax.errors import UserError
from gkd_jax.reporting.files import write_json
from gkd_jax.training import finished
from gkd_jax.training.stop import Stop


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "experiments.grid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    hidden: dict[str, Any] = {"help": argparse.SUPPRESS}
    parser.add_argument("--grid", required=True, **hidden)
    parser.add_argument("--out", required=True, type=pathlib.Path, **hidden)
    parser.add_argument("--only", **hidden)
    parser.add_argument("--shard", default="1/1", **hidden)
    parser.add_argument("--workers", type=int, **hidden)
    parser.add_argument("--engine", choices=("local", "ray"), default="local", **hidden)
    parser.add_argument("--resources", **hidden)
    parser.add_argument("--dry", action="store_true", **hidden)
    given = parser.parse_args(argv)
    given.shard = _shard(given.shard)
    if given.workers is not None and given.workers < 1:
        raise UserError(f"--workers must be 1 or above, not {given.workers}")
    if given.workers is not None and given.engine == "ray":
        raise UserError("--workers stands with --engine local; Ray runs as many tasks as --resources leave room for")
    if given.resources is not None and given.engine == "local":
        raise UserError("--resources stands with --engine ray")
    given.resources = _resources(given.resources or "")
    return given


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard must be i/n with i from 1 to n, such as 1/3, not {text!r}")
    return int(match[1]), int(match[2])


def _resources(text: str) -> dict[str, float]:
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, amount = part.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UserError(f"--resources must be NAME=NUMBER,..., such as num_cpus=2,num_gpus=1, not {text!r}")
    return found


def _engine(given: argparse.Namespace) -> Engine:
    if given.engine == "local":
        return LocalEngine(given.workers or 1)
    from experiments.grid.ray_engine import RayEngine

    return RayEngine(given.resources)


def _record(grid: Grid, given: argparse.Namespace, out: pathlib.Path, command: str) -> None:
    """Writes grid.json, unless the folder is another grid's."""
    file = out / tasks.GRID
    before = finished.read(file) if file.exists() else {}
    if "grid" in before and _bare(before["grid"]) != _bare(given.grid):
        raise UserError(f"--out: {out} holds the grid {before['grid']}, not {given.grid}; choose another folder")
    run_as = plan.shared(grid.cells)
    listed = [{"name": cell.name, "run": run_as[cell.name], "labels": dict(cell.labels)} for cell in grid.cells]
    # Each that it was run by, in parts perhaps
    commands = list(dict.fromkeys([*before.get("commands", ()), command]))
    facts = {"title": grid.title, "grid": given.grid, "commands": commands}
    write_json(file, {**facts, "baseline": grid.baseline, "within": grid.within, "cells": listed})


def _bare(grid: str) -> str:
    """Returns FILE.py:ARGUMENT without the file's folder, which differs from machine to machine."""
    return re.sub(r"^.*[/\\](?=[^/\\:]+\.py)", "", grid)


def _describe(run: Run) -> str:
    lines = []
    for name, task in run.tasks.items():
        standing = run.status[name].state if run.status[name].state == DONE else "not done"
        lines.append(f"{name}  [{standing}]" + "".join(f"  needs {need}" for need in task.needs))
    return "\n".join(lines)


def _closing(run: Run, out: pathlib.Path) -> str:
    failed = run.those(FAILED)
    lines = [f"{name}: {run.status[name].error}" for name in failed]
    done = len(run.those(DONE, run.cells))
    lines.append(f"{done} of {len(run.cells)} cells are finished; everything is in {out}")
    if failed:
        lines.append(f"what failed is in {out / tasks.FAILED}; the same command tries it again")
    return "\n".join(lines)


def execute(argv: Sequence[str]) -> int:
    """Runs the command line, whose flags begin behind the program's name, and returns its exit status.

    Raises:
      UserError: for a mistake.
    """
    given = _parse(argv)
    command = shlex.join(["python", "-m", "experiments.grid", *argv])
    logging.set_verbosity(logging.ERROR)
    jax.config.update("jax_platforms", "cpu")  # this process computes nothing, and must leave accelerators alone
    grid, out = cells.load(given.grid), plan.place(given.out)
    run = Run(plan.plan(plan.choose(grid.cells, given.only, given.shard), given.grid, out))
    if given.dry:
        sys.stdout.write(f"{_describe(run)}\n")
        return 0
    _record(grid, given, out, command)
    with Stop() as stop:
        engine = _engine(given)
        try:
            with watching(sys.stderr) as watch:
                run.go(engine, lambda: stop.requested is not None, watch)
        finally:
            if stop.requested is not None:
                sys.stderr.write("\nstopping: what runs is being saved\n")
            engine.close()
    if stop.requested is not None:
        done = f"{len(run.those(DONE, run.cells))} of {len(run.cells)} cells are finished"
        number = signal.Signals(stop.requested)
        sys.stderr.write(f"stopped by {number.name}; {done}; to go on:\n  {command}\n")
        return 128 + number
    sys.stdout.write(f"{_closing(run, out)}\n")
    return 1 if run.those(FAILED) else 0


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit status: 0, 1 if a run failed, 2 for a mistake, 128 + n by signal n."""
    try:
        return execute(argv)
    except UserError as error:
        sys.stderr.write(f"experiments.grid: {error}\n")
        return 2
    except KeyboardInterrupt:  # before anything ran, or for the second time
        sys.stderr.write("\nexperiments.grid: interrupted\n")
        return 128 + signal.SIGINT
    except OSError as error:
        sys.stderr.write(f"experiments.grid: {error.filename or 'a file'}: {error.strerror or error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
