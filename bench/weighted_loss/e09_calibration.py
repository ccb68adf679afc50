"""Does balancing change the ranking, and can the probabilities be had back?

Set-up: logistic regression without penalty (scikit-learn, to convergence), f = 1 %, 50,000 training and 100,000 test
rows of two Gaussian clouds (5 features, distance 2), fresh for each of 20 seeds. Natural; weighted; oversampled (the
rows of one fastbalance epoch "over"); undersampled (one epoch "under"), also with its majority weighted up again;
before and after adding fastbalance's log_prior_correction. And natural, its threshold moved to the natural share.

Expected: the same ROC-AUC; an intercept that is higher by log(n0 / n1) = 4.595; probabilities far too high, until the
correction brings them back (Dal Pozzolo 2015; van den Goorbergh 2022: no gain of AUC, and overestimated risk). This
speaks against resampling where the model is well specified: nothing is gained but the threshold, and moving the
threshold of the natural model gives the same balanced accuracy.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import fastbalance as fb

from . import _feeds, _formulas
from ._common import Expected, Finding, Grid, Result, about, above, finding, paired, t_interval
from ._learners import scores

F, TRAIN, TEST, FEATURES, DISTANCE, BATCH = 0.01, 50_000, 100_000, 5, 2.0, 100
SAME = Expected(-0.005, 0.005, "0 ± 0.005", "van den Goorbergh 2022: no gain")
SAME_ECE = Expected(-0.002, 0.002, "0 ± 0.002", "log-odds shift by log(q/f)")
METRICS = ("roc_auc", "pr_auc", "balanced_accuracy", "log_loss", "brier", "ece")


def fit(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None = None) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "no penalty" is spelled differently in each version of scikit-learn
        model = LogisticRegression(C=1e10, max_iter=500, tol=1e-6)
        return model.fit(x.numpy(), y.numpy(), None if weight is None else weight.numpy())


def correction(labels: torch.Tensor) -> float:
    loader = fb.BalancedLoader({"x": labels.float(), "y": labels}, label="y", batch_size=BATCH, device="cpu")
    natural = fb.log_prior_correction(loader)
    return float(natural[1] - natural[0])


def of_seed(seed: int) -> dict[str, dict[str, float]]:
    """Metrics of every arm, and its intercept."""
    x, labels = _feeds.gaussians(TRAIN, F, FEATURES, DISTANCE, 2 * seed, bias=False)
    x_test, y_test = _feeds.gaussians(TEST, F, FEATURES, DISTANCE, 2 * seed + 1, bias=False)
    weight = torch.where(labels == 1, (1 - F) / F, 1.0)
    epochs = {kind: epoch(labels, kind, seed) for kind in ("over", "under")}
    models = {
        "natural": fit(x, labels),
        "weighted": fit(x, labels, weight),
        "oversampled": fit(x[epochs["over"]], labels[epochs["over"]]),
        "undersampled": fit(x[epochs["under"]], labels[epochs["under"]]),
    }
    kept = labels[epochs["under"]]
    models["undersampled, upweighted"] = fit(x[epochs["under"]], kept, torch.where(kept == 0, (1 - F) / F, 1.0))
    shift, found = correction(labels), {}
    for name, model in models.items():
        z = model.decision_function(x_test.numpy())
        found[name] = scores(y_test.numpy(), z) | {"intercept": float(model.intercept_[0])}
        if name == "natural":
            found["natural, threshold moved"] = scores(y_test.numpy(), z - shift)
        elif name != "undersampled, upweighted":
            found[f"{name}, corrected"] = scores(y_test.numpy(), z + shift)
    return found


def epoch(labels: torch.Tensor, epoch_rows: str, seed: int) -> torch.Tensor:
    rows, counts = _feeds.class_rows(labels)
    return fb.EpochOrder(rows, fb.make_plan(counts, "uniform", epoch_rows, BATCH), seed)[:]


def findings_of(arm: str, found: dict[str, dict[str, np.ndarray]]) -> list[Finding]:
    natural, own, corrected = found["natural"], found[arm], found[f"{arm}, corrected"]
    shift = about(_formulas.prior_shift(F), "log(n0 / n1)", margin=0.25)
    return [
        finding(f"{arm}: ROC-AUC, minus natural", SAME, paired(own["roc_auc"], natural["roc_auc"])),
        finding(f"{arm}: intercept, minus natural", shift, t_interval(own["intercept"] - natural["intercept"])),
        finding(f"{arm}: ECE before correction", above(0.1, "risk overestimated"), t_interval(own["ece"])),
        finding(f"{arm}: ECE after correction, minus natural", SAME_ECE, paired(corrected["ece"], natural["ece"])),
    ]


def run(quick: bool) -> Result:
    seeds = [of_seed(seed) for seed in range(4 if quick else 20)]
    found = {
        arm: {metric: np.array([seed[arm][metric] for seed in seeds]) for metric in values}
        for arm, values in seeds[0].items()
    }
    grid = Grid("Means over the seeds", ("arm", *METRICS))
    grid.rows = [[arm, *(float(values[m].mean()) for m in METRICS)] for arm, values in found.items()]
    arms = ("oversampled", "weighted", "undersampled")
    upweighted = paired(found["undersampled, upweighted"]["ece"], found["natural"]["ece"])
    moved = paired(found["oversampled"]["balanced_accuracy"], found["natural, threshold moved"]["balanced_accuracy"])
    return Result(
        [
            *(each for arm in arms for each in findings_of(arm, found)),
            finding("undersampled, upweighted: ECE minus natural", SAME_ECE, upweighted),
            finding("balanced accuracy, oversampled minus natural with its threshold moved", SAME, moved),
        ],
        [grid],
    )
