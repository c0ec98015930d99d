"""Arguments of commands and their exit status, where a mistake is one sentence as everywhere else."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from gkd_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises `UserError` where `argparse` would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`."""
        raise UserError(f"{message}; --help shows all flags")


def status(command: Callable[[], str]) -> int:
    """Runs a command, prints what it returns, and returns its exit status: 0, or 2 for a mistake, which it tells."""
    try:
        text = command()
    except UserError as error:
        sys.stderr.write(f"gkd_jax: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"gkd_jax: {error.filename or 'a file'}: {error.strerror or error}\n")
        return 2
    sys.stdout.write(f"{text}\n")
    return 0
