"""Logits of several networks, and their scores by the metrics of `fastbalance compare` and some more.

Logits are float64 [.., n_classes] for two classes too: what one output of a sigmoid says stands beside a 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import matthews_corrcoef, roc_auc_score

from fastbalance.compare_scores import pr_auc, probabilities, score

from ._common import figure
from ._learners import Networks

# `_raw`: before prior correction. `_tuned`: at the threshold (of many classes: the multiple of the log priors taken
# from the logits) with the best balanced accuracy on validation rows; else the larger logit decides, or .5.
COLUMNS = {
    "ROC-AUC": ("roc_auc",),
    "PR-AUC, before / after correction": ("pr_auc", "pr_auc_corrected"),
    "balanced accuracy, .5 / tuned": ("balanced_accuracy", "balanced_accuracy_tuned"),
    "worst recall, .5 / tuned": ("worst_recall", "worst_recall_tuned"),
    "MCC, .5 / tuned": ("mcc", "mcc_tuned"),
    "ECE, before / after": ("ece_raw", "ece"),
    "Brier, before / after": ("brier_raw", "brier"),
    "log loss, before / after": ("log_loss_raw", "log_loss"),
}
METRICS = tuple(metric for metrics in COLUMNS.values() for metric in metrics)


def logits_of(networks: Networks, x: torch.Tensor) -> np.ndarray:
    """float64 [n_seeds, n_rates, n_rows, n_classes] of x, float32 [n_rows, n_features]; 0 where one diverged."""
    with torch.no_grad():
        z = torch.nan_to_num(networks(x[None]), 0.0, 0.0, 0.0).double()
    return (torch.cat([torch.zeros_like(z), z], dim=3) if z.shape[3] == 1 else z).numpy()


def pr_aucs(y: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """PR-AUC of every network, float64 [n_seeds, n_rates]; of more than two classes the mean over them."""
    return np.array([[pr_auc(y, each) for each in of_seed] for of_seed in logits])


def roc_auc(y: np.ndarray, logits: np.ndarray) -> float:
    """Of class 1; of more than two classes the mean over them, each against the rest."""
    if logits.shape[1] == 2:
        return float(roc_auc_score(y, logits[:, 1] - logits[:, 0]))
    p = probabilities(logits)
    return float(np.mean([roc_auc_score(y == c, p[:, c]) for c in np.unique(y)]))


def all_scores(y: np.ndarray, logits: np.ndarray, correction: np.ndarray, offset: np.ndarray) -> dict[str, float]:
    """All of METRICS of one network, from logits [n_rows, n_classes]; else as `compare_scores.score`."""
    decided, tuned = logits.argmax(axis=1), (logits + offset).argmax(axis=1)
    found = score(y, logits, correction, offset)
    found |= {
        "roc_auc": roc_auc(y, logits),
        # Two classes keep their order.
        "pr_auc_corrected": found["pr_auc"] if logits.shape[1] == 2 else pr_auc(y, logits + correction),
        "mcc": float(matthews_corrcoef(y, decided)),
        "mcc_tuned": float(matthews_corrcoef(y, tuned)),
    }
    return {metric: found[metric] for metric in METRICS}


def stacked(of_seeds: Sequence[dict[str, float]]) -> dict[str, np.ndarray]:
    """Each metric of all seeds, float64 [n_seeds]."""
    return {metric: np.array([each[metric] for each in of_seeds]) for metric in METRICS}


def cells(scores: dict[str, np.ndarray]) -> list[str]:
    """Means over the seeds, one cell for each of COLUMNS."""
    return [" / ".join(figure(float(scores[metric].mean())) for metric in metrics) for metrics in COLUMNS.values()]
