"""A figure as an SVG that any page shows alike, on white, and that says which data it was made from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from sklearn.isotonic import isotonic_regression

WIDTH_INCHES = 8.6  # as many as a page of GitHub shows without scaling
# Told apart also by who does not see red or green; each has a marker of its own besides.
STYLES = {
    "fastbalance": ("#d55e00", "o"),
    "weighted / B": ("#0072b2", "s"),
    "weighted / sum w": ("#aa4499", "D"),
    "WeightedRandomSampler": ("#117733", "^"),
    "natural, logits adjusted": ("#555555", "v"),
}
_SETTINGS = {
    "svg.fonttype": "path",  # the reader's fonts are not known, and labels must not run into each other
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 11,
    "legend.columnspacing": 1.0,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handletextpad": 0.3,
    "lines.linewidth": 1,
    "lines.markersize": 5,
    "xtick.minor.bottom": False,
    "ytick.minor.left": False,
}
_DIGEST = re.compile(r"data sha256 ([0-9a-f]{64})")
_DECIMALS = re.compile(r"\b([1-9]\d*\.\d\d)\d+")  # of coordinates: factors below 1 scale letters

Data = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A figure: what it takes from the results, as values that JSON can hold, and how that is drawn."""

    data: Callable[[], Data]
    draw: Callable[[Figure, Data], None]
    height_inches: float


def digest(data: Data) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def digest_in(svg: str) -> str | None:
    """The digest of the data that a file was made from."""
    found = _DIGEST.search(svg)
    return found and found[1]


def svg_of(name: str, plot: Plot, data: Data) -> str:
    with rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_INCHES, plot.height_inches), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        plot.draw(figure, data)
        text = StringIO()
        about = {"Date": None, "Creator": None, "Description": f"data sha256 {digest(data)}"}
        figure.savefig(text, format="svg", metadata=about)
    head, drawing = text.getvalue().split("</metadata>")
    lines = (head + "</metadata>" + _DECIMALS.sub(r"\1", drawing)).splitlines()  # a hundredth of a point is enough
    return "\n".join(line.rstrip() for line in lines) + "\n"


def style(arm: str) -> dict[str, str]:
    colour, marker = STYLES.get(arm, ("#888888", "x"))
    return {"color": colour, "marker": marker}


def name_lines(ax: Axes, ends: Mapping[str, tuple[float, str]], apart: float) -> None:
    """Write names right of the axes, level with the ends of their lines: y and colour by name.

    Names that are closer than `apart`, a part of the height of the axes, are moved, as little as possible.
    """
    to_axes = ax.transData + ax.transAxes.inverted()
    edge = ax.get_xlim()[1]
    named = sorted((float(to_axes.transform((edge, y))[1]), name, colour) for name, (y, colour) in ends.items())
    steps = apart * np.arange(len(named))
    levels = isotonic_regression(np.array([level for level, *_ in named]) - steps) + steps
    for level, (_, name, colour) in zip(levels, named, strict=True):
        ax.annotate(name, (1.015, level), xycoords="axes fraction", color=colour, va="center", annotation_clip=False)


def named_ticks(ax: Axes, values: Sequence[float]) -> None:
    ax.set_xticks(values, [f"{value:g}" for value in values])


def in_words(times: float) -> str:
    return f"{times:.0f}" if times >= 9.5 else f"{times:.2g}"
