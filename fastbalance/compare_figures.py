"""The figures of the report of `compare`, as SVG that takes the colours of the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from io import StringIO
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .compare_verdict import OURS

# Colour, line and marker of an arm: lines differ also where colours do not reach. The colours are of middle lightness,
# so that they show on white and on black.
_STYLES = {
    "natural": ("#7d838d", "-", "s"),
    "weighted / B": ("#2f86c8", "--", "^"),
    "weighted / sum w": ("#8a72da", "-.", "v"),
    "WeightedRandomSampler": ("#2b9364", ":", "D"),
    OURS: ("#d9442f", "-", "o"),
    "fastbalance, sqrt": ("#c9761a", "--", "P"),
    "undersampled": ("#b8599a", "-.", "X"),
    "undersampled, weighted back": ("#8d7a3c", ":", "*"),
}
_SEEN_FROM = 0.05  # recall: below it precision is that of a few rows, and may be anything
_INK = "#010203"  # what figures draw text and axes with; it becomes the page's own colour


def figure(name: str, caption: str, draw: Callable[[Axes], None]) -> str:
    """A figure with axes, as HTML; `name` keeps its identifiers apart from those of the others."""

    def with_axes(ax: Axes) -> None:
        draw(ax)
        ax.tick_params(colors=_INK)
        for item in (ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()):
            item.set_color(_INK)
        for side, spine in ax.spines.items():
            spine.set(color=_INK, visible=side in ("left", "bottom"))

    label = f'role="img" aria-label="{escape(caption)}"'
    return f"<figure>{_svg(name, (4.2, 3.1), with_axes, label)}<figcaption>{escape(caption)}</figcaption></figure>"


def sample(name: str) -> str:
    """The line of an arm, for the key of the figures."""

    def draw(ax: Axes) -> None:
        ax.plot([0, 1, 2], [0, 0, 0], markevery=[1], **_line(name))
        ax.set_axis_off()

    return _svg(f"key-{list(_STYLES).index(name)}", (0.6, 0.2), draw, 'aria-hidden="true"')


def _svg(name: str, inches: tuple[float, float], draw: Callable[[Axes], None], attributes: str) -> str:
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9.5, "font.family": "sans-serif"}):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL).replace(
        _INK, "currentColor"
    )
    # Identifiers are looked up in the whole page.
    svg = re.sub(r'id="', f'id="{name}-', svg).replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    return svg.replace("<svg ", f"<svg {attributes} ", 1)


def draw_curves(arms: dict[str, Any], n_steps: int) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        for name, arm in arms.items():
            mean = arm["curve"].get("mean") or arm["curve"]["seeds"][0]
            ax.plot(np.linspace(0, n_steps, len(mean) + 1)[1:], mean, **_line(name))
        ax.set(xlabel="step", ylabel="PR-AUC")

    return draw


def draw_pr(arms: dict[str, Any]) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        curves = {name: np.asarray(arm["pr_curve"]["seeds"][0]) for name, arm in arms.items()}
        for name, curve in curves.items():
            ax.plot(*curve, markevery=0.2, **_line(name))
        top = max(precision[recall >= _SEEN_FROM].max() for recall, precision in curves.values())
        ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.1 * top))

    return draw


def draw_calibration(arms: dict[str, Any], key: str) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        points = [arm[key]["seeds"][0] for arm in arms.values()]
        top = max(max(map(max, each)) for each in points)
        ax.plot([0, top], [0, top], color=_INK, linewidth=0.7, linestyle=":")
        for name, each in zip(arms, points, strict=True):
            ax.plot(*each, **_line(name))
        ax.set(xlabel="probability said", ylabel="share that was true")

    return draw


def draw_spread(arms: dict[str, Any]) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        names = list(arms)[::-1]
        spreads = np.nan_to_num([arms[name]["step_spread"]["mean"] for name in names], posinf=0.0)
        bars = ax.barh([fill(name, 21) for name in names], spreads, color=[_STYLES[n][0] for n in names])
        ax.bar_label(bars, fmt="%.2f", padding=3, color=_INK)
        ax.set(xlabel="standard deviation / mean")
        ax.margins(x=0.15)

    return draw


def _line(name: str) -> dict[str, Any]:
    colour, line, marker = _STYLES[name]
    ours = name == OURS
    size = {"linewidth": 2.4 if ours else 1.3, "markersize": 5.5 if ours else 4, "zorder": 3 if ours else 2}
    return {"color": colour, "linestyle": line, "marker": marker, **size}
