"""What is the largest learning rate that does not diverge?

Set-up: (1) a well of curvature 1 that only the minority (f = 1 %, half of the balanced loss) makes: a step multiplies
the distance by 1 - rate * m, m being the class mass of the batch. 40,000 chains of 6 steps for each of 10 seeds; the
rate at which the mean squared distance ends where it began is found by bisection. Batches of B = 1, 16, 256: binomial
counts for the weighted and the iid arm (that torch's samplers make those is measured in e01), fastbalance's own.
(2) Least squares with two features, each class along its own axis, noise in both: the rate at which the second moment
of the error grows, by bisection on 200,000 simulated steps.

Expected: (1) 2 / (q (1 + (1 - s) / (s B))), s = f weighted, s = 1/2 iid; 2 / q where the count is fixed: .04, .557,
2.88 weighted against 2.0, 3.765, 3.98. (2) The spectral radius of E[(1 - rate A) x (1 - rate A)] from the moments.
"Stable" is meant in mean square: a weighted run can look calm for long, and then a batch of three minority rows
comes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import _feeds, _formulas
from ._common import Finding, Result, about, finding, t_interval

F, STEPS = 0.01, 6
AXES = np.array([[1.0, 0.2], [0.2, 1.0]])  # mean direction of each class


def bisect(grows: Callable[[float], bool], low: float, high: float, rounds: int = 40) -> float:
    """The rate from which on the error grows."""
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (low, middle) if grows(middle) else (middle, high)
    return (low + high) / 2


def masses(arm: str, batch_rows: int, chains: int, seed: int) -> np.ndarray:
    """Class mass of the minority in each step of each chain, float64 [STEPS, chains]."""
    rng = np.random.default_rng(seed)
    if arm == "weighted":
        return _formulas.weights(F)[1] * rng.binomial(batch_rows, F, (STEPS, chains)) / batch_rows
    if arm == "iid":
        return rng.binomial(batch_rows, 0.5, (STEPS, chains)) / batch_rows
    counts = _feeds.minority_counts("balanced", F, batch_rows, STEPS * 500, seed)
    return counts.reshape(STEPS, -1) / batch_rows


def largest_step(mass: np.ndarray) -> float:
    return bisect(lambda rate: np.mean(np.prod((1 - rate * mass) ** 2, axis=0)) > 1, 0.0, 8.0)


def wells(batch_rows: int, quick: bool) -> list[Finding]:
    findings = []
    for arm, name in (("weighted", "weighted / B"), ("iid", "iid resampling"), ("fixed", "fastbalance")):
        if arm == "fixed" and batch_rows == 1:
            continue  # a batch of one row has no composition to fix
        found = [largest_step(masses(arm, batch_rows, 40_000, seed)) for seed in range(4 if quick else 10)]
        wanted = about(_formulas.stable_step(arm, F, batch_rows), "mean-square stability", relative=0.05)
        findings.append(finding(f"well, B {batch_rows}: {name}", wanted, t_interval(found)))
    return findings


def class_hessians(rng: np.random.Generator, n: int, c: int) -> np.ndarray:
    """x x' of rows of a class, float64 [n, 2, 2]."""
    x = AXES[c] + 0.3 * rng.standard_normal((n, 2))
    return x[:, :, None] * x[:, None, :]


def moment_map(arm: str, batch_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """E[A x 1 + 1 x A] and E[A x A] of a batch's Hessian A, float64 [4, 4], from the moments of 10^6 rows a class."""
    shares = np.array([1 - F, F]) if arm == "weighted" else np.array([0.5, 0.5])
    weights = 0.5 / shares
    rng = np.random.default_rng(1)
    rows = [class_hessians(rng, 1_000_000, c) for c in (0, 1)]
    first = [h.mean(axis=0) for h in rows]
    second = [np.einsum("nij,nkl->ikjl", h, h).reshape(4, 4) / len(h) for h in rows]
    mean = 0.5 * (first[0] + first[1])
    between = np.kron(mean, mean)
    if arm == "fixed":  # B/2 rows of each class: their means add up, the pairs within a class are one fewer
        n = batch_rows / 2
        square = between + sum(0.25 * (second[c] - np.kron(first[c], first[c])) / n for c in (0, 1))
    else:
        own = sum(shares[c] * weights[c] ** 2 * second[c] for c in (0, 1))
        square = own / batch_rows + (1 - 1 / batch_rows) * between
    return np.kron(mean, np.eye(2)) + np.kron(np.eye(2), mean), square


def theory(arm: str, batch_rows: int) -> float:
    linear, square = moment_map(arm, batch_rows)
    grows = lambda rate: np.abs(np.linalg.eigvals(np.eye(4) - rate * linear + rate**2 * square)).max() > 1  # noqa: E731
    return bisect(grows, 1e-6, 8.0)


def drawn_hessians(arm: str, batch_rows: int, n: int, seed: int) -> np.ndarray:
    """Hessians of n batches, float64 [n, 2, 2]."""
    rng = np.random.default_rng(seed)
    share = F if arm == "weighted" else 0.5
    counts = np.full(n, batch_rows // 2) if arm == "fixed" else rng.binomial(batch_rows, share, n)
    weights = _formulas.weights(F) if arm == "weighted" else (1.0, 1.0)
    sums = np.zeros((n, 2, 2))
    for c, number in ((0, batch_rows - counts), (1, counts)):
        batch = np.repeat(np.arange(n), number)
        np.add.at(sums, batch, weights[c] * class_hessians(rng, len(batch), c))
    return sums / batch_rows


def least_squares(arm: str, batch_rows: int, n: int, seed: int) -> float:
    """The rate at which the measured map of second moments stops to contract."""
    hessians = drawn_hessians(arm, batch_rows, n, seed)

    def grows(rate: float) -> bool:
        step = np.eye(2) - rate * hessians
        return np.abs(np.linalg.eigvals(np.einsum("nij,nkl->ikjl", step, step).reshape(4, 4) / n)).max() > 1

    return bisect(grows, 1e-6, 8.0, rounds=16)


def run(quick: bool) -> Result:
    findings = [each for batch_rows in (16, 1, 256) for each in wells(batch_rows, quick)]
    n = 10_000 if quick else 50_000
    for arm, name in (("weighted", "weighted / B"), ("iid", "iid resampling"), ("fixed", "fixed composition")):
        found = [least_squares(arm, 16, n, seed) for seed in range(4 if quick else 10)]
        wanted = about(theory(arm, 16), "spectral radius of the second-moment map", relative=0.05)
        findings.append(finding(f"least squares, B 16: {name}", wanted, t_interval(found)))
    return Result(findings)
