"""Small networks side by side, one for each seed and learning rate, and the arms that they learn by.

Their products are single batched calls. A seed fixes the first parameters, the data and the order; all rates share
them. The rate falls linearly to 0 unless told otherwise, so that no arm is judged by the noise of its last step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
    roc_auc_score,
)
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fastbalance.compare_scores import calibration_error as ece

MOMENTUM, BETAS, ADAM_EPS = 0.9, (0.9, 0.999), 1e-8

RowLosses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Arm:
    """A way to learn from imbalanced data.

    Attributes:
        feed: A key of `_feeds.FEEDS`.
        divide: None: rows count the same. "rows" or "weights": they have the weight q_c / f_c of their class, and their
            sum is divided by the batch's rows, or by its weights.
        adjusted: Whether log(f_c) is taken from the logits of a model of natural data, after training.
    """

    name: str
    feed: str
    divide: str | None = None
    adjusted: bool = False


OURS = Arm("fastbalance", "balanced")
WEIGHTED = Arm("weighted / B", "natural", "rows")
NORMALISED = Arm("weighted / sum w", "natural", "weights")
IID = Arm("WeightedRandomSampler", "iid")
ADJUSTED = Arm("natural, logits adjusted", "natural", adjusted=True)
PERMUTED = Arm("balanced permutation", "permuted")
ARMS = (OURS, WEIGHTED, NORMALISED, IID, PERMUTED, ADJUSTED)


class Networks:
    """Fully connected ReLU networks.

    Attributes:
        rates: Learning rates, float32 [n_rates].
        parameters: Weight, bias, ... of the layers, float32 [n_seeds, n_rates, n_inputs or 1, n_outputs].
    """

    def __init__(self, widths: Sequence[int], rates: Sequence[float], n_seeds: int, zero_last: bool = False) -> None:
        self.rates = torch.tensor(rates)
        self.parameters = []
        generators = [torch.Generator().manual_seed(seed) for seed in range(n_seeds)]
        for n_in, n_out in pairwise(widths):
            for rows in (n_in, 1):
                each = [torch.rand(1, rows, n_out, generator=generator) for generator in generators]
                p = (2 * torch.stack(each) - 1) / n_in**0.5
                self.parameters.append(p.repeat(1, len(rates), 1, 1))
        if zero_last:
            for p in self.parameters[-2:]:
                p.zero_()

    def __call__(self, x: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        """Outputs, float32 [n_seeds, n_rates, n_rows, n_outputs], of x, float32 [n_seeds or 1, n_rows, n_features]."""
        layers = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        for number, (weight, bias) in enumerate(layers):
            x = (first_layer(x, weight) if number == 0 else x @ weight) + bias
            if number < len(layers) - 1:
                x = x.relu()
                if dropout:
                    x = x * (torch.rand_like(x) >= dropout) / (1 - dropout)
        return x


def first_layer(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight of every rate. All rates of a seed see the same rows: one product does them, and x is not copied."""
    n_seeds, n_rates, n_in, n_out = weight.shape
    side_by_side = weight.transpose(1, 2).reshape(n_seeds, n_in, n_rates * n_out)
    return torch.matmul(x, side_by_side).view(n_seeds, -1, n_rates, n_out).transpose(1, 2)


class Optimiser:
    """SGD, SGD with momentum, or Adam, with a rate for each network."""

    def __init__(self, kind: str, networks: Networks, weight_decay: float | torch.Tensor = 0.0) -> None:
        self._kind, self._networks, self._decay = kind, networks, weight_decay
        self._first = [torch.zeros_like(p) for p in networks.parameters]
        self._second = [torch.zeros_like(p) for p in networks.parameters]
        self._n_steps = 0

    def step(self, gradients: Sequence[torch.Tensor], part: float) -> None:
        """One step with a part of each network's rate."""
        self._n_steps += 1
        rates = part * self._networks.rates.view(1, -1, 1, 1)
        for k, (p, g) in enumerate(zip(self._networks.parameters, gradients, strict=True)):
            p -= rates * self._direction(k, g + self._decay * p)

    def _direction(self, k: int, g: torch.Tensor) -> torch.Tensor:
        if self._kind == "sgd":
            return g
        if self._kind == "momentum":
            return self._first[k].mul_(MOMENTUM).add_(g)
        first = self._first[k].mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
        second = self._second[k].mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        unbiased = [1 - beta**self._n_steps for beta in BETAS]
        return first / unbiased[0] / ((second / unbiased[1]).sqrt() + ADAM_EPS)


