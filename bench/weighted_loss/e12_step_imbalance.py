"""Over- or undersampling, with half of the classes rare? (after Buda et al., 2018, who have no weighted arm)

Set-up: scikit-learn's digits, 100 training rows for each of five classes and 100 / rho for the others, rho = 10, 50,
100; a network of 32 hidden units, momentum .9, 1,000 steps of B = 100, rate chosen by the accuracy on half of the
other rows, tested on the other half; 10 seeds, which choose the rows and the rare classes. Oversampled: fastbalance
"over"; undersampled: once, and anew in each epoch (fastbalance "under"); weighted / B; natural.

Expected: oversampling at least as good as undersampling once (Buda); about the same as weighting at this batch size
(within .02; B f is 1.8 .. 0.2 for one rare class).
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from . import _feeds
from ._common import Expected, Finding, Grid, Result, above, finding, paired
from ._learners import Networks, Optimiser, class_losses, class_weights, train

CLASSES, LARGEST, HIDDEN, BATCH, RATES = 10, 100, 32, 100, (0.003, 0.01, 0.03, 0.1, 0.3)
ARMS = ("natural", "oversampled", "undersampled once", "undersampled anew", "weighted / B")
SAME = Expected(-0.02, 0.02, "0 ± 0.02", "same expectation")

Split = tuple[torch.Tensor, torch.Tensor]


def deal(rho: int, seed: int) -> tuple[Split, Split, Split]:
    """Training, validation and test rows. Classes are renamed, so that the rare ones are always the last five."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    x = torch.from_numpy((digits.data / 16).astype(np.float32))
    parts: list[list[np.ndarray]] = [[], [], []]
    for new, old in enumerate(rng.permutation(CLASSES)):
        rows = rng.permutation(np.flatnonzero(digits.target == old))
        n = LARGEST if new < CLASSES // 2 else LARGEST // rho
        middle = LARGEST + (len(rows) - LARGEST) // 2
        for part, chosen in zip(parts, (rows[:n], rows[LARGEST:middle], rows[middle:]), strict=True):
            part.append(chosen)
    return tuple(  # type: ignore[return-value]
        (x[np.concatenate(part)], torch.arange(CLASSES).repeat_interleave(torch.tensor([len(r) for r in part])))
        for part in parts
    )


def batches_of(arm: str, y: torch.Tensor, n_steps: int, seed: int) -> torch.Tensor:
    if arm == "oversampled":
        return _feeds.balanced(y, BATCH, n_steps, seed, epoch_rows="over")
    if arm in ("natural", "weighted / B"):
        return _feeds.natural(y, BATCH, n_steps, seed)
    # An undersampled epoch may be shorter than a batch: batches of ten rows are joined.
    if arm == "undersampled once":
        return _feeds.undersampled_once(y, CLASSES, n_steps * BATCH // CLASSES, seed).reshape(n_steps, BATCH)
    return _feeds.balanced(y, CLASSES, n_steps * BATCH // CLASSES, seed, epoch_rows="under").reshape(n_steps, BATCH)


def accuracy(networks: Networks, splits: list[Split]) -> np.ndarray:
    """Mean of the classes' accuracies, float64 [n_seeds, n_rates]. Each seed has its own rows."""
    found = []
    for seed, (x, y) in enumerate(splits):
        alone = Networks.__new__(Networks)
        alone.parameters = [p[seed : seed + 1].detach() for p in networks.parameters]
        right = alone(x[None])[0].argmax(dim=2) == y
        found.append(torch.stack([right[:, y == c].double().mean(dim=1) for c in range(CLASSES)]).mean(dim=0))
    return torch.stack(found).numpy()


def of_arm(arm: str, dealt: list[tuple[Split, Split, Split]], n_steps: int) -> np.ndarray:
    x, y = torch.stack([split[0][0] for split in dealt]), dealt[0][0][1]
    batches = torch.stack([batches_of(arm, y, n_steps, seed) for seed in range(len(dealt))])
    networks = Networks((x.shape[2], HIDDEN, CLASSES), RATES, len(dealt))
    divide = "rows" if arm == "weighted / B" else None
    optimiser = Optimiser("momentum", networks)
    train(networks, x, y, batches, optimiser, divide=divide, weights=class_weights(y), row_losses=class_losses)
    valid, test = (accuracy(networks, [split[part] for split in dealt]) for part in (1, 2))
    return test[:, int(valid.mean(axis=0).argmax())]


def findings_of(rho: int, found: dict[str, np.ndarray]) -> list[Finding]:
    over = found["oversampled"]
    direction, no_worse = above(-0.005, "Buda 2018: over >= under"), above(-0.005, "hypothesis: rotating >= static")
    rotating = paired(found["undersampled anew"], found["undersampled once"])
    return [
        finding(f"rho {rho}: over minus undersampled once", direction, paired(over, found["undersampled once"])),
        finding(f"rho {rho}: over minus undersampled anew", direction, paired(over, found["undersampled anew"])),
        finding(f"rho {rho}: undersampled anew minus once", no_worse, rotating),
        finding(f"rho {rho}: over minus weighted / B", SAME, paired(over, found["weighted / B"])),
    ]


def run(quick: bool) -> Result:
    n_seeds, n_steps = (4, 200) if quick else (10, 1000)
    grid = Grid("Balanced accuracy, test", ("rho", *ARMS))
    findings = []
    for rho in (50,) if quick else (50, 10, 100):
        dealt = [deal(rho, seed) for seed in range(n_seeds)]
        found = {arm: of_arm(arm, dealt, n_steps) for arm in ARMS}
        findings += findings_of(rho, found)
        grid.rows.append([rho, *(float(found[arm].mean()) for arm in ARMS)])
    return Result(findings, [grid])
