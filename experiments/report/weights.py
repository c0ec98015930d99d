"""The weight of every term over a run, and the stages of those that have any."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report.collect import Run
from gkd_jax import objective
from gkd_jax.config import steps_of
from gkd_jax.errors import UserError
from gkd_jax.schedules import STAGES, Bounds

_POINTS = 240


class Curve(NamedTuple):
    """A weight over a run.

    Attributes:
      t: fractions of the run, ascending, [n].
      mean: over the seeds, [n].
      std: over the seeds, [n]; None where all have the same weight.
      bounds: of the rapid stage; None if it has no stages.
    """

    t: np.ndarray
    mean: np.ndarray
    std: np.ndarray | None
    bounds: Bounds | None


@functools.lru_cache(maxsize=1024)
def curves(run: Run) -> dict[str, Curve]:
    """Returns the weight of every line of a run's objective by its label, cross-entropy among them.

    A plain schedule is drawn as the run's configuration has it. One that was fitted while the run went on, or whose
    term only the grid's file knows, is what the run recorded at the end of every epoch, and so is a balanced term's
    weight, which is times the ratio that brings its loss to the size of the cross-entropy.
    """
    names = list(dict.fromkeys(name for record in run.records for name in record.get("terms", {})))
    found = {name: _recorded(run, name) for name in names}
    total, epochs = run.records[-1]["step"], run.records[-1]["epoch"]
    try:
        lines = objective.build(run.config["objective"], total, steps_of(total // epochs, epochs))
    except (UserError, KeyError):
        return found
    t = np.linspace(0.0, 1.0, _POINTS + 1)
    for name, line in lines.items():
        if name in found and not jax.tree.leaves(line.weight.init) and not _balanced(run, name):
            weight = np.broadcast_to(np.asarray(line.weight.at((), jnp.asarray(t * total))), t.shape)
            found[name] = Curve(t, weight.astype(float), None, line.weight.bounds(()))
    return found


def _recorded(run: Run, name: str) -> Curve:
    total = run.records[-1]["step"]
    t = (np.asarray([record["step"] for record in run.records], dtype=float) - 1) / total
    values = run.series("terms", name, "weight")
    if _balanced(run, name):
        values = values * run.series("terms", name, "balance")
    same = np.allclose(values, values[:1], rtol=1e-6, equal_nan=True)
    return Curve(t, values.mean(0), None if same else values.std(0, ddof=1), _bounds(run, name, t))


def _balanced(run: Run, name: str) -> bool:
    return bool(np.isfinite(run.series("terms", name, "balance")).any())


def _bounds(run: Run, name: str, t: np.ndarray) -> Bounds | None:
    """Returns where the recorded stages change, the mean over the seeds; a stage that was never reached is at 1."""
    places = []
    for stages in run.texts("terms", name, "stage"):
        if not any(stages):
            return None
        reached = [STAGES.index(stage) if stage in STAGES else 0 for stage in stages]
        later = [np.flatnonzero(np.asarray(reached) >= place) for place in (1, 2)]
        places.append([t[index[0]] if index.size else 1.0 for index in later])
    growth_end, saturation_start = np.mean(places, axis=0)
    return float(growth_end), float(saturation_start)
