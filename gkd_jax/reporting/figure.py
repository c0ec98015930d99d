"""What the plots share: size, style, colours, and a PNG file that is written whole or not at all."""

import contextlib
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from gkd_jax.reporting.files import Path, write_bytes

DPI = 144
INK, FAINT = "#222222", "#8a8a8a"
# Okabe & Ito's colours, which stay apart for colour-blind eyes; their yellow is too pale for a line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#6B6B6B")
_KNOWN = {"kd": 0, "wasserstein": 1, "gradient": 2, "ce": 7}  # these have the same colour in every run
_STYLE: dict[str, Any] = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.9,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
}


@contextlib.contextmanager
def saved(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yields a figure of `width` x `height` inches, which is written to the PNG file `path` at the end.

    Neither pyplot's figures nor the user's settings play a part.

    Raises:
      UserError: if the file cannot be written.
    """
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=DPI)
    write_bytes(path, content.getvalue())


def colours(names: Iterable[str]) -> dict[str, str]:
    """Returns a colour for each term, the same in every plot: by name, and where two names meet in one, the next."""
    chosen: dict[str, int] = {}
    for name in sorted(set(names), key=lambda name: (name not in _KNOWN, name)):
        start = _KNOWN.get(name, zlib.crc32(name.encode()))
        places = [(start + i) % len(PALETTE) for i in range(len(PALETTE))]
        chosen[name] = next((place for place in places if place not in chosen.values()), places[0])
    return {name: PALETTE[place] for name, place in chosen.items()}


def logarithmic(axes: Axes, lowest: float = 0.0) -> None:
    """Makes the y axis logarithmic, with plain numbers beside it, and at the bottom no lower than `lowest`."""
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    low = max(low, lowest)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if high > 100 * low:
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:  # too few powers of ten to read from
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))


def logarithmic_if_positive(axes: Axes, values: np.ndarray) -> None:
    """Makes the y axis logarithmic over five powers of ten at most, unless negative `values` would be lost."""
    values = values[np.isfinite(values)]
    largest = float(values.max(initial=0.0))
    if largest > 0 and values.min() > -0.01 * largest:  # a debiased divergence may dip a little below zero
        logarithmic(axes, lowest=1e-5 * largest)


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """Puts a legend under the axes, where it hides nothing."""
    if handles:
        columns = 6 if max(len(str(handle.get_label())) for handle in handles) < 24 else 2
        figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)))
