"""In a long tail, which share of each class should be drawn? (the four samplers of Kang et al., 2020)

Set-up: 20 Gaussian clouds in 16 dimensions, n_c = n_max mu^(c / (C - 1)), n_max = 1,000, mu = .01 (1,000 .. 10 rows);
a network of 64 hidden units, momentum .9, B = 128, 2,000 steps, rate chosen by the accuracy on separate rows; 200
test rows a class; 10 seeds, each with data of its own. All samplers are fastbalance: natural (instance), uniform
(class), sqrt, progressive (instance to class, linearly, in 20 epochs); and the weighted loss / B.

Expected: on few-shot classes (< 20 rows) natural below uniform (published direction). Over all classes sqrt and
progressive at least as good as uniform (a hypothesis at this size). Kang: ImageNet-LT, all: 44.4, 45.1, 46.8, 47.2;
three ways of training the classifier anew reach 49.4 .. 49.9, and this is not one of them.
"""

from __future__ import annotations

import numpy as np
import torch

import fastbalance as fb

from . import _feeds
from ._common import Finding, Grid, Result, above, finding, paired
from ._learners import Networks, Optimiser, class_losses, class_weights, train

CLASSES, FEATURES, HIDDEN, BATCH, LARGEST, MU, SPREAD = 20, 16, 64, 128, 1000, 0.01, 1.6
RATES, PHASES = (0.003, 0.01, 0.03, 0.1), 20
ARMS = ("natural", "uniform", "sqrt", "progressive", "weighted / B")
COUNTS = np.round(LARGEST * MU ** (np.arange(CLASSES) / (CLASSES - 1))).astype(int)
PARTS = {"many (> 100)": COUNTS > 100, "medium": (COUNTS >= 20) & (COUNTS <= 100), "few (< 20)": COUNTS < 20}


def progressive(labels: torch.Tensor, n_steps: int, seed: int) -> torch.Tensor:
    """Shares that move from the natural to the uniform ones, one plan for each of the phases."""
    shares = COUNTS / COUNTS.sum()
    parts = []
    for phase in range(PHASES):
        part = phase / (PHASES - 1)
        target = fb.balance.target(dict(enumerate((1 - part) * shares + part / CLASSES)))
        parts.append(_feeds.balanced(labels, BATCH, n_steps // PHASES, seed * PHASES + phase, target))
    return torch.cat(parts)


def batches_of(arm: str, labels: torch.Tensor, n_steps: int, seed: int) -> torch.Tensor:
    if arm == "progressive":
        return progressive(labels, n_steps, seed)
    if arm == "weighted / B":
        return _feeds.natural(labels, BATCH, n_steps, seed)
    return _feeds.balanced(labels, BATCH, n_steps, seed, arm)


def accuracies(networks: Networks, x: torch.Tensor, y: torch.Tensor, shares: np.ndarray) -> np.ndarray:
    """Accuracy of each class, float64 [n_classes, n_seeds, n_rates], once the log of `shares` is off the logits."""
    with torch.no_grad():
        right = (networks(x[None]) - torch.from_numpy(np.log(shares)).float()).argmax(dim=3) == y
    return np.stack([right[..., y == c].double().mean(dim=2).numpy() for c in range(CLASSES)])


def drawn_shares(arm: str) -> np.ndarray:
    """What an arm, in the end, makes of the classes' shares."""
    power = {"natural": 1.0, "sqrt": 0.5}.get(arm, 0.0)
    return COUNTS**power / (COUNTS**power).sum()


def of_arm(arm: str, n_seeds: int, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Test accuracy of each class at the best rate, float64 [n_classes, n_seeds]; and with adjusted logits."""
    data = [_feeds.blobs(COUNTS, FEATURES, SPREAD, seed) for seed in range(n_seeds)]
    x, y = torch.stack([each for each, _ in data]), data[0][1]
    batches = torch.stack([batches_of(arm, y, n_steps, seed) for seed in range(n_seeds)])
    networks = Networks((FEATURES, HIDDEN, CLASSES), RATES, n_seeds)
    divide = "rows" if arm == "weighted / B" else None
    optimiser = Optimiser("momentum", networks)
    train(networks, x, y, batches, optimiser, divide=divide, weights=class_weights(y), row_losses=class_losses)
    even = np.full(CLASSES, 200)
    found = []
    for shares in (np.ones(CLASSES), drawn_shares(arm)):
        valid, test = (
            accuracies(networks, *_feeds.blobs(even, FEATURES, SPREAD, 10_000 + k), shares) for k in range(2)
        )
        found.append(test[:, :, int(valid.mean(axis=(0, 1)).argmax())])
    return found[0], found[1]


def findings_of(found: dict[str, np.ndarray], adjusted: dict[str, np.ndarray]) -> list[Finding]:
    few = PARTS["few (< 20)"]
    mean, few_mean = ({arm: v[part].mean(axis=0) for arm, v in found.items()} for part in (slice(None), few))
    free = {arm: v.mean(axis=0) for arm, v in adjusted.items()}
    published, no_worse = above(0, "Kang 2020: instance < class"), above(-0.005, "hypothesis: no worse")
    few_gain = paired(few_mean["uniform"], few_mean["natural"])
    left = paired(free["sqrt"], mean["uniform"])[0]
    prior = f"with its logits adjusted for the shares that it draws, it is {left:+.4f} from uniform: "
    prior += "the prior explains the gap" if left > -0.005 else "the prior alone does not explain the gap"
    return [
        finding("few: uniform minus natural", published, few_gain),
        finding("all: sqrt minus uniform", no_worse, paired(mean["sqrt"], mean["uniform"]), prior),
        finding("all: progressive minus uniform", no_worse, paired(mean["progressive"], mean["uniform"])),
        finding("all: uniform minus weighted / B", no_worse, paired(mean["uniform"], mean["weighted / B"])),
        finding("all: uniform minus natural, logits adjusted", no_worse, paired(mean["uniform"], free["natural"])),
    ]


def run(quick: bool) -> Result:
    n_seeds, n_steps = (4, 400) if quick else (10, 2000)
    both = {arm: of_arm(arm, n_seeds, n_steps) for arm in ARMS}
    found, adjusted = ({arm: pair[k] for arm, pair in both.items()} for k in range(2))
    grid = Grid("Accuracy, balanced test rows", ("arm", "all", *PARTS, "all, logits adjusted"))
    for arm, v in found.items():
        parts = (float(v[part].mean()) for part in PARTS.values())
        grid.rows.append([arm, float(v.mean()), *parts, float(adjusted[arm].mean())])
    return Result(findings_of(found, adjusted), [grid])
