"""Does a weight last, where the classes can be separated? (Byrd and Lipton, 2019)

Set-up: (1) a logistic model on two separable clouds in the plane (100 rows a class), full-batch descent; (2) a
network of 64 ReLU units on two moons. Weights of the second class 1/16 .. 16; without and with L2; the share of fresh
points between the classes that goes to the second class, after 10 .. 10,000 steps. Reach: that share at weight 16
minus that at weight 1/16. And, at 1/16 and 16, the same by resampling rather than weighting: fastbalance draws a
class in proportion to its weight.

Expected: the boundary follows the weight early, and loses it without L2: the reach shrinks; with L2 it lasts.
Resampled full batches are the weighted loss (e00), so resampling fades just the same: this is no advantage of either.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import make_moons

import fastbalance as fb

from . import _feeds
from ._common import Finding, Grid, Result, above, below, finding, paired, t_interval
from ._learners import Networks, Optimiser, binary_losses, train

WEIGHTS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
ROWS = 100


def clouds(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two clouds that a line separates, with a gap: distances to the line are at least 1/2."""
    rng = np.random.default_rng(seed)
    across = np.concatenate([-0.5 - rng.exponential(0.5, ROWS), 0.5 + rng.exponential(0.5, ROWS)])
    x = np.stack([across, rng.standard_normal(2 * ROWS)], axis=1).astype(np.float32)
    return torch.from_numpy(x), torch.arange(2).repeat_interleave(ROWS)


def moons(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = make_moons(2 * ROWS, noise=0.1, random_state=seed)
    order = np.argsort(y, kind="stable")
    return torch.from_numpy(x[order].astype(np.float32)), torch.arange(2).repeat_interleave(ROWS)


def between(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Points halfway from a row of the one class to a row of the other, where the data says nothing."""
    rng = np.random.default_rng(seed)
    first, second = (torch.from_numpy(rng.integers(0, ROWS, 500)) for _ in range(2))
    part = torch.from_numpy(rng.uniform(0.2, 0.8, (500, 1)).astype(np.float32))
    return part * x[first] + (1 - part) * x[ROWS + second]


def shares(
    task: str, decay: float, n_seeds: int, moments: tuple[int, ...], weight: float, resample: bool
) -> np.ndarray:
    """Share of the points between the classes that goes to the second class, float64 [n_moments, n_seeds]."""
    make, widths, rate = (clouds, (2, 1), 0.5) if task == "logistic" else (moons, (2, 64, 1), 0.1)
    x, y = zip(*map(make, range(n_seeds)), strict=True)
    x, labels = torch.stack(x), y[0]
    points = torch.stack([between(each, seed) for seed, each in enumerate(x)])
    networks, found = Networks(widths, (rate,), n_seeds, zero_last=task == "logistic"), []

    def watch(step: int) -> None:
        if step in moments:
            found.append((networks(points)[:, 0, :, 0] > 0).double().mean(dim=1).numpy())

    rows = torch.arange(2 * ROWS)
    if resample:
        rows = _feeds.balanced(labels, 17 * ROWS, 1, 0, fb.balance.target({0: 1.0, 1: weight}), "over")[0]
    batches = rows[None, None].expand(n_seeds, moments[-1], -1)
    class_weight = torch.tensor([1.0, weight])
    divide = None if resample else "weights"
    optimiser = Optimiser("sgd", networks, decay)
    train(networks, x, labels, batches, optimiser, divide=divide, weights=class_weight, row_losses=binary_losses,
          falling=False, watch=watch)  # fmt: skip
    return np.array(found)


def of_task(task: str, n_seeds: int, moments: tuple[int, ...]) -> tuple[list[Finding], list[Grid]]:
    reach, grids = {}, []
    for decay in (0.0, 0.01):
        by_weight = {w: shares(task, decay, n_seeds, moments, w, False) for w in WEIGHTS}
        reach[decay] = by_weight[WEIGHTS[-1]] - by_weight[WEIGHTS[0]]
        columns = ("weight", *(f"after {n:,}" for n in moments))
        grid = Grid(f"{task}, L2 {decay:g}: share of the points between that goes to the second class", columns)
        grid.rows = [[f"{w:g}", *(float(v) for v in found.mean(axis=1))] for w, found in by_weight.items()]
        grids.append(grid)
    lost = paired(reach[0.0][-1], reach[0.0][0])
    held = t_interval(reach[0.01][-1] - reach[0.0][-1])
    return [
        finding(f"{task}: reach early, no L2", above(0.1, "follows the weight early"), t_interval(reach[0.0][0])),
        finding(f"{task}: reach late minus early, no L2", below(0, "Byrd and Lipton: fades"), lost),
        finding(f"{task}: reach late, L2 minus no L2", above(0, "Byrd and Lipton: L2 holds it"), held),
    ], grids


def resampled_fades(n_seeds: int, moments: tuple[int, ...]) -> Finding:
    reach = [shares("logistic", 0.0, n_seeds, moments, w, True) for w in (WEIGHTS[-1], WEIGHTS[0])]
    change = paired(reach[0][-1] - reach[1][-1], reach[0][0] - reach[1][0])
    return finding(
        "logistic, resampled by fastbalance: reach late minus early", below(0, "as the weighted loss"), change
    )


def run(quick: bool) -> Result:
    n_seeds, moments = (4, (10, 100, 1000)) if quick else (10, (10, 100, 1000, 10_000))
    findings, grids = of_task("logistic", n_seeds, moments)
    more, other = of_task("moons", n_seeds, moments[:-1] if quick else (100, 1000, 3000))
    findings += [*more, resampled_fades(n_seeds, moments[:3])]
    return Result(findings, grids + other)
