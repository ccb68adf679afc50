"""How much of the data has been seen, and how evenly is the minority repeated?

Set-up: 100,000 rows, f = 1 %, a balanced epoch of as many draws, 1 to 10 epochs, 10 seeds; WeightedRandomSampler
against fastbalance.

Expected: with replacement 1 - exp(-E / 2) of the majority as f -> 0: 39.3, 63.2, 91.8, 99.3 % after E = 1, 2, 5, 10
epochs (here f is 1 %, and the exact form is compared); without, min(1, E / 2) n / n0. A minority row comes 50 +- 7.1
times an epoch with replacement, exactly 50 times without.
"""

from __future__ import annotations

import math

import numpy as np

from . import _feeds, _formulas
from ._common import Finding, Result, about, finding, t_interval

ROWS, F, BATCH, EPOCHS = 100_000, 0.01, 100, (1, 2, 5, 10)


def seen(feed: str, seed: int) -> tuple[list[float], np.ndarray]:
    """Share of the majority seen after each number of epochs; draws of each minority row in the first."""
    labels = _feeds.two_class_labels(ROWS, F)
    rows = _feeds.FEEDS[feed](labels, BATCH, EPOCHS[-1] * ROWS // BATCH, seed).flatten().numpy()
    n0 = int((labels == 0).sum())
    shares = [float((np.bincount(rows[: e * ROWS], minlength=ROWS)[:n0] > 0).mean()) for e in EPOCHS]
    return shares, np.bincount(rows[:ROWS], minlength=ROWS)[n0:]


def of_feed(feed: str, name: str, n_seeds: int) -> list[Finding]:
    shares, repeats = zip(*(seen(feed, seed) for seed in range(n_seeds)), strict=True)
    findings = []
    for epochs, of_seeds in zip(EPOCHS, np.transpose(shares), strict=True):
        expected = _formulas.coverage(epochs, F, ROWS) if feed == "iid" else min(1, 0.5 * epochs / (1 - F))
        wanted = about(expected, "draws with replacement" if feed == "iid" else "permutation", margin=0.002)
        findings.append(finding(f"majority seen after {epochs} epochs, {name}", wanted, t_interval(of_seeds)))
    spread = math.sqrt(0.5 * ROWS * (1 / (F * ROWS))) if feed == "iid" else 0.0
    wanted = about(spread, "Poisson" if feed == "iid" else "even use", margin=0.2 if spread else 0.0)
    found = t_interval([each.std() for each in repeats])
    return [*findings, finding(f"draws of a minority row: standard deviation, {name}", wanted, found)]


def run(quick: bool) -> Result:
    n_seeds = 3 if quick else 10
    return Result([
        *of_feed("iid", "WeightedRandomSampler", n_seeds),
        *of_feed("balanced", "fastbalance", n_seeds),
    ])  # fmt: skip
