"""For which batch sizes and learning rates does resampling beat the weighted loss, and by how much?

Set-up: logistic regression on two Gaussian clouds (10 features, distance 2), 20,000 rows fresh for each of 10 seeds,
300 steps of every arm, a falling rate, SGD, momentum and Adam; f = 10 .. 0.1 %, B = 8 .. 2048; the same grid of rates
for all arms. Measured: the balanced log-loss on 20,000 balanced test rows, above that of the best linear model; the
best rate is chosen on the same rows, for all arms alike.

Expected: a gap where B f, the minority rows of a batch, is below about 5, and none (within .005) where it is large.
That the gap is smaller under Adam is a hypothesis. "Usable rates" is the width of the range within 2 % of an arm's
best loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from . import _feeds
from ._common import Expected, Finding, Grid, Interval, Result, above, finding, paired, t_interval
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
N_RATES, DIVERGED = 8, 1e3
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

Losses = dict[Arm, np.ndarray]  # float64 [n_seeds, n_rates]
Found = dict[tuple[str, float, int], Losses]  # optimiser, f, B


def data(f: float, n_seeds: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    train_x, labels = zip(
        *(_feeds.gaussians(ROWS, f, FEATURES, DISTANCE, s, bias=False) for s in range(n_seeds)), strict=True
    )
    test_x, test_y = _feeds.gaussians(ROWS, 0.5, FEATURES, DISTANCE, 10_000, bias=False)
    return torch.stack(train_x), labels[0], test_x[None], test_y


def best_possible(test_x: torch.Tensor, test_y: torch.Tensor) -> float:
    """Balanced loss of the model that made the data: log-odds are DISTANCE times the place along the axis."""
    z = DISTANCE * test_x.sum(dim=2) / FEATURES**0.5
    return float(balanced_loss(z[:, None, :, None], test_y)[0, 0])


def losses(f: float, batch_rows: int, kinds: Sequence[str], n_seeds: int, n_steps: int) -> dict[str, Losses]:
    """Excess loss of every arm with each optimiser; all optimisers see the same batches."""
    x, y, test_x, test_y = data(f, n_seeds)
    floor, weights = best_possible(test_x, test_y), class_weights(y)
    found: dict[str, Losses] = {kind: {} for kind in kinds}
    for arm in ARMS:
        feed = _feeds.FEEDS[arm.feed]
        batches = torch.stack([feed(y, batch_rows, n_steps, seed) for seed in range(n_seeds)])
        for kind in kinds:
            networks = Networks((FEATURES, 1), RATES[kind], n_seeds, zero_last=True)
            train(networks, x, y, batches, Optimiser(kind, networks), divide=arm.divide, weights=weights)
            with torch.no_grad():
                outputs = networks(test_x) - (np.log(f / (1 - f)) if arm.adjusted else 0.0)
            found[kind][arm] = balanced_loss(outputs, test_y) - floor
    return found


def best(values: np.ndarray) -> int:
    return int(np.argmin(values.mean(axis=0)))


def usable(values: np.ndarray, floor: float) -> int:
    """Rates of the grid whose mean loss is within 2 % of the best. The floor makes an excess a loss again."""
    means = values.mean(axis=0) + floor
    return int((means <= 1.02 * means.min()).sum())


def gap(found: Losses, arm: Arm, same_rate: bool) -> Interval:
    """Loss of an arm minus fastbalance's: each at its best rate, or both at fastbalance's best."""
    ours = found[OURS]
    k = best(ours) if same_rate else best(found[arm])
    return paired(np.minimum(found[arm][:, k], DIVERGED), ours[:, best(ours)])


def cell(values: Interval) -> str:
    return f"{values[0]:+.4f} ± {values[0] - values[1]:.4f}"


def pooled(found: list[Losses], arm: Arm) -> np.ndarray:
    """The gap at the best rates, averaged over settings, float64 [n_seeds]."""
    gaps = [each[arm][:, best(each[arm])] - each[OURS][:, best(each[OURS])] for each in found]
    return np.mean(gaps, axis=0)


def in_band(found: Found, kind: str, band: Band) -> list[Losses]:
    return [each for (k, f, batch_rows), each in found.items() if k == kind and band[0] <= f * batch_rows < band[1]]


def findings_of(kind: str, found: Found) -> list[Finding]:
    """Whether fastbalance's loss is lower where batches hold few minority rows, and equal where they hold many."""
    findings = []
    for arm in (WEIGHTED, NORMALISED, IID, ADJUSTED):
        for name, band in BANDS.items():
            settings = in_band(found, kind, band)
            expected = NO_GAP if arm is IID or band is MANY else above(0, "a gap at B f < 5")
            quantity = f"{kind}, {name}: loss of {arm.name} minus fastbalance, best rates"
            if settings:
                findings.append(finding(quantity, expected, t_interval(pooled(settings, arm))))
    return findings


def smaller_under_adam(found: Found) -> Finding:
    gaps = [pooled(in_band(found, kind, FEW), WEIGHTED) for kind in ("sgd", "adam")]
    hypothesis = above(0, "hypothesis: smaller under Adam")
    return finding("gap of weighted / B at B f < 1: SGD minus Adam", hypothesis, paired(*gaps))


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
            intervals = [[gap(each, arm, False) for each in settings] for arm in others]
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
        best_rates.rows.append([*setting, *(cell(gap(each, arm, False)) for arm in others)])
        same_rate.rows.append([*setting, *(cell(gap(each, arm, True)) for arm in others)])
        width.rows.append([*setting, *(usable(each[arm], floor) for arm in ARMS)])
    return [best_rates, same_rate, width]


def run(quick: bool) -> Result:
    shares, batches = ((0.01,), (16, 2048)) if quick else ((0.1, 0.03, 0.01, 0.003, 0.001), (8, 32, 128, 512, 2048))
    n_seeds, n_steps = (4, 100) if quick else (10, 300)
    kinds = ("sgd", "adam") if quick else tuple(RATES)
    by_setting = {
        (f, batch_rows): losses(f, batch_rows, kinds, n_seeds, n_steps) for f in shares for batch_rows in batches
    }
    found = {(kind, *setting): each[kind] for kind in kinds for setting, each in by_setting.items()}
    findings = []
    for kind in kinds:
        findings += findings_of(kind, found)
    findings.append(smaller_under_adam(found))
    return Result(findings, [tally(found), *grids_of(found, best_possible(*data(0.5, 1)[2:]))])
