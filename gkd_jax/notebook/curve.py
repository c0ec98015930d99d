"""The Gompertz weight in a notebook: a family of curves, and one that is moved by hand beside measured accuracies."""

import base64
import importlib
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.ticker import PercentFormatter

from gkd_jax import config, curves
from gkd_jax.errors import UserError
from gkd_jax.notebook.display import WIDTH, drawn, ipython
from gkd_jax.notebook.runs import records
from gkd_jax.reporting import figure as figures
from gkd_jax.reporting import plots
from gkd_jax.reporting.figure import INK, PALETTE
from gkd_jax.schedules import Weight
from gkd_jax.training import finished, optimizer

_POINTS = 500
_SLIDERS = {  # lowest, highest, step
    "inflection": (0.0, 1.0, 0.01),
    "rate": (2.0, 40.0, 0.5),
    "peak_value": (0.0, 2.0, 0.05),
}


def family(members: Mapping[str, Mapping[str, float]], epochs: int = 240) -> None:
    """Shows Gompertz weights with their stages, over the learning rate of the standard recipe.

    Args:
      members: by name, the parameters `inflection`, `rate` and `peak_value` of each; those left out have defaults.
      epochs: of the run.
    """
    t = np.linspace(0.0, 1.0, _POINTS + 1)
    weights = {name: _weight(given) for name, given in members.items()}
    bounds = {name: weight.bounds(weight.init) for name, weight in weights.items()}
    stages = {name: both for name, both in bounds.items() if both is not None}
    rate = optimizer.learning_rate(config.optimizer().to_dict(), _POINTS, config.steps_of(1, _POINTS))

    def draw(file: pathlib.Path) -> None:
        plots.plot_schedule(
            file,
            t,
            {name: _along(weight) for name, weight in weights.items()},
            np.asarray([float(rate(step)) for step in range(_POINTS + 1)]),
            stages=stages,
            inflections={name: sum(both) / 2 for name, both in stages.items()},
            total_epochs=epochs,
        )

    ipython().display(drawn(draw))


def explore(
    workdir: str | os.PathLike[str], *, inflection: float = 0.3, rate: float = 10.0, peak_value: float = 1.0
) -> None:
    """Shows a Gompertz weight above the accuracies of a run, with a slider for each of the curve's parameters.

    Where no sliders can be shown (without `ipywidgets`, or on a page that is not alive) the picture of the values that
    are given here stands alone.

    Args:
      workdir: of the run.
      inflection: t*, as a fraction of the run.
      rate: c, per unit of t.
      peak_value: A.

    Raises:
      UserError: if the run has no epoch, or a value is out of range.
    """
    folder = pathlib.Path(workdir)
    run, epochs = records(folder), int(finished.read(folder / finished.CONFIG)["epochs"])
    if not run:
        raise UserError(f"{folder} holds no run that has finished an epoch")

    def picture(**given: float) -> Any:
        weight = _weight(given)
        return drawn(lambda file: _draw(file, weight, run, epochs))

    given = {"inflection": inflection, "rate": rate, "peak_value": peak_value}
    still = picture(**given)
    try:
        widgets: Any = importlib.import_module("ipywidgets")
    except ImportError:
        ipython().display(still)
        sys.stdout.write("No sliders without ipywidgets: give explore() other values instead.\n")
        return
    box = sliders(widgets, still.data, given, picture)
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    # Whoever shows this takes the first form that it can
    forms = {
        "application/vnd.jupyter.widget-view+json": view,
        "image/png": base64.b64encode(still.data).decode(),
        "text/plain": "a Gompertz weight above the accuracies of a run",
    }
    ipython().display(forms, raw=True, metadata={"image/png": {"width": WIDTH}})


def sliders(widgets: Any, png: bytes, given: Mapping[str, float], picture: Any) -> Any:
    """Returns a box of sliders above a picture that follows them.

    Args:
      widgets: the module `ipywidgets`.
      png: the picture of the values that are given.
      given: the value of each slider.
      picture: these values as keywords -> something whose `data` is a PNG file.
    """
    image = widgets.Image(value=png, format="png", width=WIDTH)
    moved = {}
    for name, (low, high, by) in _SLIDERS.items():
        # Not while a slider is moving: drawing takes a moment
        moved[name] = widgets.FloatSlider(
            value=given[name], min=low, max=high, step=by, description=name, continuous_update=False
        )

    def redraw(_: Any) -> None:
        image.value = picture(**{name: slider.value for name, slider in moved.items()}).data

    for slider in moved.values():
        slider.observe(redraw, names="value")
    return widgets.VBox([*moved.values(), image])


def _weight(given: Mapping[str, float]) -> Weight:
    return curves.create("gompertz", given, _POINTS, config.steps_of(1, _POINTS))


def _along(weight: Weight) -> np.ndarray:
    return np.asarray(jax.vmap(lambda step: weight.at(weight.init, step))(jnp.arange(_POINTS + 1)))


def _draw(file: pathlib.Path, weight: Weight, run: list[dict[str, Any]], epochs: int) -> None:
    t = np.linspace(0.0, 1.0, _POINTS + 1)
    values, bounds = _along(weight), weight.bounds(weight.init)
    with figures.saved(file, 8.0, 5.4) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, 1.3])
        if bounds is not None:
            plots.shade_stages(top, bounds)
            bottom.vlines(bounds, 0, 1, transform=bottom.get_xaxis_transform(), color=INK, linewidth=0.8, linestyle=":")
            at = sum(bounds) / 2
            if 0 <= at <= 1:
                top.plot([at], [np.interp(at, t, values)], "o", color=PALETTE[0], markeredgecolor="white", zorder=4)
        top.plot(t, values, color=PALETTE[0], zorder=3)
        highest = float(values.max()) or 1.0
        top.set(xlim=(0, 1), ylim=(-0.03 * highest, 1.16 * highest), ylabel="weight of the loss")
        for name, colour in (("train", PALETTE[7]), ("val", PALETTE[1])):
            known = [(record["epoch"], record[f"{name}_accuracy"]) for record in run]
            there = [(epoch / epochs, accuracy) for epoch, accuracy in known if accuracy is not None]
            if there:
                label = {"train": "on training images", "val": "on validation images"}[name]
                bottom.plot(*zip(*there, strict=True), "o-", color=colour, label=label)
        bottom.set(ylabel="accuracy, measured", xlabel="t, the fraction of the run that is done")
        bottom.yaxis.set_major_formatter(PercentFormatter(1.0))
        bottom.legend()
