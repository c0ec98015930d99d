"""The command line: flags -> configuration -> one mode.

python -m gkd_jax.main --config FILE.py[:ARGUMENT] [--workdir DIR] [--mode train|eval|shapes|print]
    [--config.FIELD=VALUE ...]

  train   train the student, and before it the teacher if there is none yet; started again, it goes on (default)
  eval    the accuracy of the finished student in the workdir
  shapes  sizes of both networks and the weight of every loss over the run; trains nothing
  print   the resolved configuration
"""

import importlib.util
import json
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from gkd_jax import config
from gkd_jax.errors import UserError

MODES = ("train", "eval", "shapes", "print")


class Command(NamedTuple):
    """What the user asked for."""

    config: ConfigDict
    mode: str
    workdir: pathlib.Path
    again: str  # the command line that continues the run


def parse(argv: Sequence[str]) -> Command | None:
    """Returns what the arguments (the program's name first) ask for; None if it is help.

    Raises:
      UserError: if they cannot be understood, or the configuration file does not work.
    """
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        return None
    name = _config_argument(argv)
    _load(name)
    plain = _flags([argv[0], f"--config={name}"])
    overrides = [match[1] for argument in argv[1:] if (match := re.match(r"--?(?:no)?config\.([^=]+)", argument))]
    for override in overrides:
        error = config.override_error(plain["config"].value, override)
        if error is not None:
            raise error
    values = _flags(argv)
    workdir = values["workdir"].value or pathlib.Path("runs") / run_name(name)
    again = " ".join(["python -m gkd_jax.main", *argv[1:]])
    return Command(values["config"].value, str(values["mode"].value), pathlib.Path(workdir), again)


def run_name(config_argument: str) -> str:
    """Returns the name of a run: that of its configuration file and its argument, "cifar-resnet56-resnet20-cifar10"."""
    file, _, argument = config_argument.partition(".py")
    return re.sub(r"[^\w.]+", "-", f"{pathlib.Path(file).name}{argument}").strip("-")


def _config_argument(argv: Sequence[str]) -> str:
    for i, argument in enumerate(argv[1:], 1):
        if argument in ("--config", "-config") and i + 1 < len(argv):
            return argv[i + 1]
        if match := re.match(r"--?config=(.+)", argument):
            return match[1]
    raise UserError("--config FILE.py is missing, for example --config configs/digits.py; --help shows all flags")


def _load(name: str) -> None:
    """Makes sure that the configuration file can be run, and says where it fails."""
    file = pathlib.Path(re.sub(r"\.py:.*", ".py", name))
    if not file.is_file():
        raise UserError(f"--config: no such file: {file}")
    spec = importlib.util.spec_from_file_location("gkd_jax_configuration", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {file} is no Python file; a configuration is a .py file with get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"--config: {file}: {error}") from error
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"--config: {file} fails: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"--config: {file} has no function get_config()")


def _flags(argv: Sequence[str]) -> flags.FlagValues:
    """Returns the parsed flags, among them the configuration with its overrides."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "The configuration file.", flag_values=values, lock_config=True, sys_argv=list(argv)
    )
    flags.DEFINE_string("workdir", None, "Where the run is kept.", flag_values=values)
    flags.DEFINE_enum("mode", "train", MODES, "What to do.", flag_values=values)
    try:
        rest = values(list(argv))
    except UserError:
        raise
    # absl and ml_collections raise many types here, and so may get_config
    except Exception as error:
        raise UserError(" ".join(str(error).split()) or type(error).__name__) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags begin with --")
    if not isinstance(values["config"].value, ConfigDict):
        raise UserError("--config: get_config() must return an ml_collections.ConfigDict")
    return values


def execute(command: Command) -> str:
    """Does what `command` asks for, and returns what there is to print.

    Raises:
      UserError, Interrupted: see `gkd_jax.training.experiment.run`.
    """
    _prepare_platform(command.config)
    from gkd_jax.training.resolve import resolve

    resolved = resolve(command.config)
    if command.mode == "print":
        return json.dumps(resolved, indent=2)
    if command.mode == "shapes":
        from gkd_jax import shapes

        return shapes.describe(resolved)

    from gkd_jax.training import experiment
    from gkd_jax.training.stop import Stop

    _compilation_cache(resolved["compilation_cache"])
    if command.mode == "eval":
        return experiment.evaluate(command.workdir)
    with Stop() as stop:
        summary = experiment.run(resolved, command.workdir, stop)
    return f"{experiment.table(summary)}\n\n{summary['seconds']:.1f} s of training; everything is in {command.workdir}"


def _prepare_platform(given: ConfigDict) -> None:
    """Sets what XLA reads once, before anything wakes it."""
    if given.get("deterministic"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


def _compilation_cache(folder: str) -> None:
    """Keeps compiled functions between runs: always on accelerators, on CPU if a folder is named."""
    import jax
    import jaxlib

    if folder == "off" or (folder == "auto" and jax.default_backend() == "cpu"):
        return
    root = pathlib.Path("~/.cache/gkd_jax") if folder == "auto" else pathlib.Path(folder)
    # One folder for each version: compiled code of another jaxlib can crash
    jax.config.update("jax_compilation_cache_dir", str(root.expanduser() / f"jaxlib-{jaxlib.__version__}"))


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit status: 0, 2 for a mistake, 128 + n after signal n."""
    from gkd_jax.training.stop import Interrupted

    command: Command | None = None
    try:
        command = parse(argv)
        text = __doc__ if command is None else execute(command)
    except UserError as error:
        sys.stderr.write(f"gkd_jax: {error}\n")
        return 2
    except Interrupted as error:
        again = command.again if command else ""
        sys.stderr.write(f"\ngkd_jax: {error}; to go on:\n  {again}\n")
        return 128 + error.signal
    except OSError as error:
        sys.stderr.write(f"gkd_jax: {error.filename or 'a file'}: {error.strerror or error}\n")
        return 2
    sys.stdout.write(f"{text}\n".lstrip("\n"))
    return 0


def console(*_: Any) -> None:
    """Entry point of the command `gkd-jax`."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    console()
