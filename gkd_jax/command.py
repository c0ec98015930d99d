"""What the user asked for: flags and a configuration file, every mistake in them one sentence."""

import importlib.util
import inspect
import pathlib
import re
import shlex
import sys
import traceback
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
    compare: bool = False  # whether to set the result beside published ones


def parse(argv: Sequence[str]) -> Command | None:
    """Returns what the arguments (the program's name first) ask for; None if it is help.

    Raises:
      UserError: if they cannot be understood, or the configuration file does not work.
    """
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        return None
    name, rest = _config_argument(argv)
    given = _read_config(name)
    overrides = [match[1] for argument in rest[1:] if (match := re.match(r"--?(?:no)?config\.([^=]*)", argument))]
    for override in overrides:
        error = config.override_error(given, override)
        if error is not None:
            raise error
    values = _flags(rest, given)
    workdir = values["workdir"].value or pathlib.Path("runs") / run_name(name)
    again = shlex.join(["python", "-m", "gkd_jax.main", *argv[1:]])
    mode, compare = str(values["mode"].value), bool(values["compare"].value)
    if compare and mode not in ("train", "eval"):
        raise UserError(f"--compare stands with --mode=train or --mode=eval, not with --mode={mode}")
    return Command(values["config"].value, mode, pathlib.Path(workdir), again, compare)


def run_name(config_argument: str) -> str:
    """Returns the name of a run: that of its configuration file and its argument, "cifar-resnet56-resnet20-cifar10"."""
    file, argument = _file_and_argument(config_argument)
    return re.sub(r"[^\w.]+", "-", "-".join([file.stem, *argument])).strip("-")


def _file_and_argument(name: str) -> tuple[pathlib.Path, list[str]]:
    """Returns the file that `--config` names, and what follows a colon behind it, if anything does."""
    match = re.fullmatch(r"(.*?\.py):(.*)", name, re.DOTALL)
    return (pathlib.Path(match[1]), [match[2]]) if match else (pathlib.Path(name), [])


def _config_argument(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the value of `--config`, and the arguments without it."""
    rest, names = list(argv[:1]), []
    arguments = iter(argv[1:])
    for argument in arguments:
        if argument in ("--config", "-config"):
            names.append(next(arguments, ""))
        elif match := re.match(r"--?config=(.*)", argument, re.DOTALL):
            names.append(match[1])
        else:
            rest.append(argument)
    if not names or not names[-1]:
        raise UserError("--config FILE.py is missing, for example --config configs/digits.py; --help shows all flags")
    if len(names) > 1:
        raise UserError(f"--config is given {len(names)} times: {', '.join(names)}; a run has one configuration file")
    return names[0], rest


def _read_config(name: str) -> ConfigDict:
    """Runs the configuration file, once: it may register terms, networks and data sets."""
    file, argument = _file_and_argument(name)
    if not file.is_file():
        raise UserError(f"--config: no such file: {file}")
    spec = importlib.util.spec_from_file_location("gkd_jax_configuration", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {file} is no Python file; a configuration is a .py file with get_config()")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where classes that it defines look for it
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError("it has no function get_config()")
        _check_argument(get_config, argument)
        found = get_config(*argument)
    except UserError as error:
        raise UserError(f"--config: {file}: {error}") from error
    except Exception as error:  # whatever the user's file raises
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"--config: {file} fails{_line(error, file)}: {what}") from error
    if not isinstance(found, ConfigDict):
        raise UserError(
            f"--config: {file}: get_config() returned {type(found).__name__}; it must return an "
            "ml_collections.ConfigDict, such as gkd_jax.config.default()"
        )
    return found


def _check_argument(get_config: Any, argument: Sequence[str]) -> None:
    try:
        inspect.signature(get_config).bind(*argument)
    except TypeError as error:
        if argument:
            raise UserError(f"it takes no argument, but {argument[0]!r} stands behind the colon") from error
        raise UserError("it needs an argument, as in FILE.py:ARGUMENT; its first lines say which") from error


def _line(error: Exception, file: pathlib.Path) -> str:
    """Returns " in line 12", the last line of the file itself that an error came through."""
    trace = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in trace if pathlib.Path(frame.filename).name == file.name]
    return f" in line {lines[-1]}" if lines else ""


def _flags(argv: Sequence[str], given: ConfigDict) -> flags.FlagValues:
    """Returns the parsed flags, among them `given` with its overrides."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Where the run is kept.", flag_values=values)
    flags.DEFINE_bool("compare", False, "Set the result beside published ones.", flag_values=values)
    flags.DEFINE_enum("mode", "train", MODES, "What to do.", flag_values=values)
    try:
        config_flags.DEFINE_config_dict("config", given, flag_values=values, sys_argv=list(argv))
        rest = values(list(argv))
    except Exception as error:  # absl and ml_collections raise many types here
        raise UserError(_plain(" ".join(str(error).split()) or type(error).__name__)) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags begin with --, and their value follows an =")
    return values


# What absl and Python say of a value of the wrong type -> what a user would
_PLAIN = {
    r": invalid literal for int\(\).*": ": must be a whole number",
    r": could not convert string to float.*": ": must be a number",
    r": \('Non-boolean argument to boolean flag.*": ": must be true or false",
    r": Failed to parse .* as a ConfigDict.*": ": holds fields of its own; set one of them, as in {}.FIELD=VALUE",
}


def _plain(message: str) -> str:
    flag = re.match(r"flag (--[^=\s]+)=", message)
    for found, better in _PLAIN.items():
        message = re.sub(found, better.format(flag[1] if flag else ""), message)
    return message
