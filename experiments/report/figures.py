"""The figures of a group: each a PNG file, with words for those who cannot see it and the runs that it shows."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from experiments.report import drawing, weights
from experiments.report.collect import Group, Run
from experiments.report.statistics import spread
from experiments.report.tables import MEASURES, compared, told, told_difference, told_p
from gkd_jax.reporting import figure as figures
from gkd_jax.reporting import plots
from gkd_jax.reporting.figure import FAINT, INK, PALETTE

FIGURES = "figures"
_STUDENT = PALETTE[1]
_SIGNIFICANT = 0.05
_TOGETHER, _AT_A_TIME = 7, 4  # lines in a panel of wall time, if that is all, and if there are more
_T = "t, the share of the run that is done"


class Picture(NamedTuple):
    """A figure of the report.

    Attributes:
      file: its name in the folder of figures.
      title: a few words.
      alt: what it shows, in words.
      caption: how to read it.
      runs: those that it shows.
    """

    file: str
    title: str
    alt: str
    caption: str
    runs: tuple[Run, ...]


def draw(group: Group, folder: pathlib.Path) -> list[Picture]:
    """Draws the figures of a group for which there is anything to draw into `folder`.

    Raises:
      UserError: if a file cannot be written.
    """
    makers: list[Callable[[Group, pathlib.Path], Picture | None]] = [differences, wall_time, measures, stages, terms]
    found = [make(group, folder) for make in makers]
    return [picture for picture in found if picture is not None]


def differences(group: Group, folder: pathlib.Path) -> Picture | None:
    """Draws every run's difference to the baseline with its interval."""
    shown = [item for item in compared(group) if item.comparison is not None]
    if group.baseline is None or not shown:
        return None
    file = f"{group.slug}-differences.png"
    with figures.saved(folder / file, drawing.WIDTH, 0.9 + 0.36 * len(shown)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=FAINT, linewidth=1.2, zorder=1)
        for place, (_, found, p) in enumerate(shown):
            assert found is not None
            clear = p is not None and p < _SIGNIFICANT
            axes.plot([found.low, found.high], [place, place], color=INK, linewidth=1.6, zorder=2)
            face = INK if clear else "white"
            axes.plot([found.difference], [place], "o", color=INK, markerfacecolor=face, markersize=7, zorder=3)
        drawing.rows_of(axes, [item.run.kind for item in shown])
        axes.set_xlabel(f"test accuracy, last epoch: difference to {group.baseline.kind}\n(percentage points)")
    alt = "; ".join(f"{i.run.kind}: {told_difference(i.comparison)}, p {told_p(i.p)}" for i in shown)
    return Picture(
        file,
        "Differences to the baseline",
        f"Difference in test accuracy to {group.baseline.kind}, percentage points, 95 % interval. {alt}.",
        "Points: mean difference on the same seeds; bars: its 95 % interval, not corrected for the number of "
        "comparisons; filled where Holm's p is below 0.05.",
        (group.baseline, *(item.run for item in shown)),
    )


def wall_time(group: Group, folder: pathlib.Path) -> Picture | None:
    """Draws accuracy over the seconds that training took: on validation images, or where none were kept in training."""
    kinds = {"val_accuracy": "validation", "train_accuracy": "training"}
    having = {field: [run for run in group.runs if np.isfinite(run.series(field)).any()] for field in kinds}
    field = next((field for field, runs in having.items() if runs), None)
    if field is None:
        return None
    shown, kind = having[field], kinds[field]
    file = f"{group.slug}-wall-time.png"
    seconds = [np.cumsum([record["seconds"] for record in run.records] - run.overhead) for run in shown]
    unit, name = (60.0, "minutes") if max(row[-1] for row in seconds) > 600 else (1.0, "seconds")
    rows = [run.series(field) for run in shown]
    if len(shown) <= _TOGETHER:
        parts = [shown]
    else:  # too many lines for one eye: some at a time, each time beside the baseline
        others = [run for run in shown if run is not group.baseline]
        parts = [others[i : i + _AT_A_TIME] for i in range(0, len(others), _AT_A_TIME)]
        if group.baseline in shown:
            parts = [[group.baseline, *part] for part in parts]
    xlabel = f"{name} of training, all seeds together"
    with drawing.panels(folder / file, [""] * len(parts), 3.8, xlabel, sharex=True, sharey=True) as (_, axes):
        for one, part in zip(axes, parts, strict=True):
            place = 0
            for run in part:
                style = {"color": INK, "linestyle": "-"} if run is group.baseline else drawing.line(place)
                place += run is not group.baseline
                where = shown.index(run)
                drawing.band(one, seconds[where] / unit, rows[where], run.kind, style)
            one.legend(loc="lower right", fontsize=8)
            one.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes[0].set(ylabel=f"{kind} accuracy", ylim=_high(rows))
        axes[0].set_xlim(left=0)
    ends = "; ".join(
        f"{run.kind}: {told(spread([100 * v for v in row[:, -1] if np.isfinite(v)]))} % after {x[-1]:,.0f} s"
        for run, row, x in zip(shown, rows, seconds, strict=True)
    )
    of = (
        "" if kind == "validation" else "No images were kept for validation: this is the mean of each epoch's batches. "
    )
    return Picture(
        file,
        f"{kind.capitalize()} accuracy over wall time",
        f"{kind.capitalize()} accuracy over the time that training took. At the end: {ends}.",
        f"{of}Lines: mean over seeds; bands: one standard deviation. Times are without compilation and without the "
        "filling of the teacher's cache, which the first cell pays for all (with both for runs that did not record "
        "them apart); other work on the same machine makes them longer. The baseline is black. The accuracies of the "
        "first epochs may lie below the axis.",
        tuple(shown),
    )


