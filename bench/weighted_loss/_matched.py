"""The arms of e10 on a real table: the same network, steps and batch size for all, at every rate of a grid."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch

from fastbalance.compare_scores import tuned_offset

from . import _feeds
from ._learners import (
    IID,
    NORMALISED,
    OURS,
    WEIGHTED,
    Arm,
    Networks,
    Optimiser,
    binary_losses,
    class_losses,
    class_weights,
    train,
)
from ._scores import all_scores, logits_of, pr_aucs, stacked
from ._tables import Part, Table

NATURAL = Arm("natural", "natural")
TUNED = replace(NATURAL, name="natural, tuned threshold")
ADJUSTED = replace(NATURAL, name="natural, logits adjusted", adjusted=True)
UNCOMPENSATED = Arm("weighted (1, n0/n1) / B", "natural", "rows")
FROM_ZERO = Arm("weighted / B, bias 0", "natural", "rows")
UNDER = Arm("fastbalance, undersampled", "under")
BACK = Arm("downsampled, weighted back", "under", "rows")
ARMS = (OURS, WEIGHTED, FROM_ZERO, UNCOMPENSATED, NORMALISED, IID, UNDER, BACK, NATURAL)
SAME_RATE_ONLY = (FROM_ZERO, UNCOMPENSATED)
DECISIONS = (TUNED, ADJUSTED)  # the natural network, deciding otherwise

HIDDEN, DROPOUT, LOOKS = 16, 0.5, 4
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # the first is the tutorial's

Scores = dict[str, np.ndarray]  # float64 [n_seeds] of each metric


@dataclass(frozen=True)
class Found:
    """What an arm scores on test rows.

    Attributes:
        same: At the tutorial's rate.
        best: At the rate of the grid with the best mean PR-AUC on validation rows.
        rate: The latter rate.
    """

    same: Scores
    best: Scores
    rate: float


def under(labels: torch.Tensor, batch_rows: int, n_steps: int, seed: int) -> torch.Tensor:
    """Epochs in which no row comes twice, but where a batch is longer than such an epoch: there it is one batch."""
    counts = torch.bincount(labels)
    epoch_rows = max(batch_rows, len(counts) * int(counts.min()))
    return _feeds.balanced(labels, batch_rows, n_steps, seed, epoch_rows=epoch_rows)


FEEDS = _feeds.FEEDS | {"under": under}


def weights_of(arm: Arm, y: torch.Tensor) -> torch.Tensor:
    """Weights of the classes, float32 [n_classes], for the arms that have some."""
    counts = torch.bincount(y).float()
    if arm is UNCOMPENSATED:
        return counts.max() / counts
    return len(counts) * counts / len(y) if arm is BACK else class_weights(y)


class Best:
    """Keeps every network as it was at the best PR-AUC on validation rows, float64 [n_seeds, n_rates]."""

    def __init__(self, networks: Networks, part: Part, every: int) -> None:
        self._networks, self._part, self._every = networks, part, every
        self.pr_auc = np.full(networks.parameters[0].shape[:2], -1.0)
        self.parameters = [p.clone() for p in networks.parameters]

    def __call__(self, n_steps: int) -> None:
        if n_steps % self._every:
            return
        found = pr_aucs(self._part[1].numpy(), logits_of(self._networks, self._part[0]))
        better = torch.from_numpy(found > self.pr_auc)
        self.pr_auc = np.maximum(found, self.pr_auc)
        for kept, p in zip(self.parameters, self._networks.parameters, strict=True):
            kept[better] = p[better]


def trained(table: Table, arm: Arm, batches: torch.Tensor) -> tuple[Networks, np.ndarray]:
    """The networks of all seeds and rates at their best, and their PR-AUC on validation rows."""
    (x, y), n_classes = table.train, len(table.counts)
    shares = torch.from_numpy(table.counts / table.counts.sum()).float()
    rates = RATES[:1] if arm in SAME_RATE_ONLY else RATES
    networks = Networks((x.shape[1], HIDDEN, 1 if n_classes == 2 else n_classes), rates, len(batches))
    bias = shares.log() if n_classes > 2 else (shares[1] / shares[0]).log()
    natural_start = arm is BACK or (arm.feed == "natural" and arm is not FROM_ZERO)
    networks.parameters[-1][:] = bias if natural_start else 0.0
    best = Best(networks, table.valid, batches.shape[1] // LOOKS)
    torch.manual_seed(0)  # dropout
    losses = binary_losses if n_classes == 2 else class_losses
    options = dict(divide=arm.divide, weights=weights_of(arm, y), dropout=DROPOUT, falling=False, row_losses=losses)
    train(networks, x[None], y, batches, Optimiser("adam", networks), watch=best, **options)
    networks.parameters = best.parameters
    return networks, best.pr_auc


def scored(table: Table, arm: Arm, networks: Networks, rate: int) -> dict[Arm, Scores]:
    """Scores on test rows at one rate of the grid: of an arm, and with it those that only decide otherwise."""
    at_rate = copy(networks)
    at_rate.parameters = [p[:, rate : rate + 1] for p in networks.parameters]
    valid, test = (logits_of(at_rate, x)[:, 0] for x, _ in (table.valid, table.test))
    priors = np.log(table.counts / table.counts.sum())
    natural = arm is BACK or (arm.feed == "natural" and arm.divide is None)
    correction = np.zeros_like(priors) if natural else priors + np.log(len(priors))
    offsets = [tuned_offset(table.valid[1].numpy(), z, np.exp(priors)) for z in valid]
    shifts = {arm: [0 * priors] * len(test)}
    if arm is NATURAL:
        shifts |= {TUNED: offsets, ADJUSTED: [-priors] * len(test)}
    y = table.test[1].numpy()
    return {
        each: stacked(
            [all_scores(y, z + s, correction - s, o - s) for z, s, o in zip(test, of_seeds, offsets, strict=True)]
        )
        for each, of_seeds in shifts.items()
    }


def results(table: Table, batch_rows: int, n_steps: int, n_seeds: int) -> dict[Arm, Found]:
    """What all arms score, and the natural network's other decisions. Arms of the same feed see the same batches."""
    batches: dict[str, torch.Tensor] = {}
    found: dict[Arm, Found] = {}
    for arm in ARMS:
        if arm.feed not in batches:
            seeds = (FEEDS[arm.feed](table.train[1], batch_rows, n_steps, seed) for seed in range(n_seeds))
            batches[arm.feed] = torch.stack(list(seeds))
        networks, valid_pr_auc = trained(table, arm, batches[arm.feed])
        chosen = int(valid_pr_auc.mean(axis=0).argmax())
        same = scored(table, arm, networks, 0)
        best = scored(table, arm, networks, chosen) if chosen else same
        found |= {each: Found(same[each], best[each], RATES[chosen]) for each in same}
    return found
