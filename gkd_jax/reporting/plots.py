"""Pictures of a run: the weights and their stages, the losses, the accuracies."""

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gkd_jax.reporting import figure as figures
from gkd_jax.reporting.figure import FAINT, INK, PALETTE
from gkd_jax.reporting.files import Path

Records = Sequence[Mapping[str, Any]]
Numbers = Any  # a sequence or array of numbers

_STAGES = (("growth", "#eff3f8"), ("rapid", "#dfe9f3"), ("saturation", "#eef3ee"))
_MARK: dict[str, Any] = {"marker": "o", "markersize": 7.5, "markeredgecolor": "white", "linestyle": ""}
_DOTTED = (0, (1, 1.2))
_ACCURACIES = {"training": "train_accuracy", "validation": "val_accuracy"}
_OTHERS = (PALETTE[4], PALETTE[2], PALETTE[3], PALETTE[5])


def plot_schedule(
    path: Path,
    t: Numbers,
    weights: Mapping[str, Numbers],
    learning_rate: Numbers,
    stages: Mapping[str, tuple[SupportsFloat, SupportsFloat]] | None = None,
    inflections: Mapping[str, SupportsFloat] | None = None,
    total_epochs: int | None = None,
) -> None:
    """Draws the weights over the run with their stages, above the learning rate on the same axis.

    Args:
      path: of the PNG file.
      t: fractions of the run, ascending, [n].
      weights: by line of the objective, [n] each; equal curves are drawn as one line of alternating colours.
      learning_rate: [n].
      stages: by line, where growth ends and where saturation starts, as fractions of the run. One pair for all is
        shaded behind the curves; different ones stand in a row each above them.
      inflections: by line, where its weight grows fastest, as a fraction of the run.
      total_epochs: of the run, for a second axis in epochs.

    Raises:
      UserError: if the file cannot be written.
    """
    t, learning_rate = np.asarray(t, dtype=float), np.asarray(learning_rate, dtype=float)
    curves = {name: np.asarray(values, dtype=float) for name, values in weights.items()}
    marks = {name: float(at) for name, at in (inflections or {}).items() if name in curves and 0 <= float(at) <= 1}
    colour = figures.colours([*curves, *(stages or {})])
    groups: dict[tuple[float, float], list[str]] = {}
    for name, (growth_end, saturation_start) in (stages or {}).items():
        groups.setdefault((float(growth_end), float(saturation_start)), []).append(name)
    rows = sum(map(_row_height, groups.values())) if len(groups) > 1 else 0.0
    with figures.saved(path, 8.0, 5.0 + 0.3 * rows) as figure:
        heights = [0.3 * rows] * (rows > 0) + [2.6, 1.3]
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        top, rate = axes[-2:]
        if rows:
            _stage_rows(axes[0], groups, colour)
        else:
            for stage in groups:
                shade_stages(top, stage)
                rate.vlines(
                    stage, 0, 1, transform=rate.get_xaxis_transform(), color=FAINT, linewidth=0.8, linestyle=":"
                )
        for members in equal_curves(curves):
            for i, name in enumerate(members):
                dashes: Any = "-" if len(members) == 1 else (6 * i, (6, 6 * (len(members) - 1)))
                top.plot(t, curves[name], color=colour[name], linestyle=dashes, zorder=3)
        for name, at in marks.items():
            top.plot([at], [np.interp(at, t, curves[name])], color=colour[name], **_MARK, zorder=4)
        highest = max((float(values.max(initial=0.0)) for values in curves.values()), default=0.0) or 1.0
        # Room above the curves for the names of the stages
        top.set(xlim=(0, 1), ylim=(-0.03 * highest, 1.16 * highest), ylabel="weight of the loss")
        rate.plot(t, learning_rate, color=INK, drawstyle="steps-post")
        if learning_rate.min() > 0 and learning_rate.max() > 20 * learning_rate.min():
            figures.logarithmic(rate)  # or the later drops would be too small to see
        else:
            rate.set_ylim(bottom=0)
        rate.set(ylabel="learning rate", xlabel="t, the fraction of the run that is done")
        if total_epochs:
            second = axes[0].secondary_xaxis("top", functions=(lambda x: x * total_epochs, lambda x: x / total_epochs))
            second.set_xlabel("epoch")
        handles = [Line2D([], [], color=colour[name], label=name) for name in curves]
        if marks:
            places = set(marks.values())
            label = f"inflection, t = {places.pop():.3g}" if len(places) == 1 else "inflections"
            handles.append(Line2D([], [], color=FAINT, label=label, **_MARK))
        figures.legend_below(figure, handles)


