"""What grid files have in common: cells from recipes, at a size, under a schedule."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from experiments.grid.cells import Cell
from gkd_jax import config, objective, recipes
from gkd_jax.errors import UserError

SIZES = ("full", "cpu")


def split(argument: str, expected: str, least: int = 3) -> list[str]:
    """Returns the parts of a grid's argument.

    Args:
      argument: what stands behind the colon.
      expected: the names of its parts, such as "TEACHER,STUDENT,DATASET", for the message too.
      least: how many must be there.

    Raises:
      UserError: if there are fewer or more.
    """
    given = argument.split(",")
    if not least <= len(given) <= expected.count(",") + 1 or not all(given):
        raise UserError(f"{expected} stands behind the colon (the first {least} at least), not {argument!r}")
    return given


def standard(pair: Sequence[str], dataset: str, method: str, size: str = "full") -> ConfigDict:
    """Returns a method on a pair at a size, with its seeds.

    Args:
      pair: teacher and student.
      dataset: such as "cifar100".
      method: a recipe's name, or NAME+gompertz.
      size: "full", the standard recipe with the seeds 0 to 2; or "cpu", what two cores do in minutes: 5,000 images
        beside a validation split of a tenth, 20 epochs, 60 for the teacher, the seeds 0 to 3.

    Raises:
      UserError: if there is no such method or size.
    """
    if size not in SIZES:
        raise UserError(f"the size must be one of {', '.join(SIZES)}, not {size!r}")
    c = recipes.standard(pair[0], pair[1], dataset, method)
    c.tensorboard = False
    c.seeds = (0, 1, 2)
    if size == "cpu":
        c.seeds = (0, 1, 2, 3)
        c.epochs, c.teacher.epochs = 20, 60
        c.data.num_train, c.data.val_fraction = 5000, 0.1
    return c


def said(c: ConfigDict) -> str:
    """Returns the size of a run, for a grid's title."""
    images = "" if c.data.num_train is None else f"{c.data.num_train:,} training images, "
    held = "" if not c.data.val_fraction else f"{100 * c.data.val_fraction:.0f} % of the images for validation, "
    return f"{images}{held}{c.epochs} epochs, {len(c.seeds)} seeds"


def under(c: ConfigDict, schedule: ConfigDict) -> None:
    """Puts all terms but cross-entropy, of any view, under a schedule; the objective is then no recipe's any more."""
    recipes.under(c, schedule)
    c.recipe = None


def schedule_of(c: ConfigDict) -> str:
    """Returns the schedule of all terms but cross-entropy, for a label: "none" without, "gompertz+linear" for two."""
    names = dict.fromkeys(line.schedule.name for line in recipes.distilling(c).values() if line.weight)
    return "+".join(names) or "none"


def remember(c: ConfigDict) -> None:
    """Caches of the teacher what the terms need, if logits and embeddings are all: gradients take 50 GB."""
    lines = [line.to_dict() for line in c.objective.terms.values() if line.weight]
    needs = {need for line in lines for need in objective.term_of(line).needs}
    small = config.CACHES[: config.CACHES.index("gradients")]
    fit = (level for level in small if needs <= {f"teacher.{name}" for name in config.held(level)})
    c.teacher.cache = next(fit, config.NO_CACHE)


def cell(name: str, c: ConfigDict, **labels: str) -> Cell:
    """Returns a cell whose label "schedule" is read from its configuration, unless it is given."""
    remember(c)
    return Cell(name, c, {**labels, "schedule": labels.get("schedule", schedule_of(c))})