def binary_losses(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Loss of each row, float32 [n_seeds, n_rates, n_rows], of outputs [.., 1] and labels [n_seeds, n_rows]."""
    z = outputs.squeeze(3)
    return binary_cross_entropy_with_logits(z, y[:, None].to(z.dtype).expand_as(z), reduction="none")


def class_losses(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same for outputs [.., n_classes]."""
    n_seeds, n_rates, n_rows, n_classes = outputs.shape
    labels = y[:, None].expand(n_seeds, n_rates, n_rows)
    return cross_entropy(outputs.reshape(-1, n_classes), labels.reshape(-1), reduction="none").view(labels.shape)


def batch_losses(rows: torch.Tensor, y: torch.Tensor, divide: str | None, weights: torch.Tensor) -> torch.Tensor:
    """Loss of a batch for each network, [n_seeds, n_rates], from the losses of its rows and the classes' weights."""
    if divide is None:
        return rows.mean(dim=2)
    of_rows = weights[y.long()][:, None]
    sums = (of_rows * rows).sum(dim=2)
    return sums / (y.shape[1] if divide == "rows" else of_rows.sum(dim=2))


def train(
    networks: Networks,
    x: torch.Tensor,
    y: torch.Tensor,
    batches: torch.Tensor,
    optimiser: Optimiser,
    *,
    divide: str | None = None,
    weights: torch.Tensor | None = None,
    row_losses: RowLosses = binary_losses,
    dropout: float = 0.0,
    falling: bool = True,
    watch: Callable[[int], None] | None = None,
) -> None:
    """Learn from batches.

    Args:
        x: float32 [n_seeds or 1, n_rows, n_features]: every seed's own data, or one for all.
        y: Labels, [n_rows] or [n_seeds, n_rows].
        batches: Row numbers, int64 [n_seeds, n_steps, batch_rows].
        divide, weights: As in `Arm`; a class's weight is `weights[label]`.
        watch: Called with the number of steps done, after each.
    """
    n_seeds, n_steps, _ = batches.shape
    seeds = torch.arange(n_seeds)[:, None] if len(x) > 1 else torch.zeros(1, 1, dtype=torch.int64)
    weights = torch.ones(1) if weights is None else weights
    for p in networks.parameters:
        p.requires_grad_()
    for step in range(n_steps):
        rows = batches[:, step]
        labels = y[rows] if y.ndim == 1 else y.gather(1, rows)
        losses = batch_losses(row_losses(networks(x[seeds, rows], dropout), labels), labels, divide, weights)
        # The networks share no parameter: the gradients of the sum are the gradients of each.
        gradients = torch.autograd.grad(losses.sum(), networks.parameters)
        with torch.no_grad():
            optimiser.step(gradients, 1 - step / n_steps if falling else 1.0)
            if watch is not None:
                watch(step + 1)


def class_weights(labels: torch.Tensor) -> torch.Tensor:
    """q_c / f_c for equal targets, float32 [n_classes]: their mean over the rows is 1."""
    counts = torch.bincount(labels).float()
    return len(labels) / (len(counts) * counts)


def scores(y: np.ndarray, z: np.ndarray) -> dict[str, float]:
    """Metrics of one binary model, from its logits. One that diverged ranks all rows the same."""
    z = np.clip(np.nan_to_num(z.astype(np.float64)), -30, 30)
    p = 1 / (1 + np.exp(-z))
    return {
        "roc_auc": float(roc_auc_score(y, z)),
        "pr_auc": float(average_precision_score(y, z)),
        "balanced_accuracy": float(balanced_accuracy_score(y, z > 0)),
        "log_loss": float(log_loss(y, p)),
        "brier": float(brier_score_loss(y, p)),
        "ece": ece(y, p),
    }


def balanced_loss(outputs: torch.Tensor, y: torch.Tensor, row_losses: RowLosses = binary_losses) -> np.ndarray:
    """Mean over the classes of their mean loss, float64 [n_seeds, n_rates]: the objective that balancing aims at.

    A network that diverged has an infinite one.
    """
    labels = y[None].expand(outputs.shape[0], -1)
    losses = row_losses(outputs, labels)
    means = [losses[:, :, y == c].mean(dim=2) for c in y.unique()]
    return torch.nan_to_num(torch.stack(means).mean(dim=0), nan=torch.inf).numpy().astype(np.float64)