def plot_losses(path: Path, records: Records) -> None:
    """Draws each term's loss over the epochs, as it is and times its weight, the latter with their sum.

    Axes are logarithmic unless values are clearly negative; a value of zero leaves a gap there.

    Args:
      path: of the PNG file.
      records: as for `JsonlWriter`.

    Raises:
      UserError: if the file cannot be written.
    """
    names = list(dict.fromkeys(name for record in records for name in record.get("terms", {})))
    colour = figures.colours(names)
    epochs = [record["epoch"] for record in records]
    raw = {name: _series(records, "terms", name, "value") for name in names}
    weighted = {name: raw[name] * _series(records, "terms", name, "weight") for name in names}
    total = _series(records, "loss")
    with figures.saved(path, 10.0, 4.6) as figure:
        left, right = figure.subplots(1, 2)
        right.plot(epochs, total, label="total", **_line(total, INK) | {"linestyle": _DOTTED, "zorder": 5})
        for name in names:
            left.plot(epochs, raw[name], label=name, **_line(raw[name], colour[name]))
            right.plot(epochs, weighted[name], label=name, **_line(weighted[name], colour[name]))
        left.set(title="loss by term", ylabel="loss, mean of the epoch", xlabel="epoch")
        right.set(title="loss by term, times its weight", ylabel="weight × loss, mean of the epoch", xlabel="epoch")
        for axes, values in ((left, [*raw.values()]), (right, [*weighted.values(), total])):
            figures.logarithmic_if_positive(axes, np.concatenate([*values, np.zeros(0)]))
            _epoch_axis(axes, epochs)
        figures.legend_below(figure, right.get_legend_handles_labels()[0])


def plot_accuracies(path: Path, records: Records, others: Mapping[str, SupportsFloat | Records] | None = None) -> None:
    """Draws training and validation accuracy over the epochs, beside those of other networks.

    The mean over several seeds has a band of one standard deviation to either side.

    Args:
      path: of the PNG file.
      records: of the distilled student, as for `JsonlWriter`; epochs without validation leave no gap.
      others: by name, a test accuracy as a fraction (drawn as a level), or the records of another run, of which the
        validation accuracy is drawn, or without one the training accuracy.

    Raises:
      UserError: if the file cannot be written.
    """
    epochs = [record["epoch"] for record in records]
    with figures.saved(path, 8.0, 4.6) as figure:
        axes = figure.subplots()
        drawn = [
            _accuracy(axes, records, "training", "student", PALETTE[0], linestyle=_DOTTED, zorder=3),
            _accuracy(axes, records, "validation", "student", PALETTE[0], zorder=4),
        ]
        for i, (name, other) in enumerate((others or {}).items()):
            shade = _OTHERS[i % len(_OTHERS)]
            if isinstance(other, Sequence):
                validated = np.isfinite(_series(other, _ACCURACIES["validation"])).any()
                drawn.append(_accuracy(axes, other, "validation" if validated else "training", name, shade))
            else:
                level = float(other)
                axes.axhline(level, color=shade, linestyle=(0, (5, 2)), label=f"{name}, test: {level:.1%}")
                drawn.append(np.asarray([level]))
        finite = np.concatenate(drawn)
        finite = finite[np.isfinite(finite)]
        if finite.size:
            margin = max(0.02, 0.06 * float(np.ptp(finite)))
            axes.set_ylim(max(-0.02, finite.min() - margin), min(1.02, finite.max() + margin))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set(xlabel="epoch", ylabel="accuracy")
        _epoch_axis(axes, epochs)
        figures.legend_below(figure, axes.get_legend_handles_labels()[0])


