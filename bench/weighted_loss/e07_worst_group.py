"""With a spurious feature, which arm is best for the worst group? (Idrissi et al., 2022, their toy; built anew)

Set-up: n = 1,000 rows, labels y = -1, 1 evenly; a core feature y + .15 N(0, 1); a spurious one a + .15 N(0, 1), where
a = y but for 20 % of the rows, a = -y; 1,200 features of noise in training, zero in the test. Features are multiplied
by 1 (core), 4 (spurious) and 20, or 4 (noise). A linear model without bias, first weights .01 N(0, 1) over the
feature's factor, SGD with momentum .9, B = 250, rates 1e-6 and 1e-5, weight decay 0, .1, 1, 10; the best pair of an
arm is chosen by the worst group of 1,000 validation rows; 500 epochs. Groups are (y, a). Arms: natural (ERM);
undersampled once (SUBG); WeightedRandomSampler (RWG); weighted / B; fastbalance over groups: undersampled anew in
every epoch, and oversampled.

Expected: worst group of SUBG and RWG above ERM (direction only). That rotating is no worse than static undersampling
is a hypothesis; that it does what oversampling does, the other one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from . import _feeds
from ._common import DIFFERS, Finding, Grid, Result, about, above, finding, paired, t_interval
from ._learners import Networks, Optimiser, binary_losses, class_weights, train

ROWS, NOISE, FLIPPED, SPREAD, BATCH = 1000, 1200, 0.2, 0.15, 250
CORE, SPURIOUS, NOISES = 1.0, 4.0, (20.0, 4.0)
RATES, DECAYS = (1e-6, 1e-5), (0.0, 0.1, 1.0, 10.0)
ARMS = {
    "natural (ERM)": "natural",
    "undersampled once (SUBG)": "once",
    "WeightedRandomSampler (RWG)": "iid",
    "weighted / B": "weighted",
    "fastbalance, undersampled": "under",
    "fastbalance, oversampled": "balanced",
}


def draw(seed: int, noise: float, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """x with noise of a size, and the group of each row: 0 .. 3; 0 and 1 have y = -1, and 0 and 3 have a = y."""
    rng = np.random.default_rng(seed)
    y = np.repeat([-1, 1], rows // 2)
    flipped = np.tile(np.arange(rows // 2) < FLIPPED * (rows // 2), 2)
    a = np.where(flipped, -y, y)
    core = CORE * (y + SPREAD * rng.standard_normal(rows))
    spurious = SPURIOUS * (a + SPREAD * rng.standard_normal(rows))
    others = noise * rng.standard_normal((rows, NOISE))
    x = np.column_stack([core, spurious, others]).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(2 * (y > 0) + (a > 0))


def group_losses(outputs: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    return binary_losses(outputs, groups >= 2)


def worst_group(networks: Networks, x: torch.Tensor, groups: torch.Tensor) -> np.ndarray:
    """Accuracy of the worst group, float64 [n_seeds, n_settings]."""
    with torch.no_grad():
        right = (networks(x[None])[..., 0] > 0) == (groups >= 2)
    return torch.stack([right[..., groups == g].double().mean(dim=2) for g in range(4)]).amin(dim=0).numpy()


def batches_of(feed: str, groups: torch.Tensor, n_steps: int, seed: int) -> torch.Tensor:
    if feed == "under":
        return _feeds.balanced(groups, BATCH, n_steps, seed, epoch_rows="under")
    return _feeds.FEEDS["natural" if feed == "weighted" else feed](groups, BATCH, n_steps, seed)


def accuracies(feed: str, noise: float, n_seeds: int, n_steps: int) -> np.ndarray:
    """Worst-group accuracy on the test rows, at the setting that the validation rows choose, float64 [n_seeds]."""
    x, groups = zip(*(draw(seed, noise) for seed in range(n_seeds)), strict=True)
    batches = torch.stack([batches_of(feed, groups[0], n_steps, seed) for seed in range(n_seeds)])
    settings = [(rate, decay) for rate in RATES for decay in DECAYS]
    networks = Networks((NOISE + 2, 1), [rate for rate, _ in settings], n_seeds)
    gammas = torch.tensor([CORE, SPURIOUS, *[noise] * NOISE])[:, None]
    for seed in range(n_seeds):
        generator = torch.Generator().manual_seed(seed)
        networks.parameters[0][seed] = 0.01 * torch.randn(NOISE + 2, 1, generator=generator) / gammas
    networks.parameters[1].zero_()
    decay = torch.tensor([decay for _, decay in settings]).view(1, -1, 1, 1)
    optimiser = WithoutBias("momentum", networks, decay)
    options = dict(divide="rows" if feed == "weighted" else None, weights=class_weights(groups[0]), falling=False)
    train(networks, torch.stack(x), groups[0], batches, optimiser, row_losses=group_losses, **options)
    valid, test = (worst_group(networks, *draw(10_000 + k, 0.0)) for k in range(2))
    return test[:, int(valid.mean(axis=0).argmax())]


class WithoutBias(Optimiser):
    """Leaves the bias at zero."""

    def step(self, gradients: list[torch.Tensor], part: float) -> None:
        super().step([gradients[0], torch.zeros_like(gradients[1])], part)


def findings_of(noise: float, found: dict[str, np.ndarray]) -> list[Finding]:
    erm, once, rwg, weighted, anew, over = found.values()
    published, no_worse = above(0, "Idrissi et al. 2022"), above(-0.01, "hypothesis: no worse")
    same = about(0.0, "a row comes as often in both", margin=0.05)
    note = (
        "Speaks against rotating. A likely reason, not measured here: over many epochs a row of a small group comes "
        "more often than one of a large group, as in oversampling, so its noise is learned by heart first, and the "
        "large groups then teach the spurious feature (Sagawa et al. 2020, on why subsampling once can win)."
    )
    rotating = finding(f"noise {noise:g}: rotating minus static undersampling", no_worse, paired(anew, once))
    return [
        finding(f"noise {noise:g}: undersampled once (SUBG) minus ERM", published, paired(once, erm)),
        finding(f"noise {noise:g}: WeightedRandomSampler (RWG) minus ERM", published, paired(rwg, erm)),
        replace(rotating, note=note) if rotating.verdict == DIFFERS else rotating,
        finding(f"noise {noise:g}: rotating undersampling minus oversampling", same, paired(anew, over)),
        finding(f"noise {noise:g}: oversampled by fastbalance minus weighted / B", no_worse, paired(over, weighted)),
    ]


def run(quick: bool) -> Result:
    n_seeds, n_steps = (3, 300) if quick else (10, 2000)
    grid = Grid("Accuracy of the worst of four groups", ("noise", "arm", "mean", "low", "high"))
    findings = []
    for noise in NOISES[:1] if quick else NOISES:
        found = {name: accuracies(feed, noise, n_seeds, n_steps) for name, feed in ARMS.items()}
        findings += findings_of(noise, found)
        grid.rows += [[f"{noise:g}", name, *t_interval(values)] for name, values in found.items()]
    return Result(findings, [grid])
