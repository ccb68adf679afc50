"""The figures of the report of `compare`, as SVG that takes the colours of the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from io import StringIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .compare_verdict import OURS

# One colour an arm, of middle lightness: they show on white and on black.
COLOURS = {
    "natural, threshold 0.5": "#8a8f98",
    "natural, tuned threshold": "#8a8f98",
    "natural, logits adjusted": "#5f7fa8",
    "weighted / B": "#2f8fd0",
    "weighted / sum w": "#7b61d1",
    "WeightedRandomSampler": "#2e9e6b",
    "fastbalance, uniform": "#d9442f",
    "fastbalance, sqrt": "#e08a1e",
    "undersampled": "#b0518f",
    "undersampled, weighted back": "#8d7a3c",
}
_INK = "#010203"  # what figures draw text and axes with; it becomes the page's own colour


def figure(name: str, caption: str, draw: Callable[[Axes], None]) -> str:
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "font.family": "sans-serif"}):
        figure = Figure(figsize=(4.6, 3.3), layout="constrained")
        FigureCanvasSVG(figure)
        ax = figure.add_subplot()
        draw(ax)
        ax.tick_params(colors=_INK)
        for item in (ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()):
            item.set_color(_INK)
        for side, spine in ax.spines.items():
            spine.set(color=_INK, visible=side in ("left", "bottom"))
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL).replace(
        _INK, "currentColor"
    )
    # Identifiers are looked up in the whole page.
    svg = re.sub(r'id="', f'id="{name}-', svg).replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def draw_curves(arms: dict[str, Any], n_steps: int) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        for name, arm in arms.items():
            mean = arm["curve"].get("mean") or arm["curve"]["seeds"][0]
            ax.plot(np.linspace(0, n_steps, len(mean) + 1)[1:], mean, **_line(name))
        ax.set(xlabel="step", ylabel="PR-AUC")

    return draw


def draw_pr(arms: dict[str, Any]) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        for name, arm in arms.items():
            ax.plot(*arm["pr_curve"]["seeds"][0], **_line(name))
        ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, None))

    return draw


def draw_calibration(arms: dict[str, Any], key: str) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        points = [arm[key]["seeds"][0] for arm in arms.values()]
        top = max(max(map(max, each)) for each in points)
        ax.plot([0, top], [0, top], color=_INK, linewidth=0.7, linestyle=":")
        for name, each in zip(arms, points, strict=True):
            ax.plot(*each, marker="o", markersize=2.5, **_line(name))
        ax.set(xlabel="probability said", ylabel="share that was true")

    return draw


def draw_spread(arms: dict[str, Any]) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        names = list(arms)[::-1]
        spreads = [arms[name]["step_spread"]["mean"] for name in names]
        ax.barh(names, np.nan_to_num(spreads, posinf=0.0), color=[COLOURS[name] for name in names])

    return draw


def _line(name: str) -> dict[str, Any]:
    ours = name == OURS
    return {"color": COLOURS[name], "linewidth": 2.2 if ours else 1.2, "zorder": 3 if ours else 2}