def _high(rows: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns limits that show where runs differ, bands and all: from what they had after a fifth of their epochs."""
    bands = []
    for values in rows:
        late = values[:, values.shape[1] // 5 :]
        std = late.std(0, ddof=1) if len(late) > 1 else 0.0
        bands += [late.mean(0) - std, late.mean(0) + std]
    low, high = (float(find(np.concatenate(bands))) for find in (np.nanmin, np.nanmax))
    margin = max(0.005, 0.05 * (high - low))
    return low - margin, min(high + margin, 1.005)


def measures(group: Group, folder: pathlib.Path) -> Picture | None:
    """Draws what the summary has beside the accuracy, seed by seed."""
    fields = [field for field in MEASURES if any(run.values(field) for run in group.runs)]
    if not fields:
        return None
    shown = tuple(run for run in group.runs if any(run.values(field) for field in fields))
    file = f"{group.slug}-measures.png"
    titles = [", ".join(filter(None, (MEASURES[field].head, MEASURES[field].better))) for field in fields]
    with drawing.panels(folder / file, titles, 0.9 + 0.3 * len(shown), sharey=True) as (_, axes):
        for one, field in zip(axes, fields, strict=True):
            for place, run in enumerate(shown):
                values = [MEASURES[field].factor * value for value in run.values(field).values()]
                style: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.0, "markersize": 5}
                one.plot(values, [place] * len(values), "o", color=PALETTE[0], alpha=0.7, **style)
                if values:
                    one.plot([np.mean(values)], [place], "|", color=INK, markersize=15, markeredgewidth=2)
            drawing.rows_of(one, [run.kind for run in shown])
    said = []
    for field in fields:
        means = {run.kind: spread([MEASURES[field].factor * v for v in run.values(field).values()]) for run in shown}
        numbers = "; ".join(f"{kind} {told(found, MEASURES[field].digits)}" for kind, found in means.items())
        said.append(f"{MEASURES[field].head}: {numbers}.")
    return Picture(
        file,
        "Beyond the accuracy: " + ", ".join(MEASURES[field].head.partition(" (")[0] for field in fields),
        " ".join(said),
        "On the test images, last epoch. Circles: seeds; bars: their mean.",
        shown,
    )


def stages(group: Group, folder: pathlib.Path) -> Picture | None:
    """Draws the growth curves of weights with their stages beside the student's training accuracy."""
    staged = {run.name: {k: c for k, c in weights.curves(run).items() if c.bounds} for run in group.runs}
    shown = [run for run in group.runs if staged[run.name]]
    if not shown:
        return None
    file = f"{group.slug}-stages.png"
    said = []
    with drawing.panels(folder / file, [run.kind for run in shown], xlabel=_T, sharex=True, sharey=True) as (
        figure,
        axes,
    ):
        for one, run in zip(axes, shown, strict=True):
            of_run = staged[run.name]
            first = next(iter(of_run.values()))
            assert first.bounds is not None
            drawing.stages(one, first.bounds)
            for curve in of_run.values():
                peak = float(np.nanmax(curve.mean)) or 1.0
                one.plot(curve.t, curve.mean / peak, color=PALETTE[0], zorder=3)
                if curve.std is not None:
                    low, high = (curve.mean - curve.std) / peak, (curve.mean + curve.std) / peak
                    one.fill_between(curve.t, low, high, color=PALETTE[0], alpha=0.14, linewidth=0)
            epochs = np.asarray([record["epoch"] for record in run.records])
            # An epoch's accuracy is the mean over its steps
            drawing.band(one, (epochs - 0.5) / epochs[-1], run.series("train_accuracy"), None, {"color": _STUDENT})
            one.set(xlim=(0, 1), ylim=(-0.02, 1.18), yticks=(0, 0.25, 0.5, 0.75, 1))
            said.append(f"{run.kind}: rapid from {first.bounds[0]:.2f} to {first.bounds[1]:.2f}")
        drawing.legend(
            figure,
            [
                Line2D([], [], color=PALETTE[0], label="weight, as a share of its highest"),
                Line2D([], [], color=_STUDENT, label="student's training accuracy"),
            ],
        )
    return Picture(
        file,
        "Growth curves and the student's own",
        "Weights with stages over the run, as shares of their highest value, beside the student's training accuracy. "
        f"{'; '.join(said)}.",
        "Shaded: the stages of growth, rapid growth and saturation, of a run's first term that has any. The accuracy "
        "is that on the training images, mean of each epoch and over seeds, with a band of one standard deviation. "
        "A weight that is fitted while training is as recorded at the end of every epoch, its stages are where they "
        "changed, on average over the seeds.",
        tuple(shown),
    )


def terms(group: Group, folder: pathlib.Path) -> Picture | None:
    """Draws the weight of every term over the run; runs with the same weights share a panel."""
    found = {run.name: weights.curves(run) for run in group.runs}
    shared: list[list[Run]] = []
    for run in group.runs:
        same = next((runs for runs in shared if _equal(found[runs[0].name], found[run.name])), None)
        if same is None:
            shared.append([run])
        else:
            same.append(run)
    if not any(found.values()):
        return None
    file = f"{group.slug}-weights.png"
    colour = figures.colours([name for curves in found.values() for name in curves])
    titles = ["; ".join(run.kind for run in runs) for runs in shared]
    with drawing.panels(folder / file, titles, 1.9, xlabel=_T, sharex=True) as (figure, axes):
        for one, runs in zip(axes, shared, strict=True):
            curves = found[runs[0].name]
            t = np.linspace(0.0, 1.0, 101)
            groups = plots.equal_curves({name: np.interp(t, curve.t, curve.mean) for name, curve in curves.items()})
            _lines(one, curves, groups, colour)
            every = np.concatenate([curve.mean for curve in curves.values()] or [np.zeros(1)])
            highest = [float(np.nanmax(curve.mean)) for curve in curves.values()]
            if len(highest) > 1 and min(highest) > 0 and max(highest) > 20 * min(highest):
                figures.logarithmic_if_positive(one, every)
            else:
                one.set_ylim(-0.04 * np.nanmax(every), 1.08 * np.nanmax(every))
            one.set_xlim(0, 1)
        drawing.legend(figure, [Line2D([], [], color=shade, label=name) for name, shade in colour.items()])
    said = []
    for title, runs in zip(titles, shared, strict=True):
        ends = ", ".join(f"{n} {c.mean[0]:.3g} to {c.mean[-1]:.3g}" for n, c in found[runs[0].name].items())
        said.append(f"{title}: {ends}")
    return Picture(
        file,
        "Weight of each term",
        f"Effective weight of each term over the run, from start to end. {'. '.join(said)}.",
        "What each loss is multiplied by: its own factor times the schedule, and for a balanced term times the ratio "
        "that brings it to the size of the cross-entropy. Equal weights are one line of alternating "
        "colours; the axis is logarithmic where weights differ twentyfold.",
        group.runs,
    )


def _lines(axes: Axes, curves: dict[str, weights.Curve], groups: list[list[str]], colour: dict[str, str]) -> None:
    for members in groups:
        for place, name in enumerate(members):
            curve = curves[name]
            dashes: Any = "-" if len(members) == 1 else (6 * place, (6, 6 * (len(members) - 1)))
            axes.plot(curve.t, curve.mean, color=colour[name], linestyle=dashes, zorder=3)
            if curve.std is not None:
                low, high = curve.mean - curve.std, curve.mean + curve.std
                axes.fill_between(curve.t, low, high, color=colour[name], alpha=0.14, linewidth=0)


def _equal(a: dict[str, weights.Curve], b: dict[str, weights.Curve]) -> bool:
    return list(a) == list(b) and all(
        len(a[name].t) == len(b[name].t)
        and np.allclose(a[name].mean, b[name].mean, rtol=1e-3, atol=1e-6, equal_nan=True)
        for name in a
    )
