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

import numpy as np
import torch

from . import _feeds
from ._common import Expected, Finding, Grid, Interval, Result, above, finding, paired, t_interval
from ._learners import (
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
N_RATES, FEW, MANY, DIVERGED = 8, 5, 20, 1e3
RATES = {
    "sgd": tuple(0.01 * 10 ** (k / 2) for k in range(N_RATES)),
    "momentum": tuple(0.001 * 10 ** (k / 2) for k in range(N_RATES)),
    "adam": tuple(0.0003 * 10 ** (k / 2) for k in range(N_RATES)),
}
NO_GAP = Expected(-0.005, 0.005, "0 ± 0.005", "no gap at large B f")

Losses = dict[Arm, np.ndarray]  # float64 [n_seeds, n_rates]


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


def losses(f: float, batch_rows: int, kind: str, n_seeds: int, n_steps: int) -> Losses:
    x, y, test_x, test_y = data(f, n_seeds)
    floor, found = best_possible(test_x, test_y), {}
    for arm in ARMS:
        feed = _feeds.FEEDS[arm.feed]
        batches = torch.stack([feed(y, batch_rows, n_steps, seed) for seed in range(n_seeds)])
        networks = Networks((FEATURES, 1), RATES[kind], n_seeds, zero_last=True)
        train(networks, x, y, batches, Optimiser(kind, networks), divide=arm.divide, weights=class_weights(y))
        with torch.no_grad():
            outputs = networks(test_x) - (np.log(f / (1 - f)) if arm.adjusted else 0.0)
        found[arm] = balanced_loss(outputs, test_y) - floor
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


def pooled(found: list[Losses], arm: Arm) -> Interval:
    """The gap at the best rates, averaged over settings, seed by seed."""
    gaps = [each[arm][:, best(each[arm])] - each[OURS][:, best(each[OURS])] for each in found]
    return t_interval(np.mean(gaps, axis=0))


def findings_of(kind: str, by_setting: dict[tuple[float, int], Losses]) -> list[Finding]:
    """Whether fastbalance's loss is lower where batches hold few minority rows, and equal where they hold many."""
    few = [found for (f, batch_rows), found in by_setting.items() if f * batch_rows < FEW]
    many = [found for (f, batch_rows), found in by_setting.items() if f * batch_rows >= MANY]
    findings = []
    for arm in (WEIGHTED, NORMALISED, IID):
        name = f"{kind}: loss of {arm.name} minus fastbalance, best rates"
        expected = NO_GAP if arm is IID else above(0, f"a gap at B f < {FEW}")
        findings.append(finding(f"{name}, B f < {FEW}", expected, pooled(few, arm)))
        if many:
            findings.append(finding(f"{name}, B f >= {MANY}", NO_GAP, pooled(many, arm)))
    return findings


def smaller_under_adam(found: dict[tuple[str, float, int], Losses]) -> Finding:
    gaps = {
        kind: np.mean(
            [
                each[WEIGHTED][:, best(each[WEIGHTED])] - each[OURS][:, best(each[OURS])]
                for (k, f, batch_rows), each in found.items()
                if k == kind and f * batch_rows < FEW
            ],
            axis=0,
        )
        for kind in ("sgd", "adam")
    }
    hypothesis = above(0, "hypothesis: smaller under Adam")
    quantity = f"gap of weighted / B at B f < {FEW}: SGD minus Adam"
    return finding(quantity, hypothesis, paired(gaps["sgd"], gaps["adam"]))


def grids_of(found: dict[tuple[str, float, int], Losses], floor: float) -> list[Grid]:
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
    settings = [(kind, f, batch_rows) for kind in kinds for f in shares for batch_rows in batches]
    found = {(kind, f, batch_rows): losses(f, batch_rows, kind, n_seeds, n_steps) for kind, f, batch_rows in settings}
    findings = []
    for kind in kinds:
        findings += findings_of(kind, {(f, batch): each for (k, f, batch), each in found.items() if k == kind})
    findings.append(smaller_under_adam(found))
    return Result(findings, grids_of(found, best_possible(*data(0.5, 1)[2:])))
