"""For which batch sizes and learning rates does resampling beat the weighted loss, and by how much?

Set-up: logistic regression on two Gaussian clouds (10 features, distance 2), 20,000 rows fresh for each of 10 seeds,
300 steps of every arm, a falling rate, SGD, momentum and Adam; f = 10 .. 0.1 %, B = 8 .. 2048; the same grid of rates
for all arms. The weights q_c / f_c have mean 1 over the rows: this is the rate-compensated form of the common
w = (1, n0 / n1), whose mean 2 (1 - f) would nearly double the rate. All models start at the log-odds of their
batches: natural ones at log(f / (1 - f)), all others at 0. Measured: the balanced log-loss on 20,000 balanced test
rows, above that of the best linear model. An arm's best rate is the one with the least mean loss on 20,000 other
balanced rows. "Same rate": all at the best rate of fastbalance.

Expected: a gap where B f, the minority rows of a batch, is below about 5, and none (within .005) where it is large.
That the gap is smaller under Adam is a hypothesis. "Usable rates" is the width of the range within 2 % of an arm's
best loss.

Seen first: the split of B f < 5 at 1, and the findings on adjusted logits, were added after a first run, in which one
average over B f < 5 hid that the weighted loss / B lags below 1 only. In that run rates were chosen on the test rows,
the same rate was no finding, and natural models began at 0, which adjusting the logits made the worst of all starts.
No range was moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from . import _feeds
from ._common import Expected, Finding, Grid, Result, above, finding, paired, plus_minus, t_interval
from ._learners import (
    ADJUSTED,
    ARMS,
    IID,
    NORMALISED,
    OURS,
    WEIGHTED,
    Arm,
    Networks,
    Optimiser,
    balanced_loss,
    class_weights,
    train,
)

ROWS, FEATURES, DISTANCE = 20_000, 10, 2.0
N_RATES, DIVERGED = 9, 1e3
Band = tuple[float, float]
FEW, SOME, MANY = (0.0, 1.0), (1.0, 5.0), (20.0, math.inf)
BANDS = {"B f < 1": FEW, "1 <= B f < 5": SOME, "B f >= 20": MANY}
TALLIED = {"B f < 1": FEW, "1 <= B f < 5": SOME, "B f >= 5": (5.0, math.inf)}
RATES = {
    "sgd": tuple(0.01 * 10 ** (k / 2) for k in range(N_RATES)),
    "momentum": tuple(0.001 * 10 ** (k / 2) for k in range(N_RATES)),
    "adam": tuple(0.0003 * 10 ** (k / 2) for k in range(N_RATES)),
}
NO_GAP = Expected(-0.005, 0.005, "0 ± 0.005", "no gap at large B f")
SHOWN = ((0.01, 32), (0.01, 2048))  # f and B of the grid by rate
Rows = tuple[torch.Tensor, torch.Tensor]  # features [1, n_rows, n_features] and labels


@dataclass(frozen=True)
class Excess:
    """Balanced loss of an arm above that of the best linear model, float64 [n_seeds, n_rates]."""

    valid: np.ndarray
    test: np.ndarray

    @property
    def best(self) -> int:
        """The rate that validation rows choose."""
        return int(np.argmin(self.valid.mean(axis=0)))

    def at(self, rate: int) -> np.ndarray:
        """Of the test rows, float64 [n_seeds]. A run that diverged counts as very bad, not as infinite."""
        return np.minimum(self.test[:, rate], DIVERGED)


Losses = dict[Arm, Excess]
Found = dict[tuple[str, float, int], Losses]  # optimiser, f, B


def data(f: float, n_seeds: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, labels = zip(
        *(_feeds.gaussians(ROWS, f, FEATURES, DISTANCE, s, bias=False) for s in range(n_seeds)), strict=True
    )
    return torch.stack(x), labels[0]


def balanced_rows(seed: int) -> Rows:
    """Fresh rows, as many of each class; seeds of training rows are small."""
    x, y = _feeds.gaussians(ROWS, 0.5, FEATURES, DISTANCE, seed, bias=False)
    return x[None], y


def best_possible(rows: Rows) -> float:
    """Balanced loss of the model that made the data: log-odds are DISTANCE times the place along the axis."""
    z = DISTANCE * rows[0].sum(dim=2) / FEATURES**0.5
    return float(balanced_loss(z[:, None, :, None], rows[1])[0, 0])


def losses(f: float, batch_rows: int, kinds: Sequence[str], n_seeds: int, n_steps: int) -> dict[str, Losses]:
    """Excess loss of every arm with each optimiser; all optimisers see the same batches."""
    x, y = data(f, n_seeds)
    unseen, weights, log_odds = (balanced_rows(20_000), balanced_rows(10_000)), class_weights(y), np.log(f / (1 - f))
    floors = [best_possible(rows) for rows in unseen]
    found: dict[str, Losses] = {kind: {} for kind in kinds}
    for arm in ARMS:
        feed, prior = _feeds.FEEDS[arm.feed], log_odds if arm.adjusted else 0.0
        batches = torch.stack([feed(y, batch_rows, n_steps, seed) for seed in range(n_seeds)])
        for kind in kinds:
            networks = Networks((FEATURES, 1), RATES[kind], n_seeds, zero_last=True)
            networks.parameters[-1].fill_(prior)
            train(networks, x, y, batches, Optimiser(kind, networks), divide=arm.divide, weights=weights)
            with torch.no_grad():
                each = [balanced_loss(networks(rows[0]) - prior, rows[1]) for rows in unseen]
            found[kind][arm] = Excess(*(loss - floor for loss, floor in zip(each, floors, strict=True)))
    return found


def usable(excess: Excess, floor: float) -> int:
    """Rates of the grid whose mean loss is within 2 % of the best. The floor makes an excess a loss again."""
    means = excess.test.mean(axis=0) + floor
    return int((means <= 1.02 * means.min()).sum())


def gaps(found: Losses, arm: Arm, same_rate: bool) -> np.ndarray:
    """Loss of an arm minus fastbalance's, float64 [n_seeds]: each at its best rate, or both at fastbalance's."""
    ours = found[OURS]
    return found[arm].at(ours.best if same_rate else found[arm].best) - ours.at(ours.best)


def pooled(found: list[Losses], arm: Arm, same_rate: bool = False) -> np.ndarray:
    """The gap averaged over settings, float64 [n_seeds]."""
    return np.mean([gaps(each, arm, same_rate) for each in found], axis=0)


def in_band(found: Found, kind: str, band: Band) -> list[Losses]:
    return [each for (k, f, batch_rows), each in found.items() if k == kind and band[0] <= f * batch_rows < band[1]]


def findings_of(kind: str, found: Found, same_rate: bool) -> list[Finding]:
    """Whether fastbalance's loss is lower where batches hold few minority rows, and equal where they hold many."""
    findings = []
    for arm in (WEIGHTED, NORMALISED, IID, ADJUSTED):
        for name, band in BANDS.items():
            settings = in_band(found, kind, band)
            expected = NO_GAP if arm is IID or band is MANY else above(0, "a gap at B f < 5")
            rates = "same rate" if same_rate else "best rates"
            quantity = f"{kind}, {name}: loss of {arm.name} minus fastbalance, {rates}"
            if settings:
                findings.append(finding(quantity, expected, t_interval(pooled(settings, arm, same_rate))))
    return findings


