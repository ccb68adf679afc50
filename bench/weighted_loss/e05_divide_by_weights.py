"""Divided by the sum of weights, as `CrossEntropyLoss(weight=)` does, how much does the minority count?

Set-up: torch's CrossEntropyLoss with weights .5 / f_c on drawn batches, all logits zero, so that every row's gradient
has the same size; the minority's part is read from the gradient that torch computes. B = 16 .. 1024, f = 10, 1, 0.1
%.

Expected: E[w1 m / (w1 m + w0 (B - m))], m binomial; the aim would be 1/2. Without a minority row in the batch, the
gradient is that of the unweighted loss: the weight cancels.
"""

from __future__ import annotations

import numpy as np
import torch

from . import _feeds, _formulas
from ._common import Expected, Finding, Result, about, exact, finding, t_interval

SHARES, BATCHES, ROWS = (0.1, 0.01, 0.001), (16, 64, 256, 1024), 100_000
CANCELS = Expected(0, 1e-7, "<= 1e-7", "the weight cancels")


def gradients(loss: torch.nn.Module, batches: torch.Tensor) -> torch.Tensor:
    """Gradients for the logits at zero, float32 [n_batches, batch_rows, 2], of labels [n_batches, batch_rows]."""
    return torch.func.vmap(torch.func.grad(loss))(torch.zeros(*batches.shape, 2), batches)


def minority_shares(loss: torch.nn.Module, batches: torch.Tensor) -> np.ndarray:
    """The minority's part of each batch's gradient, float64 [n_batches]."""
    sizes = gradients(loss, batches).abs().sum(dim=2).double()
    return ((sizes * (batches == 1)).sum(dim=1) / sizes.sum(dim=1)).numpy()


def of_setting(f: float, batch_rows: int, n_batches: int) -> Finding:
    labels = _feeds.two_class_labels(ROWS, f)
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(_formulas.weights(f)))
    shares = minority_shares(loss, labels[_feeds.natural(labels, batch_rows, n_batches, 0)])
    value = _formulas.normalised_mass(f, batch_rows)
    wanted = about(value, "binomial counts", margin=min(0.01, 0.2 * value))
    return finding(f"f {f:.1%}, B {batch_rows}: minority share", wanted, t_interval(shares))


def without_minority() -> float:
    """Largest difference of the weighted and the plain gradient of a batch of majority rows."""
    batch = torch.zeros(1, 64, dtype=torch.int64)
    weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor(_formulas.weights(0.01)))
    return float((gradients(weighted, batch) - gradients(torch.nn.CrossEntropyLoss(), batch)).abs().max())


def run(quick: bool) -> Result:
    settings = [(f, b) for f in SHARES for b in BATCHES if not quick or b in (16, 256)]
    settings.sort(key=lambda setting: setting != (0.01, 16))
    findings = [of_setting(f, b, 20_000 if b <= 256 else 4000) for f, b in settings]
    findings.append(finding("no minority row: gap to the unweighted gradient", CANCELS, exact(without_minority())))
    labels = _feeds.two_class_labels(ROWS, 0.01)
    ours = minority_shares(torch.nn.CrossEntropyLoss(), labels[_feeds.balanced(labels, 16, 500, 0)])
    half = about(0.5, "exact quota", margin=1e-6)
    findings.append(finding("f 1.0%, B 16: the same of fastbalance, unweighted", half, t_interval(ours)))
    return Result(findings)
