"""Ways to make batches, as row numbers int64 [n_steps, batch_rows], and the data sets that they index.

"natural" is torch's RandomSampler, epoch after epoch; "iid" its WeightedRandomSampler. All others are fastbalance:
EpochOrder, with the plan that BalancedLoader and BalancedBatchSampler make (a test compares the rows).
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import RandomSampler, Sampler, WeightedRandomSampler

import fastbalance as fb


def two_class_labels(rows: int, f: float) -> torch.Tensor:
    """Labels with a share f of ones, which come last."""
    labels = torch.zeros(rows, dtype=torch.int64)
    labels[rows - round(f * rows) :] = 1
    return labels


def class_rows(labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers sorted by class, uint32, and the rows of each class."""
    return np.argsort(labels.numpy(), kind="stable").astype(np.uint32), np.bincount(labels.numpy())


def as_tensor(sampler: Sampler[int]) -> torch.Tensor:
    """What a sampler yields, int64 [len(sampler)]."""
    return torch.from_numpy(np.fromiter(sampler, np.int64, len(sampler)))  # type: ignore[arg-type]


def natural(labels: torch.Tensor, batch_rows: int, n_steps: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(range(len(labels)), generator=generator)
    each = len(labels) // batch_rows
    epochs = [as_tensor(sampler)[: each * batch_rows] for _ in range(-(-n_steps // each))]
    return torch.cat(epochs).view(-1, batch_rows)[:n_steps]


def iid(
    labels: torch.Tensor, batch_rows: int, n_steps: int, seed: int, shares: np.ndarray | None = None
) -> torch.Tensor:
    """Draws with replacement; classes have the same share, unless told otherwise."""
    counts = torch.bincount(labels).double()
    wanted = torch.ones_like(counts) if shares is None else torch.as_tensor(shares, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = WeightedRandomSampler((wanted / counts)[labels].tolist(), n_steps * batch_rows, True, generator)
    return as_tensor(drawn).view(n_steps, batch_rows)


def balanced(
    labels: torch.Tensor,
    batch_rows: int,
    n_steps: int,
    seed: int,
    balance: str | fb.balance.Balance = "uniform",
    epoch_rows: int | str | None = None,
) -> torch.Tensor:
    """fastbalance, epoch after epoch."""
    rows, counts = class_rows(labels)
    plan = fb.make_plan(counts, balance, epoch_rows, batch_rows, tail="drop")
    each = plan.n_batches
    epochs = [fb.EpochOrder(rows, plan, seed, epoch)[:] for epoch in range(-(-n_steps // each))]
    return torch.cat(epochs).view(-1, batch_rows)[:n_steps]


def undersampled_once(labels: torch.Tensor, batch_rows: int, n_steps: int, seed: int) -> torch.Tensor:
    """As many rows of the larger classes as the smallest has, drawn once, then shuffled anew in every epoch."""
    _, counts = class_rows(labels)
    generator = np.random.default_rng(seed)
    kept = [generator.permutation(np.flatnonzero(labels.numpy() == c))[: counts.min()] for c in range(len(counts))]
    subset = torch.from_numpy(np.concatenate(kept))
    return subset[natural(labels[subset], batch_rows, n_steps, seed)]


def permuted(labels: torch.Tensor, batch_rows: int, n_steps: int, seed: int) -> torch.Tensor:
    """Every row of a class equally often, in one list, shuffled: balanced over an epoch, not in a batch."""
    _, counts = class_rows(labels)
    repeats = torch.from_numpy(counts.max() // counts)[labels]
    pool = torch.arange(len(labels)).repeat_interleave(repeats)
    return pool[natural(labels[pool], batch_rows, n_steps, seed)]


FEEDS = {"natural": natural, "iid": iid, "balanced": balanced, "once": undersampled_once, "permuted": permuted}


def minority_counts(feed: str, f: float, batch_rows: int, n_batches: int, seed: int, rows: int = 100_000) -> np.ndarray:
    """Minority rows of each batch of a feed, int64 [n_batches]."""
    labels = two_class_labels(rows, f)
    return labels[FEEDS[feed](labels, batch_rows, n_batches, seed)].sum(dim=1).numpy()


def gaussians(
    rows: int, f: float, n_features: int, distance: float, seed: int, bias: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two spherical clouds a distance apart, float32 [rows, n_features (+ a column of ones)], and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = two_class_labels(rows, f)
    x = torch.randn(rows, n_features, generator=generator)
    x += (labels[:, None] - 0.5) * distance / n_features**0.5
    return (torch.cat([x, torch.ones(rows, 1)], dim=1) if bias else x), labels


def blobs(
    counts: np.ndarray, n_features: int, spread: float, seed: int, centres_seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """One cloud for each class around centres that only `centres_seed` fixes."""
    centres = torch.randn(len(counts), n_features, generator=torch.Generator().manual_seed(centres_seed))
    labels = torch.arange(len(counts)).repeat_interleave(torch.as_tensor(counts))
    noise = torch.randn(len(labels), n_features, generator=torch.Generator().manual_seed(seed + 1))
    return centres[labels] + spread * noise, labels
