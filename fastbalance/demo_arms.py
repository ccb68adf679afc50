"""What the demo compares: ways to make batches, ways to weigh the loss, and one small network trained by each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, TensorDataset, WeightedRandomSampler

from .flights import LABEL, Flights, Split
from .loader import BalancedLoader

Batch = tuple[torch.Tensor, torch.Tensor]
Feed = Literal["shuffle", "weighted sampler", "fastbalance natural", "fastbalance balanced"]

HIDDEN = (64, 64)
MOMENTUM = 0.9


@dataclass(frozen=True)
class Arm:
    """One way to learn from imbalanced data.

    Attributes:
        name: What tables and figures call it.
        feed: Where its batches come from.
        loss: "mean": every row counts the same. Else a row of class c has the weight w_c = 1 / (2 f_c), f_c being
            the share of its class, and the sum of weighted losses is divided by the "rows" of the batch or by the
            sum of the "weights" in it.
    """

    name: str
    feed: Feed
    loss: Literal["mean", "rows", "weights"] = "mean"


FASTBALANCE = Arm("fastbalance", "fastbalance balanced")
ARMS = (
    Arm("no balancing, threshold moved", "shuffle"),
    Arm("weighted loss / rows", "shuffle", "rows"),
    Arm("weighted loss / sum of weights", "shuffle", "weights"),
    Arm("weighted loss / rows, even batches", "fastbalance natural", "rows"),
    Arm("WeightedRandomSampler", "weighted sampler"),
    FASTBALANCE,
)


@dataclass(frozen=True)
class Trained:
    """Networks of one arm, one for each learning rate and seed.

    Attributes:
        logits: Those of a split, as a function: float32 [n_rates, n_seeds, n_rows].
        minority_rows: float32 [n_steps, n_seeds]. Cancelled flights in each batch.
    """

    logits: Callable[[torch.Tensor], torch.Tensor]
    minority_rows: np.ndarray


def class_weights(minority_share: float) -> tuple[float, float]:
    """Weights of a majority and of a minority row that give both classes the same sum; 1 on average."""
    return 0.5 / (1 - minority_share), 0.5 / minority_share


def make_sampler(feed: Feed, y: torch.Tensor, generator: torch.Generator) -> Sampler[int]:
    """The sampler of torch that stands behind a feed."""
    if feed == "shuffle":
        return RandomSampler(y, generator=generator)  # type: ignore[arg-type]
    majority, minority = class_weights(float(y.mean()))
    return WeightedRandomSampler(torch.where(y > 0, minority, majority), len(y), generator=generator)  # type: ignore[arg-type]


def make_loader(flights: Flights, shards: Path, batch_rows: int, seed: int, natural: bool = False) -> BalancedLoader:
    """The loader of this library over the shards of the training split."""
    return BalancedLoader(
        str(shards / "*.parquet"),
        LABEL,
        batch_rows,
        columns={"x": flights.features, "y": LABEL},
        dtypes={"y": torch.float32},
        balance="natural" if natural else "uniform",
        tail="drop",
        seed=seed,
        device="cpu",
        extras=(),
    )


def endless(flights: Flights, shards: Path, feed: Feed, batch_rows: int, seed: int) -> Iterator[Batch]:
    """Batches of a feed, epoch after epoch."""
    if feed.startswith("fastbalance"):
        loader = make_loader(flights, shards, batch_rows, seed, natural=feed == "fastbalance natural")
        while True:
            for batch in loader:
                yield batch["x"], batch["y"]
    train, generator = flights.train, torch.Generator().manual_seed(seed)
    batches = BatchSampler(make_sampler(feed, train.y, generator), batch_rows, drop_last=True)
    # With lists of rows as its indices, a DataLoader fetches a batch at once: the same batches, many times as fast.
    data = TensorDataset(train.x, train.y)
    by_batch: DataLoader = DataLoader(data, batch_size=None, sampler=batches, generator=generator)
    while True:
        yield from by_batch


def train(arm: Arm, flights: Flights, shards: Path, batch_rows: int, n_steps: int, rates: list[float], n_seeds: int,
          advance: Callable[[], None]) -> Trained:  # fmt: skip
    """Train a network for each learning rate and seed, all side by side: their products are then single calls.

    A seed fixes the first parameters, the same in all arms, and the batches, the same for all rates. The optimiser is
    SGD with momentum, whose steps are as long as the gradients make them: an uneven loss shows. The rate falls
    linearly to 0, so that no arm is judged by the noise of its last step.

    Args:
        arm: How.
        flights, shards: From what: in memory, and the same as files.
        batch_rows: Rows of a batch.
        n_steps: Batches to learn from.
        rates: Learning rates at the first step.
        n_seeds: The seeds are [0, n_seeds).
        advance: Called after every step.
    """
    feeds = [endless(flights, shards, arm.feed, batch_rows, seed) for seed in range(n_seeds)]
    share = float(flights.train.y.mean())
    parameters = _first_parameters(len(flights.features), len(rates), n_seeds)
    velocities = [torch.zeros_like(p) for p in parameters]
    rate = torch.tensor(rates).repeat_interleave(n_seeds).reshape(-1, 1, 1)
    minority_rows = np.empty((n_steps, n_seeds), np.float32)
    for step in range(n_steps):
        xs, ys = zip(*(next(feed) for feed in feeds), strict=True)
        x, y = torch.stack(xs), torch.stack(ys)
        minority_rows[step] = y.sum(dim=1).numpy()
        logits = _forward(parameters, x.repeat(len(rates), 1, 1))
        losses = _losses(arm, logits, y.repeat(len(rates), 1), share)
        with torch.no_grad():
            # The gradients of the sum are those of each network: they share no parameter.
            for p, v, g in zip(parameters, velocities, torch.autograd.grad(losses.sum(), parameters), strict=True):
                p -= rate * (1 - step / n_steps) * v.mul_(MOMENTUM).add_(g)
        advance()
    shift = math.log(share / (1 - share)) if (arm.feed, arm.loss) == ("shuffle", "mean") else 0.0

    def logits_of(x: torch.Tensor) -> torch.Tensor:
        each = [_forward([p[k : k + 1] for p in parameters], x[None])[0] for k in range(len(rate))]
        return (torch.stack(each) - shift).reshape(len(rates), n_seeds, len(x)).detach()

    return Trained(logits_of, minority_rows)
