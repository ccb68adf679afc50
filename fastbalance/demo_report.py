"""What `fastbalance demo` found, as tables, sentences and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

_OURS, _OTHERS = "#c23b22", "#4a6f8a"
_METRICS = {"pr_auc": "PR-AUC", "balanced_accuracy": "balanced accuracy"}


def show(results: dict[str, Any]) -> None:
    """Print the tables, and what follows from them."""
    console = Console()
    task = results["task"]
    console.print(
        f"\n[bold]Which flights are cancelled?[/] {sum(task['rows'].values()):,} flights of 2013, "
        f"{sum(task['cancelled'].values()):,} cancelled; train, valid, test: {_slashed(task['days'])} whole days, "
        f"{_slashed(task['rows'])} rows.\nPerceptron, SGD with momentum, {task['steps']:,} steps in every arm, the "
        f"learning rate of the best validation PR-AUC.\n"
    )
    console.print(_feed_table(results["feeds"]))
    for comparison in results["comparisons"]:
        console.print(_arm_table(comparison, task))
        console.print(conclusion(comparison) + "\n", highlight=False)
        console.print(_rate_table(comparison, task["rates"]))
    console.print(
        f"Intervals: 95 %, by Student's t, over {task['seeds']} seeds (first parameters and order of the batches); the "
        "days are the same for all, and nothing is corrected for the number of comparisons. Spread: CV of the "
        "minority's weight in the loss from batch to batch, measured and by its formula.",
        style="dim",
        highlight=False,
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
    return f"PR-AUC in batches of {comparison['batch_rows']}: {'; '.join(found)}."


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the figure: the two metrics for each arm, rows per second for each feed, spread for each arm."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    for ax, metric in zip(axes[0], _METRICS, strict=True):
        _draw_metric(ax, results["comparisons"], metric)
    prevalence = results["task"]["cancelled"]["test"] / results["task"]["rows"]["test"]
    axes[0, 0].axvline(prevalence, color="grey", linestyle=":", linewidth=1)
    axes[0, 0].annotate("chance", (prevalence, 1), (3, -10), "data", "offset points", color="grey", fontsize=8,
                        annotation_clip=False)  # fmt: skip
    axes[0, 1].axvline(0.5, color="grey", linestyle=":", linewidth=1)
    _draw_feeds(axes[1, 0], results["feeds"])
    _draw_spread(axes[1, 1], results["comparisons"])
    figure.suptitle("Cancelled flights, New York 2013: balanced batches and the usual ways", fontweight="bold")
    figure.savefig(path, dpi=120)


def _feed_table(feeds: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Feeding alone, without a model", title_justify="left")
    table.add_column("feed")
    table.add_column("rows/s", justify="right")
    table.add_column("fastbalance is", justify="right")
    ours = feeds[-1]["rows_per_s"]
    for feed in feeds:
        ratio = "" if feed is feeds[-1] else f"{ours / feed['rows_per_s']:,.1f} x"
        table.add_row(feed["name"], f"{feed['rows_per_s']:,.0f}", ratio)
    return table


def _arm_table(comparison: dict[str, Any], task: dict[str, Any]) -> Table:
    batch_rows = comparison["batch_rows"]
    natural = batch_rows * task["cancelled"]["train"] / task["rows"]["train"]
    title = f"Batches of {batch_rows}: {natural:.1f} cancelled flights in a natural one, on average"
    table = Table(title=title, title_justify="left")
    for name in ("arm", "PR-AUC", "balanced acc.", "best rate", "spread", "formula", "fastbalance - arm, PR-AUC",
                 "balanced acc."):  # fmt: skip
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm in comparison["arms"]:
        differences = [f"{metric}_difference" for metric in _METRICS]
        table.add_row(
            arm["name"],
            *(_plus_minus(arm[metric]) for metric in _METRICS),
            f"{arm['rate']:g}",
            f"{arm['spread']:.3f}",
            f"{arm['expected_spread']:.3f}",
            *(_signed(arm[name]) if name in arm else "" for name in differences),
        )
    return table


def _rate_table(comparison: dict[str, Any], rates: Sequence[float]) -> Table:
    title = f"The same rate for all: PR-AUC on the validation days, batches of {comparison['batch_rows']}"
    table = Table(title=title, title_justify="left")
    table.add_column("arm")
    for rate in rates:
        table.add_column(f"rate {rate:g}", justify="right")
    for arm in comparison["arms"]:
        table.add_row(arm["name"], *(f"{value:.4f}" for value in arm["valid_pr_auc"]))
    return table


def _draw_metric(ax: Axes, comparisons: Sequence[dict[str, Any]], metric: str) -> None:
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
    _name_rows(ax, names)
    ax.set_title(f"{_METRICS[metric]} on the test days (higher is better)", fontsize=10)
    ax.set_xlabel(f"{_METRICS[metric]}: seeds, mean, 95 % interval")
    ax.legend(fontsize=8, loc="lower left")


def _draw_feeds(ax: Axes, feeds: Sequence[dict[str, Any]]) -> None:
    names = [feed["name"] for feed in feeds]
    bars = ax.barh(names, [feed["rows_per_s"] for feed in feeds], color=[_color(name) for name in names])
    ax.bar_label(bars, [f" {feed['rows_per_s'] / 1e6:.2g} M" for feed in feeds], fontsize=9)
    ax.set_xscale("log")
    ax.set_xlim(right=5 * max(feed["rows_per_s"] for feed in feeds))
    _name_rows(ax, names)
    ax.set_title("Feeding alone, without a model (higher is better)", fontsize=10)
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
    ax.set_title("Spread of the minority's weight from batch to batch (lower is better)", fontsize=10)
    ax.set_xlabel("standard deviation / mean")
    ax.legend(fontsize=8, loc="lower right")


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", alpha=0.25)


def _color(name: str) -> str:
    return _OURS if name == "fastbalance" else _OTHERS


def _plus_minus(summary: dict[str, Any]) -> str:
    return f"{summary['mean']:.4f} ± {summary['interval'][1] - summary['mean']:.4f}"


def _signed(summary: dict[str, Any]) -> str:
    low, high = summary["interval"]
    return f"{summary['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"


def _listed(names: Sequence[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _slashed(numbers: dict[str, int]) -> str:
    return " / ".join(f"{n:,}" for n in numbers.values())
