"""A training that is watched: the loss of each batch, the length of each update, the loss of unseen rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from ._learners import Networks, batch_losses, binary_losses

SPIKE, WINDOW = 3.0, 50
Unseen = Callable[[Networks], np.ndarray]  # losses of unseen rows


def first_at(losses: np.ndarray, looks: Sequence[int], target: float) -> np.ndarray:
    """Steps until a loss is at a target.

    Args:
        losses: float64 [n_looks, ...].
        looks: The number of steps at each look.

    Returns:
        float64 [...], inf where no look finds it there.
    """
    reached = losses <= target
    return np.where(reached.any(axis=0), np.asarray(looks, float)[reached.argmax(axis=0)], np.inf)


def spike_share(losses: np.ndarray) -> np.ndarray:
    """Share of the steps with more than SPIKE times the median loss of the WINDOW steps before, of [n_steps, ...]."""
    before = np.median(sliding_window_view(losses[:-1], WINDOW, axis=0), axis=-1)
    return (losses[WINDOW:] > SPIKE * before).mean(axis=0)


def spread(lengths: np.ndarray) -> np.ndarray:
    """Standard deviation over mean, of [n_steps, ...]."""
    return lengths.std(axis=0) / lengths.mean(axis=0)


@dataclass(frozen=True)
class Course:
    """What an arm's training showed, for each seed and rate: all float64 [n_seeds, n_rates].

    Attributes:
        valid, test: Steps to the target on these rows; inf: not within the run.
        spread, spikes: Of the second half of the run.
    """

    n_steps: int
    valid: np.ndarray
    test: np.ndarray
    spread: np.ndarray
    spikes: np.ndarray

    @property
    def best(self) -> int:
        """The rate that validation rows choose; a run that never comes to the target counts as twice its steps."""
        return int(np.argmin(np.minimum(self.valid, 2 * self.n_steps).mean(axis=0)))

    @property
    def steps(self) -> np.ndarray:
        """Steps at the best rate, float64 [n_seeds], of at most the whole run."""
        return np.minimum(self.test[:, self.best], self.n_steps)

    @property
    def never(self) -> int:
        """Seeds that do not come to the target at the best rate."""
        return int(np.isinf(self.test[:, self.best]).sum())

    @property
    def usable(self) -> np.ndarray:
        """Rates that come to the target, float64 [n_seeds]."""
        return np.isfinite(self.test).sum(axis=1).astype(float)


class Recorder:
    """Watches a training: loss of each batch, length of each update, and the loss of unseen rows at some steps."""

    def __init__(
        self, networks: Networks, divide: str | None, weights: torch.Tensor, looks: Sequence[int], unseen: Unseen
    ) -> None:
        self._networks, self._divide, self._weights, self._looks = networks, divide, weights, set(looks)
        self._unseen_losses = unseen
        self._before = [p.clone() for p in networks.parameters]
        self.batches: list[torch.Tensor] = []
        self.lengths: list[torch.Tensor] = []
        self.unseen: list[np.ndarray] = []

    def row_losses(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rows = binary_losses(outputs, y)
        self.batches.append(batch_losses(rows.detach(), y, self._divide, self._weights))
        return rows

    def __call__(self, n_steps: int) -> None:
        squares = [((p - q) ** 2).sum(dim=(2, 3)) for p, q in zip(self._networks.parameters, self._before, strict=True)]
        self.lengths.append(sum(squares[1:], squares[0]).sqrt())
        self._before = [p.detach().clone() for p in self._networks.parameters]
        if n_steps in self._looks:
            self.unseen.append(self._unseen_losses(self._networks))
