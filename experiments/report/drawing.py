"""How the report's figures look: panels, lines that can be told apart, legends of long labels."""

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gkd_jax.reporting import figure as figures
from gkd_jax.reporting import plots
from gkd_jax.reporting.figure import PALETTE
from gkd_jax.reporting.files import Path
from gkd_jax.schedules import Bounds

WIDTH = 7.6
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.4, 1.2, 1.4)))


def line(place: int) -> dict[str, Any]:
    """Returns colour and dashes of the line at a place: 28 that differ, neighbours in colour."""
    few = PALETTE[:-1]  # the grey is for what is beside the point
    return {"color": few[place % len(few)], "linestyle": _DASHES[place // len(few) % len(_DASHES)]}


def band(axes: Axes, x: np.ndarray, values: np.ndarray, label: str | None, style: dict[str, Any]) -> None:
    """Draws the mean of rows of `values` [seeds, n] and a band of one standard deviation, NaN left out."""
    there = np.isfinite(values).all(0)
    x, values = x[there], values[:, there]
    if not x.size:
        return
    mean = values.mean(0)
    axes.plot(x, mean, label=label, marker="o" if x.size <= 12 else None, **style, zorder=3)
    if len(values) > 1:
        std = values.std(0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.14, linewidth=0, zorder=2)


@contextlib.contextmanager
def panels(
    path: Path, titles: Sequence[str], height: float = 2.5, xlabel: str = "", **shared: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yields a figure with a panel for each title, two beside one another, written to `path` at the end."""
    columns = min(2, len(titles))
    rows = -(-len(titles) // columns)
    wrapped = [textwrap.fill(title, 44 if columns == 2 else 90) for title in titles]
    lines = sum(max(t.count("\n") for t in wrapped[i : i + columns]) for i in range(0, len(titles), columns))
    with figures.saved(path, WIDTH, height * rows + 0.2 * lines + 0.6) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
        for one, title in zip(axes, wrapped, strict=False):
            one.set_title(title, fontsize=9.5)
            one.tick_params(labelsize=9)
        for one in axes[len(titles) :]:
            one.remove()
        for one in axes[max(0, len(titles) - columns) : len(titles)]:  # nothing stands below them
            one.set_xlabel(xlabel, fontsize=9.5)
            one.tick_params(labelbottom=True)
        yield figure, list(axes[: len(titles)])


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Puts a legend under the axes, in as many columns as its labels leave room for."""
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(len(handles), int(WIDTH / (0.55 + 0.078 * longest))))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9)


def rows_of(axes: Axes, labels: Sequence[str]) -> None:
    """Makes each place 0, 1, … of the y axis a row with a label, the first at the top."""
    axes.set_yticks(range(len(labels)), [textwrap.fill(label, 34) for label in labels], fontsize=9)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def stages(axes: Axes, bounds: Bounds) -> None:
    """Shades the stages of a run in a panel, and names those that are wide enough."""
    plots.shade_stages(axes, bounds, room=0.022)  # a panel is half as wide as a figure
