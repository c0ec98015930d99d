"""What the user asked for: flags and a configuration file, every mistake in them one sentence."""

import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from gkd_jax import config, hosts, pyfile
from gkd_jax.errors import UserError
from gkd_jax.export import options

MODES = ("train", "eval", options.MODE, "shapes", "print")


class Command(NamedTuple):
    """What the user asked for."""

    config: ConfigDict
    mode: str
    workdir: pathlib.Path
    again: str  # the command line that continues the run
    compare: bool = False  # whether to set the result beside published ones
    export: options.Options | None = None  # what to export, in that mode
    joining: hosts.Given | None = None  # how several processes find each other, where the mode is one for several


def parse(argv: Sequence[str]) -> Command | None:
    """Returns what the arguments (the program's name first) ask for; None if it is help.

    Raises:
      UserError: if they cannot be understood, or the configuration file does not work.
    """
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        return None
    name, rest = _config_argument(argv)
    given = pyfile.call("--config", name, "get_config", ConfigDict, "gkd_jax.config.default()")
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
    joining, export = hosts.from_flags(values, mode), options.given(values, mode)
    return Command(values["config"].value, mode, pathlib.Path(workdir), again, compare, export, joining)


def run_name(config_argument: str) -> str:
    """Returns the name of a run: that of its configuration file and its argument, "cifar-resnet56-resnet20-cifar10"."""
    file, argument = pyfile.split(config_argument)
    return re.sub(r"[^\w.]+", "-", "-".join([file.stem, *argument])).strip("-")


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


def _flags(argv: Sequence[str], given: ConfigDict) -> flags.FlagValues:
    """Returns the parsed flags, among them `given` with its overrides."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Where the run is kept.", flag_values=values)
    flags.DEFINE_bool("compare", False, "Set the result beside published ones.", flag_values=values)
    hosts.define_flags(values)
    flags.DEFINE_enum("mode", "train", MODES, "What to do.", flag_values=values)
    options.define(values)
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
