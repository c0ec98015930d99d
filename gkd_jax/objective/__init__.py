"""The objective: lines of (term, weight), from a configuration to one scalar."""

from gkd_jax.objective.configuration import VIEWS, block, build, resolve, term_of
from gkd_jax.objective.lines import (
    Line,
    Lines,
    Reading,
    active,
    constants,
    gradients,
    init,
    needs_teacher,
    stream,
    total,
    weights_along,
)

__all__ = [
    "VIEWS",
    "Line",
    "Lines",
    "Reading",
    "active",
    "block",
    "build",
    "constants",
    "gradients",
    "init",
    "needs_teacher",
    "resolve",
    "stream",
    "term_of",
    "total",
    "weights_along",
]
