"""How noisy is the gradient of a batch?

Set-up: logistic regression on two Gaussian clouds (20 features and a bias, distance 1), 100,000 rows, B = 64; 20,000
batches of each arm in 20 groups, at the first parameters (zero), where both classes have gradients of the same second
moment, and once more after 200 full-batch steps on the natural loss, where they have not.

Expected: second moment of a row's gradient, weighted over resampled: sum(q^2 / f) = 2.78, 25.25, 250.25 at f = 10, 1,
0.1 %. Trace of the covariance: from the moments of the classes, for each arm. Not every part of the gradient gains:
the majority's own term has *less* variance in a weighted batch (its q / f is about 1/2). If a batch of fastbalance
repeated no row, its trace would be lower still where the minority has few rows; it need not (see the note).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from . import _feeds, _formulas
from ._common import AGREES, Finding, Grid, Result, about, below, finding, t_interval

ROWS, FEATURES, DISTANCE, BATCH, GROUPS = 100_000, 20, 1.0, 64, 20
ARMS = {"weighted": "natural", "iid": "iid", "stratified": "balanced"}


def row_gradients(x: torch.Tensor, y: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Gradient of the logistic loss of each row, float64 [n_rows, n_parameters]."""
    return (torch.sigmoid(x @ theta) - y)[:, None] * x


def natural_fit(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    theta = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(200):
        theta -= 0.3 * row_gradients(x, y, theta).mean(dim=0)
    return theta


def batch_means(gradients: torch.Tensor, batches: torch.Tensor) -> torch.Tensor:
    """Gradient of each batch, float64 [GROUPS, n, n_parameters]."""
    parts = [gradients[part].mean(dim=1) for part in batches.split(500)]
    return torch.cat(parts).view(GROUPS, -1, gradients.shape[1])


def traces(means: torch.Tensor, centre: torch.Tensor) -> np.ndarray:
    """Trace of the covariance about a known mean, for each group of batches."""
    return ((means - centre) ** 2).sum(dim=2).mean(dim=1).numpy()


def class_moments(gradients: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = [gradients[labels == c] for c in (0, 1)]
    means = np.stack([part.mean(dim=0).numpy() for part in parts])
    variances = np.array([float(part.var(dim=0, correction=0).sum()) for part in parts])
    return means, variances, np.array([len(part) for part in parts])


def of_share(f: float, n_batches: int) -> tuple[list[Finding], list[list]]:
    x, labels = _feeds.gaussians(ROWS, f, FEATURES, DISTANCE, 0)
    x, y = x.double(), labels.double()
    majority, minority = _formulas.weights(f)
    weight = torch.where(labels == 1, minority, majority).double()
    batches = {arm: _feeds.FEEDS[feed](labels, BATCH, n_batches, 0) for arm, feed in ARMS.items()}
    findings, rows = [], []
    for place, theta in (("start", torch.zeros_like(x[0])), ("natural fit", natural_fit(x, y))):
        plain = row_gradients(x, y, theta)
        means, variances, counts = class_moments(plain, labels)
        expected = _formulas.gradient_traces(counts / ROWS, np.array([0.5, 0.5]), means, variances, counts, BATCH)
        centre = torch.from_numpy(means.mean(axis=0))
        found = {}
        for arm, drawn in batches.items():
            gradients = weight[:, None] * plain if arm == "weighted" else plain
            found[arm] = traces(batch_means(gradients, drawn), centre)
            wanted = about(expected[arm], "moments of the classes", relative=0.1)
            findings.append(finding(f"f {f:.1%}, {place}: trace, {arm}", wanted, t_interval(found[arm])))
        norm = float(centre @ centre) / BATCH
        ratio = (found["weighted"] + norm) / (found["iid"].mean() + norm)
        if place == "start":
            wanted = about(_formulas.inflation(f), "sum(q^2 / f)", relative=0.1)
            findings.insert(0, finding(f"f {f:.1%}: second moments, weighted / iid", wanted, t_interval(ratio)))
            findings.append(one_pass(f, expected["one pass"], found["stratified"]))
            findings.append(majority_term(f, plain, labels, batches, majority))
        rows.append([f"{f:.1%}", place, _formulas.inflation(f), *ratios(found), float(ratio.mean())])
    return findings, rows


def one_pass(f: float, value: float, found: np.ndarray) -> Finding:
    """Whether fastbalance also has the gain of drawing the rows of a batch without replacement."""
    note = (
        "The rows of a class in a batch are the class's draws M apart, M being the batches of a block (docs/order.md, "
        "section 4). A class of fewer than M rows has begun a new pass in between: its rows in a batch are independent."
    )
    wanted = about(value, "sampling without replacement", relative=0.1)
    made = finding(f"f {f:.1%}, start: trace, fastbalance, if a batch repeated no row", wanted, t_interval(found))
    return made if made.verdict == AGREES else replace(made, note=note)


def ratios(found: dict[str, np.ndarray]) -> tuple[float, float]:
    return tuple(float(found["weighted"].mean() / found[arm].mean()) for arm in ("iid", "stratified"))  # type: ignore


def majority_term(
    f: float, plain: torch.Tensor, labels: torch.Tensor, batches: dict[str, torch.Tensor], majority: float
) -> Finding:
    """Variance of the majority's part of the batch gradient, weighted over iid: below 1, so in weighting's favour."""
    own = torch.where(labels[:, None] == 0, plain, 0.0)
    spread = [
        scale**2 * batch_means(own, batches[arm]).var(dim=1).sum(dim=1).numpy()
        for arm, scale in (("weighted", majority), ("iid", 1.0))
    ]
    ratio = t_interval(spread[0] / spread[1].mean())
    return finding(f"f {f:.1%}: variance of the majority's own term, weighted / iid", below(1, "q/f < 1"), ratio)


def run(quick: bool) -> Result:
    shares = (0.01, 0.1) if quick else (0.01, 0.1, 0.001)
    parts = [of_share(f, 2000 if quick else 20_000) for f in shares]
    columns = (
        "f",
        "at",
        "sum(q^2/f)",
        "trace: weighted / iid",
        "weighted / fastbalance",
        "second moment: weighted / iid",
    )
    grid = Grid("Ratios, measured; in the natural fit the classes' gradients differ in size", columns)
    grid.rows = [row for _, rows in parts for row in rows]
    return Result([each for findings, _ in parts for each in findings], [grid])