def _series(records: Records, *place: str) -> np.ndarray:
    """Returns the number that stands at `place` in each record, NaN where there is none."""
    values = []
    for record in records:
        value: Any = record
        for name in place:
            value = value.get(name) if isinstance(value, Mapping) else None
        values.append(np.nan if value is None else float(value))
    return np.asarray(values, dtype=float)


def _line(values: np.ndarray, colour: str) -> dict[str, Any]:
    # A single point has no line to be seen by, and a few are worth seeing.
    return {"color": colour, "marker": "o" if np.isfinite(values).sum() <= 12 else None}


def _accuracy(axes: Axes, records: Records, part: str, name: str, colour: str, **style: Any) -> np.ndarray:
    """Draws the accuracy on the images of a `part`, with its deviation if any; returns what there must be room for."""
    epochs, values = np.asarray([record["epoch"] for record in records]), _series(records, _ACCURACIES[part])
    there = np.isfinite(values)
    if not there.any():
        return values
    epochs, values, deviation = epochs[there], values[there], _series(records, "std", _ACCURACIES[part])[there]
    spread = f" ± {100 * deviation[-1]:.1f}" if np.isfinite(deviation[-1]) else ""
    label = f"{name}, {part}: {100 * values[-1]:.1f}{spread}% at the end"
    axes.plot(epochs, values, label=label, **_line(values, colour) | style)
    if not np.isfinite(deviation).any():
        return values
    low, high = values - deviation, values + deviation
    axes.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    return np.concatenate([values, low, high])


def equal_curves(curves: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Returns the names of curves in groups that cannot be told apart in a plot."""
    groups: list[list[str]] = []
    for name, values in curves.items():
        equal = (group for group in groups if np.allclose(curves[group[0]], values, rtol=1e-3, atol=1e-6))
        group = next(equal, None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


def shade_stages(
    axes: Axes, stage: tuple[float, float], row: tuple[float, float] | None = None, room: float = 0.012
) -> None:
    """Shades and names the stages over the whole height of `axes`, or in the `row` from a place to another.

    A stage is named where it is wide enough: `room` for every letter, as a share of the run.
    """
    edges = np.clip([0.0, *stage, 1.0], 0, 1)
    for (name, shade), left, right in zip(_STAGES, edges[:-1], edges[1:], strict=True):
        text: dict[str, Any] = {"ha": "center", "fontsize": 9, "color": "#4a5a6a"}
        if right - left < room * len(name):
            name = ""  # would run into its neighbours
        if row is None:
            axes.axvspan(left, right, color=shade, linewidth=0)
            axes.text((left + right) / 2, 0.97, name, va="top", transform=axes.get_xaxis_transform(), **text)
        else:
            axes.broken_barh([(left, right - left)], (row[0] + 0.07, row[1] - row[0] - 0.14), color=shade, linewidth=0)
            axes.text((left + right) / 2, sum(row) / 2, name, va="center", **text)


def _row_height(names: Sequence[str]) -> float:
    return 0.4 + 0.6 * len(names)


def _stage_rows(axes: Axes, groups: Mapping[tuple[float, float], Sequence[str]], colour: Mapping[str, str]) -> None:
    top = 0.0
    for stage, names in groups.items():
        bottom = top + _row_height(names)
        shade_stages(axes, stage, row=(top, bottom))
        for i, name in enumerate(names):  # where other axes have their numbers
            place = top + 0.5 + 0.6 * i
            axes.text(-0.01, place, name, ha="right", va="center", fontsize=8.5, color=colour[name])
        top = bottom
    axes.set(ylim=(top, 0))
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(left=False, labelleft=False, bottom=False)


def _epoch_axis(axes: Axes, epochs: Sequence[int]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(set(epochs)) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
