"""Arguments of commands, where a mistake is one sentence as everywhere else."""

import argparse
from typing import NoReturn

from gkd_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises `UserError` where `argparse` would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`."""
        raise UserError(f"{message}; --help shows all flags")
