"""What the demo compares: ways to make batches, ways to weigh the loss, and small networks that learn by each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, TensorDataset, WeightedRandomSampler

from .dataset import Dataset
from .flights import LABEL, Split
from .loader import BalancedLoader

Batch = Sequence[torch.Tensor]  # x, float32 [batch_rows, n_features]; y, float32 [batch_rows]
Feed = Literal["shuffle", "WeightedRandomSampler", "fastbalance, natural", "fastbalance"]
Loss = Literal["mean", "rows", "weights"]

HIDDEN = (64, 64)
MOMENTUM = 0.9


@dataclass(frozen=True)
class Arm:
    """One way to learn from imbalanced data.

    Attributes:
        name: What tables and figures call it.
        feed: Where its batches come from.
        loss: "mean": all rows count the same. Else a row has the weight of its class (see `class_weights`), and the sum
            of a batch's weighted losses is divided by its "rows", or by the sum of its "weights".
        moved: Whether the threshold is moved from 0.5 to the natural share, as befits a model of natural data.
    """

    name: str
    feed: Feed
    loss: Loss = "mean"
    moved: bool = False


FASTBALANCE = Arm("fastbalance", "fastbalance")
ARMS = (
    Arm("natural, threshold moved", "shuffle", moved=True),
    Arm("weighted / rows", "shuffle", "rows"),
    Arm("weighted / sum of weights", "shuffle", "weights"),
    Arm("weighted, even batches", "fastbalance, natural", "rows"),
    Arm("WeightedRandomSampler", "WeightedRandomSampler"),
    FASTBALANCE,
)


def class_weights(share: float) -> tuple[float, float]:
    """Weights of a majority and of a minority row that make the classes equal, given the minority's share."""
    return 0.5 / (1 - share), 0.5 / share


def endless(
    feed: Feed, train: Split, shards: Path, batch_rows: int, seed: int, by_row: bool = False
) -> Iterator[Batch]:
    """Batches of a feed, epoch after epoch.

    Args:
        feed: Which. Those of fastbalance read the shards, the others a TensorDataset.
        train, shards: The same rows, in memory and as files.
        batch_rows: Rows of a batch.
        seed: Fixes the order.
        by_row: Let the DataLoader fetch row by row and collate, as it does unless told otherwise. Else its indices are
            lists of rows, and it fetches a batch at once: the same batches, several times as fast.
    """
    if feed in ("fastbalance", "fastbalance, natural"):
        loader = _balanced_loader(feed, shards, batch_rows, seed)
        while True:
            for batch in loader:
                yield batch["x"], batch["y"]
    generator = torch.Generator().manual_seed(seed)
    data, sampler = TensorDataset(train.x, train.y), _sampler(feed, train.y, generator)
    torch_loader: DataLoader = (
        DataLoader(data, batch_rows, sampler=sampler, drop_last=True, generator=generator)
        if by_row
        else DataLoader(data, None, sampler=BatchSampler(sampler, batch_rows, True), generator=generator)
    )
    while True:
        yield from torch_loader


def minority_mass(loss: Loss, minority_rows: np.ndarray, batch_rows: int, share: float) -> np.ndarray:
    """The minority's share of a batch's loss, were all rows equally hard: m_c of the class, for each batch.

    Args:
        loss: How the loss is weighed.
        minority_rows: Minority rows of each batch.
        batch_rows: Rows of a batch.
        share: Minority share of the data set, for the weights.
    """
    if loss == "mean":
        return minority_rows / batch_rows
    majority, minority = class_weights(share)
    mass = minority * minority_rows
    return mass / (batch_rows if loss == "rows" else mass + majority * (batch_rows - minority_rows))


def expected_spread(arm: Arm, batch_rows: int, share: float) -> float:
    """The CV (standard deviation / mean) that `minority_mass` should have over the batches of an arm.

    The count of minority rows is binomial where batches are random: for the losses "mean" and "rows" the CV is then
    `sqrt((1 - s) / (s * batch_rows))`, s being the share that is drawn. Where they are even it is one of the two whole
    numbers next to its mean.
    """
    drawn = 0.5 if arm.feed in ("fastbalance", "WeightedRandomSampler") else share
    counts = np.arange(batch_rows + 1)
    if arm.feed in ("fastbalance", "fastbalance, natural"):
        chances = np.maximum(1 - np.abs(counts - drawn * batch_rows), 0)
    else:
        chances = stats.binom.pmf(counts, batch_rows, drawn)
    mass = minority_mass(arm.loss, counts, batch_rows, share)
    mean = chances @ mass
    return float(np.sqrt(chances @ (mass - mean) ** 2) / mean)


