"""Closed forms. f: natural share of the minority; q: its target share; B: rows of a batch; weights are w_c = q_c / f_c.

The class mass m of a batch is the minority's part of its loss where all rows are equally hard: `sum(w over minority
rows) / B`. A CV is a standard deviation over a mean.
"""

from __future__ import annotations

import numpy as np
from scipy import stats


def weights(f: float, q: float = 0.5) -> tuple[float, float]:
    """Weights of a majority and of a minority row: their mean over the data is 1."""
    return (1 - q) / (1 - f), q / f


def mass_cv(share: float, batch_rows: int) -> float:
    """CV of the class mass where rows come one by one: a weighted loss has `share` = f, resampling has `share` = q.

    Derivation: the count is binomial, and a constant factor leaves a CV alone.
    """
    return float(np.sqrt((1 - share) / (share * batch_rows)))


def permuted_mass_cv(share: float, batch_rows: int, rows: int) -> float:
    """The same where a permutation of `rows` rows is cut into batches: the count is hypergeometric."""
    return mass_cv(share, batch_rows) * float(np.sqrt((rows - batch_rows) / (rows - 1)))


def averaged_cv(beta: float) -> float:
    """What an exponential average, `v = beta * v + m`, leaves of the CV of independent masses m.

    Derivation: the mean is 1 / (1 - beta) times that of m, the variance 1 / (1 - beta^2) times.
    """
    return float(np.sqrt((1 - beta) / (1 + beta)))


def weight_cv(f: float, batch_rows: int, q: float = 0.5) -> float:
    """CV of the whole weight of a batch, which has mean 1 a row; any resampler has 0."""
    majority, minority = weights(f, q)
    return float((minority - majority) * np.sqrt(f * (1 - f) / batch_rows))


def no_minority(f: float, batch_rows: int) -> float:
    """Chance of a batch without a minority row."""
    return (1 - f) ** batch_rows


def batch_ratio(f: float, q: float = 0.5) -> float:
    """How many times the rows a weighted batch needs, for the CV of a resampled one."""
    return ((1 - f) / f) / ((1 - q) / q)


def normalised_mass(f: float, batch_rows: int, q: float = 0.5) -> float:
    """Mean minority share of the weight of a batch: what a loss that is divided by the sum of weights gives it."""
    majority, minority = weights(f, q)
    m = np.arange(batch_rows + 1)
    return float(stats.binom.pmf(m, batch_rows, f) @ (minority * m / (minority * m + majority * (batch_rows - m))))


def inflation(f: float, q: float = 0.5) -> float:
    """`sum(q_c^2 / f_c)` = 1 + chi2(q || f): how many times the second moment of a gradient weighting has."""
    return (1 - q) ** 2 / (1 - f) + q**2 / f


def gradient_traces(
    shares: np.ndarray, targets: np.ndarray, means: np.ndarray, variances: np.ndarray, counts: np.ndarray, rows: int
) -> dict[str, float]:
    """Trace of the covariance of a batch's gradient, from the moments of the classes' gradients.

    Args:
        shares, targets: f_c and q_c, float64 [n_classes].
        means: Mean gradient of each class, float64 [n_classes, n_parameters].
        variances: Trace of each class's covariance, float64 [n_classes].
        counts: Rows of each class, int64 [n_classes].
        rows: B.

    Returns:
        "weighted", "iid", "stratified": a fixed number of independent rows of each class; "one pass": the same, drawn
        without replacement in each batch.
    """
    mean = targets @ means
    moments = variances + (means**2).sum(axis=1)
    drawn = targets * rows
    left = np.clip((counts - drawn) / np.maximum(counts - 1, 1), 0, None)
    return {
        "weighted": float((targets**2 / shares) @ moments - mean @ mean) / rows,
        "iid": float(targets @ moments - mean @ mean) / rows,
        "stratified": float(targets @ variances) / rows,
        "one pass": float(targets @ (variances * left)) / rows,
    }


def stable_step(arm: str, f: float, batch_rows: int, q: float = 0.5) -> float:
    """Largest step in a well of curvature 1 that only the minority makes: `E[(1 - step * m)^2] <= 1`."""
    if arm == "weighted":
        return 2 / (q * (1 + (1 - f) / (f * batch_rows)))
    if arm == "iid":
        return 2 / (q * (1 + (1 - q) / (q * batch_rows)))
    return 2 / q


def coverage(epochs: float, f: float, rows: int, q: float = 0.5) -> float:
    """Share of the majority seen after some epochs of `rows` draws with replacement: 1 - exp(-E/2) as f -> 0."""
    return float(-np.expm1(epochs * rows * np.log1p(-(1 - q) / ((1 - f) * rows))))


def prior_shift(f: float, q: float = 0.5) -> float:
    """What training at q instead of f adds to the log-odds. Source: Elkan 2001, theorem 2, in logit form."""
    return float(np.log(q / f) - np.log((1 - q) / (1 - f)))


def corrected(p: np.ndarray, kept: float) -> np.ndarray:
    """Probability under natural shares, of a model that saw a share `kept` of the negatives.

    Source: Dal Pozzolo et al., *Calibrating probability with undersampling* (2015), equation 4.
    """
    return kept * p / (kept * p - p + 1)
