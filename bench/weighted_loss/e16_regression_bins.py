"""With a skewed target, does drawing its bins evenly do what weights do? (bins as in imbalanced regression)

Set-up: target t = exp(N(0, 1)), cut at 16, in 32 bins of .5 (from thousands of rows to a few); x = 8 noisy functions
of t; 20,000 rows fresh for each of 10 seeds; a network of 32 hidden units, absolute error, momentum .9, B = 64, 2,000
steps, rate chosen by the mean error over bins of separate rows. Natural; weighted / B by 1 / clip(n_bin, 5, 1000);
the same as shares of fastbalance; WeightedRandomSampler with the same shares.

Expected: lower error in few-shot bins (< 20 rows) than natural, higher in those of many (> 100): a hypothesis at this
size; drawing no worse than weighting (hypothesis).
"""

from __future__ import annotations

import numpy as np
import torch

import fastbalance as fb

from . import _feeds
from ._common import Grid, Result, above, finding, paired
from ._learners import Networks, Optimiser, train

ROWS, FEATURES, HIDDEN, BATCH, N_BINS, WIDTH = 20_000, 8, 32, 64, 32, 0.5
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
ARMS = ("natural", "weighted / B", "WeightedRandomSampler", "fastbalance")
PROJECTION = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(0))


def features(t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    basis = torch.stack([t / 8 - 1, torch.sin(t), torch.log(t)], dim=1)
    return basis @ PROJECTION + 0.5 * torch.randn(len(t), FEATURES, generator=generator)


def skewed(counts: np.ndarray, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x, and t, bin by bin: as many rows of each as `counts` says, so that seeds share their bins."""
    generator = torch.Generator().manual_seed(seed)
    bins = torch.arange(N_BINS).repeat_interleave(torch.as_tensor(counts))
    t = ((bins + torch.rand(len(bins), generator=generator)) * WIDTH).clamp(0.02, N_BINS * WIDTH - 0.001)
    return features(t, generator), t


def bin_counts() -> np.ndarray:
    t = np.exp(np.random.default_rng(0).standard_normal(ROWS))
    return np.maximum(np.histogram(t[t < N_BINS * WIDTH], N_BINS, (0, N_BINS * WIDTH))[0], 1)


COUNTS = bin_counts()
PARTS = {"many (> 100)": COUNTS > 100, "medium": (COUNTS >= 20) & (COUNTS <= 100), "few (< 20)": COUNTS < 20}


def absolute(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Error of each row; y is the target in widths of a bin, so that its whole part, the label, is the bin."""
    return (outputs[..., 0] - WIDTH * y[:, None]).abs()


def errors(networks: Networks, seed: int) -> np.ndarray:
    """Mean absolute error of each bin, float64 [n_bins, n_seeds, n_rates]."""
    x, t = skewed(np.full(N_BINS, 200), seed)
    with torch.no_grad():
        off = (networks(x[None])[..., 0] - t).abs()
    return off.view(*off.shape[:2], N_BINS, 200).mean(dim=3).permute(2, 0, 1).double().numpy()


def of_arm(arm: str, n_seeds: int, n_steps: int) -> np.ndarray:
    """Error of each bin at the best rate, float64 [n_bins, n_seeds]."""
    row_weights = 1 / np.clip(COUNTS, 5, 1000)
    shares = COUNTS * row_weights
    shares = shares / shares.sum()
    bins = torch.arange(N_BINS).repeat_interleave(torch.as_tensor(COUNTS))
    x, t = (torch.stack(part) for part in zip(*(skewed(COUNTS, s) for s in range(n_seeds)), strict=True))
    makers = {
        "fastbalance": lambda s: _feeds.balanced(bins, BATCH, n_steps, s, fb.balance.target(dict(enumerate(shares)))),
        "WeightedRandomSampler": lambda s: _feeds.iid(bins, BATCH, n_steps, s, shares),
    }
    make = makers.get(arm, lambda s: _feeds.natural(bins, BATCH, n_steps, s))
    batches = torch.stack([make(seed) for seed in range(n_seeds)])
    networks = Networks((FEATURES, HIDDEN, 1), RATES, n_seeds)
    weights = torch.tensor(row_weights * len(bins) / (COUNTS * row_weights).sum(), dtype=torch.float32)

    divide = "rows" if arm == "weighted / B" else None
    optimiser = Optimiser("momentum", networks)
    train(networks, x, t / WIDTH, batches, optimiser, divide=divide, weights=weights, row_losses=absolute)
    valid, test = errors(networks, 10_000), errors(networks, 10_001)
    return test[:, :, int(np.nan_to_num(valid.mean(axis=(0, 1)), nan=np.inf).argmin())]


def run(quick: bool) -> Result:
    n_seeds, n_steps = (4, 300) if quick else (10, 2000)
    found = {arm: of_arm(arm, n_seeds, n_steps) for arm in ARMS}
    grid = Grid("Mean absolute error, rows spread evenly over the bins", ("arm", "all", *PARTS))
    grid.rows = [[a, float(v.mean()), *(float(v[part].mean()) for part in PARTS.values())] for a, v in found.items()]
    few, many = (
        {arm: v[PARTS[name]].mean(axis=0) for arm, v in found.items()} for name in ("few (< 20)", "many (> 100)")
    )
    mean = {arm: v.mean(axis=0) for arm, v in found.items()}
    findings = [
        finding("few: natural minus fastbalance", above(0, "hypothesis"), paired(few["natural"], few["fastbalance"])),
        finding(
            "many: fastbalance minus natural", above(0, "hypothesis"), paired(many["fastbalance"], many["natural"])
        ),
    ]
    for arm in ("weighted / B", "WeightedRandomSampler"):
        expected = above(-0.01, "hypothesis: no worse")
        findings.append(finding(f"all: {arm} minus fastbalance", expected, paired(mean[arm], mean["fastbalance"])))
    return Result(findings, [grid])