class Networks:
    """Small networks side by side, one for each learning rate and seed: their products are then single calls.

    A seed fixes the first parameters, the same for all rates, in the ranges of `torch.nn.Linear`.

    Attributes:
        rates: Learning rates.
        n_seeds: The seeds are [0, n_seeds).
        parameters: Weight, bias, weight, ... of the layers, float32 [n_rates * n_seeds, n_inputs or 1, n_outputs].
    """

    def __init__(self, n_features: int, rates: Sequence[float], n_seeds: int) -> None:
        self.rates, self.n_seeds = rates, n_seeds
        generators = [torch.Generator().manual_seed(seed) for seed in range(n_seeds)]
        self.parameters = []
        for n_in, n_out in pairwise((n_features, *HIDDEN, 1)):
            for rows in (n_in, 1):
                each = [torch.rand(rows, n_out, generator=generator) for generator in generators]
                p = (2 * torch.stack(each) - 1) / n_in**0.5
                self.parameters.append(p.repeat(len(rates), 1, 1).requires_grad_())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [n_rates * n_seeds, n_rows], of x, float32 [n_rates * n_seeds, n_rows, n_features]."""
        return _forward(self.parameters, x)

    def logits(self, rate: float, x: torch.Tensor) -> torch.Tensor:
        """What the networks of one rate say about a split, float32 [n_seeds, n_rows], without gradients."""
        first = self.rates.index(rate) * self.n_seeds
        with torch.no_grad():
            return torch.cat([
                _forward([p[k : k + 1] for p in self.parameters], x[None])
                for k in range(first, first + self.n_seeds)
            ])  # fmt: skip


def learn(
    networks: Networks,
    arm: Arm,
    feeds: Sequence[Iterator[Batch]],
    n_steps: int,
    share: float,
    advance: Callable[[], None],
) -> np.ndarray:
    """Train networks, and count the minority rows of the batches they saw.

    The optimiser is SGD with momentum: its steps are as long as the gradients make them, so that an uneven loss shows.
    The rate falls linearly to 0, so that no arm is judged by the noise of its last step.

    Args:
        networks: They learn.
        arm: The loss.
        feeds: Batches for each seed, the same for all rates.
        n_steps: Batches to learn from.
        share: Minority share of the training split.
        advance: Called after every step.

    Returns:
        int64 [n_steps, n_seeds].
    """
    n_rates, n_seeds = len(networks.rates), len(feeds)
    rate = torch.tensor(networks.rates).repeat_interleave(n_seeds).reshape(-1, 1, 1)
    velocities = [torch.zeros_like(p) for p in networks.parameters]
    minority_rows = np.empty((n_steps, n_seeds), np.int64)
    for step in range(n_steps):
        xs, ys = zip(*map(next, feeds), strict=True)
        x, y = torch.stack(xs), torch.stack(ys)
        minority_rows[step] = y.sum(dim=1).numpy()
        losses = _losses(arm.loss, networks(x.repeat(n_rates, 1, 1)), y.repeat(n_rates, 1), share)
        # The networks share no parameter: the gradients of the sum are the gradients of each.
        gradients = torch.autograd.grad(losses.sum(), networks.parameters)
        with torch.no_grad():
            for p, v, g in zip(networks.parameters, velocities, gradients, strict=True):
                p -= rate * (1 - step / n_steps) * v.mul_(MOMENTUM).add_(g)
        advance()
    return minority_rows


def _balanced_loader(feed: Feed, shards: Path, batch_rows: int, seed: int) -> BalancedLoader:
    data = Dataset.open(str(shards / "*.parquet"), LABEL)
    return BalancedLoader(
        data,
        batch_size=batch_rows,
        columns={"x": [name for name in data.schema.names if name != LABEL], "y": LABEL},
        dtypes={"y": torch.float32},
        balance="uniform" if feed == "fastbalance" else "natural",
        tail="drop",
        seed=seed,
        device="cpu",
        extras=(),
    )


def _sampler(feed: Feed, y: torch.Tensor, generator: torch.Generator) -> Sampler[int]:
    if feed == "shuffle":
        return RandomSampler(range(len(y)), generator=generator)
    majority, minority = class_weights(float(y.mean()))
    return WeightedRandomSampler(torch.where(y > 0, minority, majority).tolist(), len(y), generator=generator)


def _forward(parameters: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    *hidden, last = zip(parameters[::2], parameters[1::2], strict=True)
    for weight, bias in hidden:
        x = torch.baddbmm(bias, x, weight).relu()
    return torch.baddbmm(last[1], x, last[0]).squeeze(2)


def _losses(loss: Loss, logits: torch.Tensor, y: torch.Tensor, share: float) -> torch.Tensor:
    """The loss of each network, float32 [n_networks]."""
    rows = binary_cross_entropy_with_logits(logits, y, reduction="none")
    if loss == "mean":
        return rows.mean(dim=1)
    majority, minority = class_weights(share)
    weights = torch.where(y > 0, minority, majority)
    sums = (weights * rows).sum(dim=1)
    return sums / (y.shape[1] if loss == "rows" else weights.sum(dim=1))