def smaller_under_adam(found: Found) -> Finding:
    both = [pooled(in_band(found, kind, FEW), WEIGHTED) for kind in ("sgd", "adam")]
    hypothesis = above(0, "hypothesis: smaller under Adam")
    return finding("gap of weighted / B at B f < 1: SGD minus Adam", hypothesis, paired(*both))


def tally(found: Found) -> Grid:
    """In how many settings an arm is worse or better than fastbalance, beyond the interval."""
    others = ARMS[1:]
    grid = Grid(
        "Settings in which an arm's loss is higher / lower than fastbalance's (95 %), each at its best rate",
        ("optimiser", "B f", "settings", *(arm.name for arm in others)),
    )
    for kind in dict.fromkeys(k for k, *_ in found):
        for name, band in TALLIED.items():
            settings = in_band(found, kind, band)
            intervals = [[t_interval(gaps(each, arm, False)) for each in settings] for arm in others]
            counts = (f"{sum(low > 0 for _, low, _ in of)} / {sum(high < 0 for *_, high in of)}" for of in intervals)
            grid.rows.append([kind, name, len(settings), *counts])
    return grid


def grids_of(found: Found, floor: float) -> list[Grid]:
    others, where = ARMS[1:], ("optimiser", "f", "B", "B f")
    columns = (*where, *(arm.name for arm in others))
    best_rates = Grid("Loss minus fastbalance's, each at its best rate", columns)
    same_rate = Grid("Loss minus fastbalance's, both at fastbalance's best rate", columns)
    width = Grid(f"Rates of {N_RATES} within 2 % of the best loss", (*where, *(arm.name for arm in ARMS)))
    for (kind, f, batch_rows), each in found.items():
        setting = [kind, f"{f:.1%}", batch_rows, round(f * batch_rows, 3)]
        best_rates.rows.append([*setting, *(plus_minus(t_interval(gaps(each, arm, False))) for arm in others)])
        same_rate.rows.append([*setting, *(plus_minus(t_interval(gaps(each, arm, True))) for arm in others)])
        width.rows.append([*setting, *(usable(each[arm], floor) for arm in ARMS)])
    return [best_rates, same_rate, width]


def by_rate(found: Found) -> Grid:
    """The loss of every arm at every rate, for few settings."""
    grid = Grid(
        "Loss above the best possible, by rate", ("optimiser", "f", "B", "B f", "rate", *(a.name for a in ARMS))
    )
    for (kind, f, batch_rows), each in found.items():
        if (f, batch_rows) in SHOWN:
            for k, rate in enumerate(RATES[kind]):
                cells = (plus_minus(t_interval(each[arm].at(k))) for arm in ARMS)
                grid.rows.append([kind, f"{f:.1%}", batch_rows, round(f * batch_rows, 3), rate, *cells])
    return grid


def at_the_edge(found: Found) -> str:
    """How often the best rate is the first or the last of the grid: a better one may lie outside."""
    edges = {arm.name: sum(each[arm].best in (0, N_RATES - 1) for each in found.values()) for arm in ARMS}
    told = ", ".join(f"{name} {count}" for name, count in edges.items() if count)
    return f"Best rate at an edge of the grid, of {len(found)} settings: {told or 'never'}."


def run(quick: bool) -> Result:
    shares, batches = ((0.01,), (32, 2048)) if quick else ((0.1, 0.03, 0.01, 0.003, 0.001), (8, 32, 128, 512, 2048))
    n_seeds, n_steps = (4, 100) if quick else (10, 300)
    kinds = ("sgd", "adam") if quick else tuple(RATES)
    by_setting = {
        (f, batch_rows): losses(f, batch_rows, kinds, n_seeds, n_steps) for f in shares for batch_rows in batches
    }
    found = {(kind, *setting): each[kind] for kind in kinds for setting, each in by_setting.items()}
    findings = [each for same_rate in (False, True) for kind in kinds for each in findings_of(kind, found, same_rate)]
    findings.append(smaller_under_adam(found))
    floor = best_possible(balanced_rows(10_000))
    return Result(findings, [tally(found), *grids_of(found, floor), by_rate(found)], [at_the_edge(found)])
