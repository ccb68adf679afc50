"""Is a weighted loss the resampled one, where the batch is the whole data set?

Set-up: a logistic model and a network of 16 hidden units, float64, full-batch gradient descent, 200 steps, 2,000
rows, 5 % of them minority. Weighted: weights 1 and 19, divided by their sum. Resampled: the rows of one fastbalance
epoch "over", where every minority row is exactly 19 times. Control: as many rows drawn by WeightedRandomSampler.

Expected: `sum w l / sum w` is the mean over the exactly resampled rows, so no parameter differs by more than
rounding: 1e-9. The control must differ, or the measurement sees nothing.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from . import _feeds
from ._common import Expected, Result, above, finding

ROWS, FEATURES, HIDDEN, STEPS, RATE = 2000, 5, 16, 200, 0.5
F = 0.05
IDENTITY = Expected(0, 1e-9, "<= 1e-9", "identity of the two sums")


def parameters(hidden: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((FEATURES + 1, hidden), (hidden, 1)) if hidden else ((FEATURES + 1, 1),)
    return [0.3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def descend(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, start: list[torch.Tensor]) -> list[torch.Tensor]:
    found = [p.clone().requires_grad_() for p in start]
    for _ in range(STEPS):
        z = torch.tanh(x @ found[0]) @ found[1] if len(found) == 2 else x @ found[0]
        losses = weights * binary_cross_entropy_with_logits(z[:, 0], y, reduction="none")
        gradients = torch.autograd.grad(losses.sum() / weights.sum(), found)
        with torch.no_grad():
            for p, g in zip(found, gradients, strict=True):
                p -= RATE * g
    return [p.detach() for p in found]


def gaps(hidden: int, seed: int) -> tuple[float, float]:
    """Largest difference of a parameter: exactly resampled against weighted, and drawn against weighted."""
    x, labels = _feeds.gaussians(ROWS, F, FEATURES, 2.0, seed)
    x, y = x.double(), labels.double()
    start = parameters(hidden, seed)
    weighted = descend(x, y, torch.where(y > 0, (1 - F) / F, 1.0).double(), start)

    def gap(rows: torch.Tensor) -> float:
        other = descend(x[rows], y[rows], torch.ones(len(rows), dtype=torch.float64), start)
        return max(float((a - b).abs().max()) for a, b in zip(weighted, other, strict=True))

    over = _feeds.balanced(labels, 2 * round(ROWS * (1 - F)), 1, seed, epoch_rows="over")[0]
    return gap(over), gap(_feeds.iid(labels, len(over), 1, seed)[0])


def run(quick: bool) -> Result:
    findings = []
    for name, hidden in (("logistic", 0), (f"network of {HIDDEN}", HIDDEN)):
        same, drawn = zip(*(gaps(hidden, seed) for seed in range(3 if quick else 10)), strict=True)
        quantity = f"{name}: largest gap of a parameter"
        control = above(1e-3, "control: must be seen")
        findings.append(finding(f"{quantity}, over the seeds", IDENTITY, (max(same), min(same), max(same))))
        findings.append(finding(f"{quantity}, drawn with replacement", control, (min(drawn), min(drawn), max(drawn))))
    return Result(findings)
