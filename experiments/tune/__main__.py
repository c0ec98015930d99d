"""The command line of `python -m experiments.tune`."""

import argparse
import pathlib
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

from absl import logging

import experiments.tune
from experiments.tune.space import space
from gkd_jax import command, config, machine
from gkd_jax.arguments import Parser
from gkd_jax.errors import UserError
from gkd_jax.training.stop import Interrupted, Stop


def _flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the flags of this command, and all others."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--space")
    parser.add_argument("--keep")
    own, rest = parser.parse_known_args(list(argv))
    for argument in rest:
        name = argument.partition("=")[0].lstrip("-")
        if argument.startswith("-") and name != "config" and not name.startswith(("config.", "noconfig.")):
            raise UserError(f"unknown flag {argument!r}; --help shows all")
    if own.trials < 1:
        raise UserError(f"--trials is the number of trials in the end, 1 or above, not {own.trials}")
    return own, rest


def execute(argv: Sequence[str]) -> str:
    """Does what the arguments ask for, and returns what there is to print.

    Raises:
      UserError, Interrupted: see `search.go_on`.
    """
    own, rest = _flags(argv)
    given = command.parse(["tune", *rest])
    assert given is not None  # help was asked for before
    c = given.config
    config.check(c)
    if not c.data.val_fraction > 0:
        raise UserError("data.val_fraction is 0, but a search needs validation images: --config.data.val_fraction=0.1")
    parameters = space(c, None if own.space is None else own.space.split(","))
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError('experiments.tune needs Optuna: pip install "gkd_jax[experiments]"') from error
    logging.set_verbosity(logging.ERROR)  # as in `gkd_jax.main`
    machine.prepare(c.cpu_devices, deterministic=c.deterministic)
    machine.keep_compiled(c.compilation_cache)
    from experiments.tune import record
    from experiments.tune.search import Search, go_on, opened, train_teacher
    from gkd_jax.training.workdir import alone_in

    search = Search(c, parameters, own.out)
    if own.keep is not None:
        record.check_keep(search, own.keep)
    head = record.begin(search, shlex.join(["python", "-m", "experiments.tune", *argv]))
    _make(own.out)
    with alone_in(own.out), Stop() as stop:
        train_teacher(search, stop)
        with opened(search) as study:
            found = record.write(search, study, head)
            for _ in go_on(search, study, own.trials, stop):
                found = record.write(search, study, head)
    text = f"{record.table(found)}\n\neverything is in {own.out}"
    return text if own.keep is None else f"{text}\n{record.keep(search, found, own.keep)}"


def _make(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be made a directory ({error.strerror})") from error


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit status: 0, 2 for a mistake, 128 + n after signal n."""
    if {"--help", "-h"} & set(argv):
        sys.stdout.write(experiments.tune.__doc__ or "")
        return 0
    try:
        text = execute(argv)
    except UserError as error:
        sys.stderr.write(f"experiments.tune: {error}\n")
        return 2
    except Interrupted as error:
        sys.stderr.write(f"\nexperiments.tune: {error}; the same command goes on\n")
        return 128 + error.signal
    except KeyboardInterrupt:
        sys.stderr.write("\nexperiments.tune: interrupted; the same command goes on\n")
        return 128 + signal.SIGINT
    sys.stdout.write(f"{text}\n")
    return 0


def console(*_: Any) -> None:
    """Runs the command line."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    console()
