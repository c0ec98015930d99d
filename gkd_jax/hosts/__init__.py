"""Several processes that do one run together: who they are, what they tell each other, and how they end together.

With one process, which is the rule, everything here is a no-op that costs a comparison. With several, all of them call
the same functions of this package in the same order; process 0 alone writes what is not a checkpoint.
"""

from gkd_jax.hosts.board import (
    count,
    exchange,
    first,
    first_does,
    in_turn,
    index,
    least,
    on_all,
    same,
    several,
)
from gkd_jax.hosts.joining import end_if_lost, joined, leave
from gkd_jax.hosts.launch import Given, define_flags, from_flags, launched, start
from gkd_jax.hosts.watching import Watch, watch

__all__ = [
    "Given",
    "Watch",
    "count",
    "define_flags",
    "end_if_lost",
    "exchange",
    "least",
    "first",
    "first_does",
    "from_flags",
    "in_turn",
    "index",
    "joined",
    "launched",
    "leave",
    "on_all",
    "same",
    "several",
    "start",
    "watch",
]
