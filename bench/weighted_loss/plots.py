"""The figures of docs/why-resample.md, drawn from the kept results alone; `why.py` makes and checks them.

A figure takes its data from the results, and its title from its data. The file keeps a digest of the data, so that
one that was made from other results is found without drawing it again. Points are measured, lines without points are
formulas.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import _formulas
from ._kept import findings, grid, interval
from ._svg import WIDTH_INCHES, Data, Plot, digest, digest_in, in_words, name_lines, named_ticks, style, svg_of

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
OURS, WEIGHTED, IID = "fastbalance", "weighted / B", "WeightedRandomSampler"
OTHERS = (WEIGHTED, "weighted / sum w", IID, "natural, logits adjusted")
OPTIMISERS = {"sgd": "SGD", "momentum": "momentum", "adam": "Adam"}


def stale(folder: Path = FIGURES) -> list[str]:
    """Files that are missing, or were made from other results."""
    found = []
    for name, plot in PLOTS.items():
        path = folder / f"{name}.svg"
        if not path.exists() or digest_in(path.read_text()) != digest(plot.data()):
            found.append(path.name)
    return found


def write(folder: Path = FIGURES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in PLOTS.items():
        (folder / f"{name}.svg").write_text(svg_of(name, plot, plot.data()))


def dispersion_data() -> Data:
    pattern = r"f ([\d.]+)%, B (\d+): CV of the mass, (.+)"
    found = [(re.fullmatch(pattern, row["quantity"]), row["measured"]) for row in findings("e01")]
    return {"points": [[float(m[1]) / 100, int(m[2]), m[3], cv] for m, cv in found if m]}


def draw_dispersion(figure: Figure, data: Data) -> None:
    ax = figure.add_subplot()
    cv = {(f, rows, arm): value for f, rows, arm, value in data["points"]}
    shares, rows = (sorted({key[k] for key in cv}) for k in (0, 1))
    bottom, line, ends = 0.02, np.geomspace(rows[0], rows[-1], 50), {}
    ax.set(xscale="log", yscale="log", xlim=(rows[0] * 0.85, rows[-1] * 1.15), ylim=(bottom, 12))
    cases = [(f, "weighted", f, WEIGHTED, f"weighted, f = {100 * f:g} %") for f in shares]
    for f, arm, share, styled, name in [*cases, (shares[0], IID, 0.5, IID, IID)]:
        colour = style(styled)["color"]
        ax.plot(line, [_formulas.mass_cv(share, b) for b in line], color=colour)
        ax.plot(rows, [cv[f, b, arm] for b in rows], linestyle="", **style(styled))
        ends[name] = (cv[f, rows[-1], arm], colour)
    ours = max(cv[f, b, OURS] for f in shares for b in rows)
    ax.plot(rows, [max(ours, bottom)] * len(rows), linestyle="", clip_on=False, **style(OURS))
    ends[f"fastbalance: {ours:g}"] = (max(ours, bottom), style(OURS)["color"])
    name_lines(ax, ends, 0.07)
    times = (cv[0.01, 16, "weighted"] / cv[0.01, 16, IID]) ** 2
    ax.set_title(f"At f = 1 % a weighted loss needs {times:.0f} times the batch to be as even as {IID}")
    ax.set(xlabel="rows of a batch, B", ylabel="spread of the minority's mass\n(standard deviation / mean)")
    named_ticks(ax, rows)


def stable_data() -> Data:
    found = [(re.fullmatch(r"well, B (\d+): (.+)", row["quantity"]), row["measured"]) for row in findings("e03")]
    return {"points": [[int(m[1]), m[2], step] for m, step in found if m]}


def draw_stable(figure: Figure, data: Data) -> None:
    ax = figure.add_subplot()
    step = {(rows, arm): value for rows, arm, value in data["points"]}
    rows = sorted({key[0] for key in step})
    line, ends = np.geomspace(rows[0], rows[-1], 80), {}
    ax.set(xscale="log", yscale="log", xlim=(rows[0] * 0.8, rows[-1] * 1.25), ylim=(0.03, 6))
    for arm, formula in ((WEIGHTED, "weighted"), ("iid resampling", "iid"), (OURS, "fixed")):
        name = IID if formula == "iid" else arm
        ax.plot(line, [_formulas.stable_step(formula, 0.01, b) for b in line], color=style(name)["color"])
        measured = [b for b in rows if (b, arm) in step]
        ax.plot(measured, [step[b, arm] for b in measured], linestyle="", **style(name))
        ends[name] = (step[rows[-1], arm], style(name)["color"])
    name_lines(ax, ends, 0.08)
    times = step[16, OURS] / step[16, WEIGHTED]
    ax.set_title(f"With 16 rows a batch, f = 1 %, a weighted loss diverges at a {in_words(times)} times smaller rate")
    ax.set(xlabel="rows of a batch, B", ylabel="largest stable learning rate")
    named_ticks(ax, rows)


RATES = {
    "each at its best rate": "Loss minus fastbalance's, each at its best rate",
    "all at fastbalance's best rate": "Loss minus fastbalance's, both at fastbalance's best rate",
}


def gap_data() -> Data:
    return {
        told: [[row["optimiser"], row["B f"], arm, *interval(row[arm])] for row in grid("e13", title) for arm in OTHERS]
        for told, title in RATES.items()
    }


def draw_gap(figure: Figure, data: Data) -> None:
    panels = figure.subplots(len(OPTIMISERS), len(data), sharex=True, sharey=True)
    for down, optimiser in enumerate(OPTIMISERS):
        for across, rates in enumerate(data):
            ax = panels[down, across]
            ax.axhspan(-0.005, 0.005, color="#e4e4e4", linewidth=0)
            ax.axhline(0, color="#999999", linewidth=0.7)
            for arm in OTHERS:
                of = [row for row in data[rates] if row[0] == optimiser and row[2] == arm]
                _, share, _, gap, half = zip(*of, strict=True)
                ax.errorbar(share, gap, half, linestyle="", markersize=3.5, elinewidth=0.8, label=arm, **style(arm))
            ax.set(xscale="log")
            ax.set_yscale("symlog", linthresh=0.01)
            ax.set_title(f"{OPTIMISERS[optimiser]}, {rates}")
    for ax in panels[-1]:
        ax.set_xlabel("minority rows expected in a batch, B f")
    panels[1, 0].set_ylabel("balanced loss minus fastbalance's (grey: counts as none)")
    ticks = [-0.01, 0, 0.01, 0.1, 1]
    panels[0, 0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(OTHERS))
    best = [row for row in data["each at its best rate"] if row[2] == WEIGHTED]
    worse = {few: [gap > half for _, share, _, gap, half in best if (share < 1) is few] for few in (True, False)}
    few, many = (f"{sum(of)} of {len(of)}" for of in worse.values())
    title = f"weighted / B is worse than fastbalance in {few} settings with B f < 1, in {many} others (best rates)"
    figure.suptitle(title)


def rate_data() -> Data:
    rows = grid("e13", "Loss above the best possible, by rate")
    keys = ("optimiser", "B f", "rate")
    return {"points": [[*(row[k] for k in keys), arm, *interval(row[arm])] for row in rows for arm in (OURS, *OTHERS)]}


def draw_rate(figure: Figure, data: Data) -> None:
    points = data["points"]
    shares = sorted({row[1] for row in points})
    panels = figure.subplots(len(OPTIMISERS), len(shares), sharey=True)
    best: dict[tuple[str, float, str], float] = {}
    for down, optimiser in enumerate(OPTIMISERS):
        for across, share in enumerate(shares):
            ax = panels[down, across]
            ax.set(xscale="log", yscale="log", ylim=(2e-3, 3))
            for arm in (OURS, *OTHERS):
                of = [row[2:] for row in points if row[:2] == [optimiser, share] and row[3] == arm]
                rates, _, losses, halves = zip(*of, strict=True)
                ax.errorbar(rates, losses, halves, markersize=3.5, label=arm, **style(arm))
                best[optimiser, share, arm] = rates[int(np.argmin(losses))]
            ax.set_title(f"{OPTIMISERS[optimiser]}, B f = {share:.2g}")
    for ax in panels[-1]:
        ax.set_xlabel("learning rate")
    panels[1, 0].set_ylabel("balanced loss above the best possible")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=1 + len(OTHERS))
    times = [best["sgd", share, OURS] / best["sgd", share, WEIGHTED] for share in shares]
    told = ", ".join(f"{in_words(t)} at B f = {share:.2g}" for t, share in zip(times, shares, strict=True))
    figure.suptitle(f"SGD: fastbalance's best rate over that of weighted / B is {told}")


def coverage_data() -> Data:
    pattern = r"majority seen after (\d+) epochs, (.+)"
    found = [(re.fullmatch(pattern, row["quantity"]), row["measured"]) for row in findings("e06")]
    return {"points": [[int(m[1]), m[2], seen] for m, seen in found if m]}


def draw_coverage(figure: Figure, data: Data) -> None:
    ax = figure.add_subplot()
    seen = {(epochs, arm): value for epochs, arm, value in data["points"]}
    epochs = sorted({key[0] for key in seen})
    line = np.linspace(0, epochs[-1], 200)
    iid = [_formulas.coverage(e, 0.01, 100_000) for e in line]
    for arm, values, at in ((OURS, np.minimum(1, 0.5 * line / 0.99), (2.2, 1.04)), (IID, iid, (2.3, 0.6))):
        ax.plot(line, values, color=style(arm)["color"])
        ax.plot(epochs, [seen[e, arm] for e in epochs], linestyle="", clip_on=False, **style(arm))
        ax.annotate(arm, at, color=style(arm)["color"])
    told = " and ".join(f"{seen[2, arm]:.0%} ({arm})" for arm in (OURS, IID))
    ax.set_title(f"Two balanced epochs show {told} of the majority")
    ax.set(xlabel="epochs", ylabel="share of the majority seen", xlim=(0, epochs[-1]), ylim=(0, 1.12))


def steps_data() -> Data:
    keys = ("B f", "arm", "came to it", "steps", "low", "high")
    to_target = grid("e17", "To the target, momentum, each at its best rate")
    even = grid("e17", "The steps at the best rate")
    return {
        "steps": [[row[key] for key in keys] for row in to_target],
        "spread": [[row[key] for key in ("optimiser", "B f", "arm", "spread")] for row in even],
    }


def draw_steps(figure: Figure, data: Data) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    draw_to_target(left, data["steps"])
    draw_spread(right, data["spread"])
    for ax, label in ((left, "minority rows expected in a batch, B f"), (right, "B f")):
        ax.set_xlabel(label)
        named_ticks(ax, sorted({row[0] for row in data["steps"]}))
    steps = {(row[0], row[1]): row for row in data["steps"]}

    def times(share: float) -> str:
        theirs, ours = steps[share, WEIGHTED], steps[share, OURS]
        return f"{'' if all_came(theirs[2]) else 'at least '}{in_words(theirs[3] / ours[3])} at B f = {share:g}"

    shares = sorted({share for share, _ in steps})
    figure.suptitle(f"Steps of weighted / B over those of fastbalance: {times(shares[0])}, {times(shares[-1])}")


def all_came(told: str) -> bool:
    """Whether "9 of 10" are all."""
    came, runs = told.split(" of ")
    return came == runs


def draw_to_target(ax: Axes, rows: list[list[Any]]) -> None:
    ends = {}
    ax.set(xscale="log", yscale="log", ylabel="steps to the target")
    for arm in (OURS, *OTHERS):
        share, _, came, steps, low, high = zip(*(row for row in rows if row[1] == arm), strict=True)
        error = [np.subtract(steps, low), np.subtract(high, steps)]
        ax.errorbar(share, steps, error, **style(arm) | {"marker": ""})
        for x, y, told in zip(share, steps, came, strict=True):
            ax.plot(x, y, markerfacecolor=style(arm)["color"] if all_came(told) else "white", **style(arm))
        ends[arm] = (steps[-1], style(arm)["color"])
    name_lines(ax, ends, 0.065)
    ax.set_title("Momentum (hollow: some runs never came)")


def draw_spread(ax: Axes, rows: list[list[Any]]) -> None:
    ax.set(xscale="log", yscale="log", ylabel="standard deviation / mean")
    for arm, level in ((WEIGHTED, 0.95), (OURS, 0.88)):
        ax.annotate(arm, (0.98, level), xycoords="axes fraction", ha="right", color=style(arm)["color"])
        for optimiser, dashes, lift in (("sgd", "-", 0), ("momentum", "--", -3), ("adam", ":", 3)):
            of = [row for row in rows if row[0] == optimiser and row[2] == arm]
            _, share, _, spread = zip(*of, strict=True)
            ax.plot(share, spread, linestyle=dashes, markersize=3.5, **style(arm))
            at = dict(xytext=(-6, lift), textcoords="offset points", ha="right", va="center", fontsize=8)
            ax.annotate(OPTIMISERS[optimiser], (share[0], spread[0]), color=style(arm)["color"], **at)
    ax.set_xlim(share[0] / 9, share[-1] * 1.4)
    ticks = (0.2, 0.5, 1, 2)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_title("Spread of the steps' lengths")


def tables_data() -> Data:
    """Differences on real tables, whatever tables, metrics and rules for the rate e10 has; of the common arms.

    Raises:
        KeyError: e10 has no such quantity.
    """
    pattern = r"(?P<where>.+?): (?P<metric>\w+)(?:(?:,| at) (?P<rates>.+?))?, fastbalance minus (?P<arm>.+)"
    found = [(re.fullmatch(pattern, row["quantity"]), row) for row in findings("e10")]
    rows = [[*m.groups(default=""), row["measured"], row["low"], row["high"]] for m, row in found if m]
    rows = [row for row in rows if row[3] in (*OTHERS, "natural")]
    if not rows:
        raise KeyError("e10: no quantity 'TABLE: METRIC, fastbalance minus ARM'")
    metrics = [row[1] for row in rows]
    chosen = "pr_auc" if "pr_auc" in metrics else metrics[0]
    return {"metric": chosen, "rows": [row for row in rows if row[1] == chosen]}


def draw_tables(figure: Figure, data: Data) -> None:
    rows, metric = data["rows"], data["metric"].replace("_", "-").replace("pr-auc", "PR-AUC")
    places, rules, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in (0, 2, 3))
    figure.set_size_inches(WIDTH_INCHES, 1.4 + 0.15 * len(places) * len(arms))
    panels = np.atleast_1d(figure.subplots(1, len(rules), sharey=True, sharex=True))
    for ax, rule in zip(panels, rules, strict=True):
        ax.axvline(0, color="#999999", linewidth=0.7)
        of_rule = [row for row in rows if row[2] == rule]
        for place, _, _, arm, value, low, high in of_rule:
            y = places.index(place) + 0.7 * ((arms.index(arm) + 0.5) / len(arms) - 0.5)
            ax.errorbar(value, y, xerr=[[value - low], [high - value]], **style(arm))
        above, below = sum(row[5] > 0 for row in of_rule), sum(row[6] < 0 for row in of_rule)
        ax.set_title(f"{f'{rule}: ' if rule else ''}higher in {above}, lower in {below} of {len(of_rule)}")
        ax.set_xlabel(f"{metric}, fastbalance minus the other")
    panels[0].set_yticks(range(len(places)), places)
    panels[0].set_ylim(len(places) - 0.4, -0.6)
    for arm in arms:
        panels[0].plot([], [], linestyle="", label=arm, **style(arm))
    figure.legend(loc="outside lower center", ncols=min(len(arms), 5))
    figure.suptitle(f"{metric} of fastbalance against that of other arms, on real tables")


PLOTS = {
    "dispersion": Plot(dispersion_data, draw_dispersion, 3.4),
    "stable_step": Plot(stable_data, draw_stable, 3.2),
    "gap": Plot(gap_data, draw_gap, 7.4),
    "loss_by_rate": Plot(rate_data, draw_rate, 7.4),
    "coverage": Plot(coverage_data, draw_coverage, 3.0),
    "steps": Plot(steps_data, draw_steps, 3.8),
    "real_tables": Plot(tables_data, draw_tables, 3.8),
}
