"""What follows from the results of `compare`: the differences, seed by seed, and the recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

AS_IS, NEITHER, ADJUSTED = "natural, threshold 0.5", "natural, tuned threshold", "natural, logits adjusted"
OURS = "fastbalance, uniform"
WEIGHTED = ("weighted / B", "weighted / sum w")
MARGIN = 0.005  # of PR-AUC or balanced accuracy: less is no reason to change a training loop
LEAST_SEEDS = 3
METRICS = {"pr_auc": "PR-AUC", "balanced_accuracy_tuned": "balanced accuracy"}


def paired(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Mean of a - b over the seeds, and its 95 % interval by Student's t; none for a single seed.

    Splits of the seeds overlap, so the variance is taken times `1/k + n_test/n_train`, not `1/k`.

    Source: Nadeau and Bengio, *Inference for the generalization error* (2003), section 3.
    """
    from scipy import stats

    differences = np.asarray(a, float) - np.asarray(b, float)
    k, mean = len(differences), float(np.mean(differences))
    if k < 2:
        return {"mean": mean, "interval": None}
    half = float(stats.t.ppf(0.975, k - 1) * differences.std(ddof=1) * (1 / k + 1 / 3) ** 0.5)
    return {"mean": mean, "interval": [mean - half, mean + half]}


def recommend(arms: dict[str, dict[str, Any]], n_seeds: int) -> dict[str, Any]:
    """What to use, from the paired differences between doing nothing, weighting and fastbalance's uniform batches.

    By each metric: natural batches, unless a way is shown to be ahead of them by `MARGIN` or more; then weighting, if
    it is ahead of them and not shown to be behind resampling; else resampling.

    Returns:
        "verdict": "neither", "weight", "resample", "no difference", "depends" or "undecided"; "headline"; "evidence",
        sentences; "weighted", the weighted arm that validation preferred.
    """
    if n_seeds < LEAST_SEEDS or not {NEITHER, OURS, *WEIGHTED} <= set(arms):
        text = f"Undecided: {n_seeds} of the at least {LEAST_SEEDS} seeds that an interval needs were finished."
        evidence = ["More time (--budget) finishes more of them."]
        return {"verdict": "undecided", "headline": text, "evidence": evidence, "weighted": None, "by_metric": {}}
    weighted = max(WEIGHTED, key=lambda name: arms[name]["valid_pr_auc"]["mean"])
    ways = {"neither": NEITHER, "weight": weighted, "resample": OURS}
    verdicts = {metric: _verdict(arms, ways, metric) for metric in METRICS}
    evidence = [*(_evidence(arms, ways, metric) for metric in METRICS), *_other_arms(arms, ways)]
    found = {verdict for verdict in verdicts.values() if verdict != "no difference"}
    verdict = "no difference" if not found else found.pop() if len(found) == 1 else "depends"
    by_metric = dict(zip(METRICS.values(), verdicts.values(), strict=True))
    return {
        "verdict": verdict,
        "headline": _headline(verdict, by_metric, weighted),
        "evidence": evidence,
        "weighted": weighted,
        "by_metric": by_metric,
    }


def _verdict(arms: dict[str, Any], ways: dict[str, str], metric: str) -> str:
    def ahead(a: str, b: str) -> bool:
        difference = paired(arms[ways[a]][metric]["seeds"], arms[ways[b]][metric]["seeds"])
        return difference["interval"][0] > 0 and difference["mean"] >= MARGIN

    behind = [a for a in ways if any(ahead(b, a) for b in ways)]
    if "neither" not in behind:
        return "neither" if ahead("neither", "weight") or ahead("neither", "resample") else "no difference"
    # What is ahead by the mean of all is behind none, so that there is one.
    best = [a for a in ("weight", "resample") if a not in behind]
    return next((a for a in best if ahead(a, "neither")), best[0])


def _headline(verdict: str, by_metric: dict[str, str], weighted: str) -> str:
    words = {
        "neither": "Do neither: train on the natural batches, and tune the threshold on validation data.",
        "weight": f"Weight the loss ({weighted}); resampling is not shown to add to it.",
        "resample": "Resample: fastbalance's uniform batches.",
        "no difference": "No difference is shown. Take the simplest: natural batches, and a tuned threshold.",
    }
    if verdict != "depends":
        return words[verdict]
    return "It depends on what you need. " + " ".join(f"For {m}: {words[v].lower()}" for m, v in by_metric.items())


def _evidence(arms: dict[str, Any], ways: dict[str, str], metric: str) -> str:
    ours = ways["resample"]
    means = ", ".join(f"{name} {arms[name][metric]['mean']:.3f}" for name in ways.values())
    parts = []
    for way in ("neither", "weight"):
        d = paired(arms[ours][metric]["seeds"], arms[ways[way]][metric]["seeds"])
        low, high = d["interval"]
        shown = "ahead" if low > 0 else "behind" if high < 0 else "not shown to differ"
        parts.append(f"against {ways[way]} {d['mean']:+.3f} ({low:+.3f} to {high:+.3f}: {shown})")
    return f"{METRICS[metric]} on test rows: {means}. {ours}: {'; '.join(parts)}."


def _other_arms(arms: dict[str, Any], ways: dict[str, str]) -> list[str]:
    """A sentence for each metric by which an arm besides the three ways is best."""
    texts = []
    for metric, words in METRICS.items():
        best = max(arms, key=lambda name: arms[name][metric]["mean"])
        way = max(ways.values(), key=lambda name: arms[name][metric]["mean"])
        if arms[best][metric]["mean"] > arms[way][metric]["mean"]:
            d = paired(arms[best][metric]["seeds"], arms[way][metric]["seeds"])
            low, high = d["interval"]
            texts.append(
                f"Highest {words} of all arms: {best}, {arms[best][metric]['mean']:.3f}, {d['mean']:+.3f} against "
                f"{way} ({low:+.3f} to {high:+.3f}); the best of {len(arms)} looks better than it is."
            )
    return texts
