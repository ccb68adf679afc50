"""What `fastbalance demo` found, as tables, sentences and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

_OURS, _OTHERS = "#c23b22", "#4a6f8a"
_METRICS = {"pr_auc": "PR-AUC", "balanced_accuracy": "Balanced accuracy"}


def show(results: dict[str, Any]) -> None:
    """Print the tables, and what follows from them."""
    console = Console(highlight=False)
    task = results["task"]
    console.print(
        f"\n[bold]Which flights are cancelled?[/] {sum(task['rows'].values()):,} flights of 2013, "
        f"{sum(task['cancelled'].values()):,} cancelled. Train / valid / test: {_slashed(task['days'])} whole days, "
        f"{_slashed(task['rows'])} rows. A perceptron, SGD with momentum, {task['steps']:,} steps in every arm; for "
        "each arm the learning rate with the best PR-AUC on the validation days.\n"
    )
    console.print(_feed_table(results["feeds"]), "")
    for comparison in results["comparisons"]:
        console.print(_arm_table(comparison, task), "")
        console.print(_difference_table(comparison), "")
        if not task["quick"]:
            console.print(f"[bold]{conclusion(comparison)}[/]\n")
        console.print(_rate_table(comparison, task["rates"]), "")
    if task["quick"]:
        console.print("A quick run: it shows that everything works, and nothing about the arms.\n", style="bold")
    console.print(
        f"±: 95 % intervals by Student's t over {task['seeds']} seeds (first parameters and order of the "
        "batches). They do not cover what other test days would show, and nothing is corrected for the number of "
        "comparisons.\n"
        "spread: standard deviation / mean of the minority's weight in the loss, from batch to batch; in brackets what "
        "the formula expects.",
        style="dim",
    )


def conclusion(comparison: dict[str, Any]) -> str:
    """One sentence: in which comparisons of the PR-AUC the interval of the difference leaves out zero."""
    verdicts: dict[str, list[str]] = {"above": [], "below": [], "around": []}
    for arm in comparison["arms"]:
        if "pr_auc_difference" in arm:
            low, high = arm["pr_auc_difference"]["interval"]
            verdicts["above" if low > 0 else "below" if high < 0 else "around"].append(arm["name"])
    words = {
        "above": "fastbalance is ahead of",
        "below": "fastbalance is behind",
        "around": "no difference is shown (the interval includes zero) to",
    }
    found = [f"{words[verdict]} {_listed(names)}" for verdict, names in verdicts.items() if names]
    return f"PR-AUC on these test days, batches of {comparison['batch_rows']}: {'; '.join(found)}."


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the figure: the two metrics for each arm, rows per second for each feed, spread for each arm."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    task = results["task"]
    chances = {"pr_auc": task["cancelled"]["test"] / task["rows"]["test"], "balanced_accuracy": 0.5}
    for ax, (metric, chance) in zip(axes[0], chances.items(), strict=True):
        _draw_metric(ax, results["comparisons"], metric, chance)
    _draw_feeds(axes[1, 0], results["feeds"])
    _draw_spread(axes[1, 1], results["comparisons"])
    figure.suptitle("Cancelled flights, New York 2013: balanced batches and the usual ways", fontweight="bold")
    figure.savefig(path, dpi=120)


def _table(title: str, first: str, *numbers: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _feed_table(feeds: Sequence[dict[str, Any]]) -> Table:
    table = _table("Feeding alone, without a model", "feed", "rows/s", "fastbalance is")
    ours = feeds[-1]["rows_per_s"]
    for feed in feeds:
        ratio = "" if feed is feeds[-1] else f"{ours / feed['rows_per_s']:,.1f} x"
        table.add_row(feed["name"], f"{feed['rows_per_s']:,.0f}", ratio)
    return table


def _arm_table(comparison: dict[str, Any], task: dict[str, Any]) -> Table:
    batch_rows = comparison["batch_rows"]
    natural = batch_rows * task["cancelled"]["train"] / task["rows"]["train"]
    title = f"Batches of {batch_rows}; cancelled flights in a natural one: {natural:.1f}"
    table = _table(title, "arm", "PR-AUC", "balanced acc.", "rate", "spread")
    for arm in comparison["arms"]:
        metrics = (_plus_minus(arm[metric]) for metric in _METRICS)
        spread = f"{arm['spread']:.3f} ({arm['expected_spread']:.3f})"
        table.add_row(arm["name"], *metrics, f"{arm['rate']:g}", spread)
    return table


def _difference_table(comparison: dict[str, Any]) -> Table:
    table = _table("fastbalance - arm, seed by seed", "arm", "PR-AUC", "balanced acc.")
    for arm in comparison["arms"]:
        if "pr_auc_difference" in arm:
            differences = (_plus_minus(arm[f"{metric}_difference"], "+.4f") for metric in _METRICS)
            table.add_row(arm["name"], *differences)
    return table


def _rate_table(comparison: dict[str, Any], rates: Sequence[float]) -> Table:
    title = f"Validation PR-AUC by learning rate, batches of {comparison['batch_rows']}"
    table = _table(title, "arm", *(f"{rate:g}" for rate in rates))
    for arm in comparison["arms"]:
        table.add_row(arm["name"], *(f"{value:.3f}" for value in arm["valid_pr_auc"]))
    return table


def _draw_metric(ax: Axes, comparisons: Sequence[dict[str, Any]], metric: str, chance: float) -> None:
    """A dot for each seed, and the interval of their mean; large batches above small ones."""
    names = [arm["name"] for arm in comparisons[0]["arms"]]
    for comparison, offset, marker in zip(comparisons, (-0.17, 0.17), "os", strict=True):
        for row, arm in enumerate(comparison["arms"]):
            color, (low, high) = _color(arm["name"]), arm[metric]["interval"]
            seeds = arm[metric]["seeds"]
            ax.plot(seeds, [row + offset] * len(seeds), marker, color=color, alpha=0.35, markersize=5)
            ax.plot([low, high], [row + offset] * 2, color=color, linewidth=2)
            ax.plot(arm[metric]["mean"], row + offset, marker, color=color, markersize=7, markeredgecolor="white")
        ax.plot([], [], marker, color="grey", label=f"batches of {comparison['batch_rows']}")
    ax.axvline(chance, color="grey", linestyle=":", linewidth=1.5, label="chance")
    _name_rows(ax, names)
    ax.set_title(f"{_METRICS[metric]} on the test days: higher is better", fontsize=10)
    ax.set_xlabel("pale: seeds; bold: mean and its 95 % interval over seeds")
    ax.legend(fontsize=8, loc="lower left")


def _draw_feeds(ax: Axes, feeds: Sequence[dict[str, Any]]) -> None:
    names = [feed["name"] for feed in feeds]
    bars = ax.barh(names, [feed["rows_per_s"] for feed in feeds], color=[_color(name) for name in names])
    ax.bar_label(bars, [f" {feed['rows_per_s'] / 1e6:.2g} M" for feed in feeds], fontsize=9)
    ax.set_xscale("log")
    ax.set_xlim(1e4, 5 * max(feed["rows_per_s"] for feed in feeds))
    _name_rows(ax, names)
    ax.set_title("Feeding alone, without a model: higher is better", fontsize=10)
    ax.set_xlabel("rows per second, logarithmic")


def _draw_spread(ax: Axes, comparisons: Sequence[dict[str, Any]]) -> None:
    names = [arm["name"] for arm in comparisons[0]["arms"]]
    for comparison, offset, alpha in zip(comparisons, (-0.2, 0.2), (1.0, 0.55), strict=True):
        rows = [row + offset for row in range(len(names))]
        label = f"batches of {comparison['batch_rows']}"
        spread = [arm["spread"] for arm in comparison["arms"]]
        ax.barh(rows, spread, 0.38, color=[_color(name) for name in names], alpha=alpha, label=label)
        expected = [arm["expected_spread"] for arm in comparison["arms"]]
        ax.plot(expected, rows, "|", color="black", markersize=12, markeredgewidth=2)
    ax.plot([], [], "|", color="black", markersize=10, markeredgewidth=2, label="by the formula")
    _name_rows(ax, names)
    ax.set_title("Spread of the minority's weight in the loss: lower is better", fontsize=10)
    ax.set_xlabel("standard deviation / mean, over the batches")
    ax.legend(fontsize=8, loc="lower right")


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)


def _color(name: str) -> str:
    return _OURS if name == "fastbalance" else _OTHERS


def _plus_minus(summary: dict[str, Any], form: str = ".3f") -> str:
    half = summary["interval"][1] - summary["mean"]
    return f"{summary['mean']:{form}} ± {half:{form.lstrip('+')}}"


def _listed(names: Sequence[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _slashed(numbers: dict[str, int]) -> str:
    return " / ".join(f"{n:,}" for n in numbers.values())
