"""The views of the images: which lines see which, and what is drawn for each."""

from jaxtyping import PRNGKeyArray

from gkd_jax import objective
from gkd_jax.objective import Lines

WEAK, STRONG = objective.VIEWS


def by_view(lines: Lines) -> dict[str, Lines]:
    """Returns the lines that see each view, for those views that any line sees, the view "weak" first."""
    seen = {view: {name: line for name, line in lines.items() if line.view == view} for view in (WEAK, STRONG)}
    return {view: mine for view, mine in seen.items() if mine}


def key_of(key: PRNGKeyArray, view: str) -> PRNGKeyArray:
    """Returns the key of what a network draws on a view, other than on any other view."""
    return key if view == WEAK else objective.stream(key, view)
