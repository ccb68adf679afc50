"""Metrics of `compare`, from logits, float64 [n_rows, n_classes], and class ids, int64 [n_rows]."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, log_loss, precision_recall_curve, recall_score, roc_curve

N_BINS = 15

_OFFSETS = np.linspace(-1, 2, 25)  # of log priors, among which the decision between many classes is tuned
_CURVE_POINTS = 100


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax, float64 [n_rows, n_classes]."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def pr_auc(y: np.ndarray, logits: np.ndarray) -> float:
    """Average precision of class 1; of more classes the mean over those that occur."""
    p = probabilities(logits)
    classes = [1] if p.shape[1] == 2 else np.unique(y)
    # By the logit: where probabilities round to 1, its order is still there.
    scores = logits[:, 1:] - logits[:, :1] if p.shape[1] == 2 else p
    values = [
        average_precision_score(y == c, scores[:, 0 if p.shape[1] == 2 else c]) for c in classes if (y == c).any()
    ]
    return float(np.mean(values)) if values else 0.0


def tuned_offset(y: np.ndarray, logits: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """What to add to logits so that the largest one decides with the best balanced accuracy, float64 [n_classes].

    Two classes: the best threshold. More: a multiple of the log priors.
    """
    if len(priors) == 2:
        fall_out, recall, thresholds = roc_curve(y == 1, logits[:, 1] - logits[:, 0])
        best = int(np.argmax(recall - fall_out))
        last = len(thresholds) - 1
        # Half-way to the next threshold: a row that equals the threshold is then on the same side as here.
        cut = (thresholds[best] + thresholds[min(best + 1, last)]) / 2 if best else thresholds[min(1, last)] + 1
        return np.array([0.0, -cut])
    candidates = [-times * np.log(priors) for times in _OFFSETS]
    return max(candidates, key=lambda offset: recalls(y, logits + offset).mean())


def recalls(y: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Recall of each class that occurs, float64."""
    return recall_score(y, logits.argmax(axis=1), labels=np.unique(y), average=None, zero_division=0)


def ece(y: np.ndarray, logits: np.ndarray) -> float:
    """Expected calibration error: of class 1, or of the predicted class."""
    return calibration_error(*_outcomes(y, logits))


def calibration_error(true: np.ndarray, said: np.ndarray, n_bins: int = N_BINS) -> float:
    """Expected calibration error of probabilities, in bins of equally many rows."""
    bins = _bins(said, n_bins)
    return float(sum(abs(true[rows].mean() - said[rows].mean()) * len(rows) for rows in bins) / len(true))


def score(y: np.ndarray, logits: np.ndarray, correction: np.ndarray, offset: np.ndarray) -> dict[str, Any]:
    """All metrics of the test rows. `correction` gives natural probabilities back; `offset` is the tuned decision."""
    natural = logits + correction
    p, raw = probabilities(natural), probabilities(logits)
    labels, found = np.arange(logits.shape[1]), recalls(y, logits)
    one_hot = y[:, None] == labels
    # One term for two classes, as usual; the sum over the classes for more.
    terms = slice(1, None) if logits.shape[1] == 2 else slice(None)
    return {
        "pr_auc": pr_auc(y, logits),
        "balanced_accuracy": float(found.mean()),
        "balanced_accuracy_tuned": float(recalls(y, logits + offset).mean()),
        "worst_recall": float(found.min()),
        "worst_recall_tuned": float(recalls(y, logits + offset).min()),
        "log_loss_raw": float(log_loss(y, raw, labels=labels)),
        "log_loss": float(log_loss(y, p, labels=labels)),
        "brier_raw": float(((raw - one_hot) ** 2)[:, terms].sum(axis=1).mean()),
        "brier": float(((p - one_hot) ** 2)[:, terms].sum(axis=1).mean()),
        "ece_raw": ece(y, logits),
        "ece": ece(y, natural),
        "recalls": recalls(y, logits + offset).tolist(),
    }


def pr_curve(y: np.ndarray, logits: np.ndarray) -> list[list[float]]:
    """Recall and precision at about a hundred thresholds: of class 1; of more classes all classes' rows together."""
    binary = logits.shape[1] == 2
    true = y == 1 if binary else (y[:, None] == np.arange(logits.shape[1])).ravel()
    said = logits[:, 1] - logits[:, 0] if binary else probabilities(logits).ravel()
    precision, recall, _ = precision_recall_curve(true, said)
    # The curve steps at every row; points at even steps of recall are what an eye can see.
    at = np.unique(np.searchsorted(-recall, -np.linspace(1, 0, _CURVE_POINTS)).clip(max=len(recall) - 1))
    return [recall[at].tolist(), precision[at].tolist()]


def calibration(y: np.ndarray, logits: np.ndarray) -> list[list[float]]:
    """Mean of what was said and of what was true in the bins of `ece`."""
    true, said = _outcomes(y, logits)
    bins = _bins(said, N_BINS)
    return [[float(said[rows].mean()) for rows in bins], [float(true[rows].mean()) for rows in bins]]


def _outcomes(y: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What was true and what was said: of class 1, or of the predicted class."""
    p = probabilities(logits)
    return (y == 1, p[:, 1]) if p.shape[1] == 2 else (p.argmax(axis=1) == y, p.max(axis=1))


def _bins(said: np.ndarray, n_bins: int) -> list[np.ndarray]:
    """Rows in bins of equally many, by what was said."""
    return [rows for rows in np.array_split(np.argsort(said, kind="stable"), n_bins) if len(rows)]
