"""What a user did or gave that cannot work, said in one sentence."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: the command line prints its message alone and exits with 2.

    The message names the field or file, what was found, and what is allowed.
    """


class Diverged(UserError):
    """The loss of a run, or its gradient, became NaN or infinite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the known name closest to `name`, or `""` if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for a `name` that no registered `what` has, with the nearest and all the known ones."""
    known = sorted(known)
    return UserError(f"unknown {what} {name!r}{nearest(name, known)}; known: {', '.join(known)}")
