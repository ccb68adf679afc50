"""Where does plain SGD end, in two wells of which the resampled loss prefers the right one? (An, Ying and Zhu, 2021)

Set-up, after their toy: B = 1; V1 = |t + 1| - 1 for t <= 0 and eps t for t > 0; V2 = -eps t for t <= 0 and |t - 1| -
1 for t > 0; eps = .1; target shares (.4, .6), natural shares (.9, .1). Weighted: class c comes with its natural
share, its gradient times target / natural. Resampled: it comes with its target share. fastbalance: the order of its
epochs over 1,000 rows. 1,000 chains from U(-1.5, 1.5), 2,000 steps, for each of 10 seeds; the share of chains that
end within .5 of t = 1. And with quadratic wells (t -+ 1)^2 / 2 in place of the absolute values.

Expected: two earlier runs of our own agreed within .05; absolute, weighted against resampled: .53 and .48 at rate .05
(no difference), 0 and .49 at .25, 0 and .60 at .5. Quadratic: both near .5 at .25; 0 and .52 at .5 (the weighted
right well is stable up to 2 f2 / a2 = .333).
"""

from __future__ import annotations

import numpy as np

import fastbalance as fb

from . import _feeds
from ._common import Finding, Result, about, finding, t_interval

TARGET, NATURAL, EPS, STEPS = np.array([0.4, 0.6]), np.array([0.9, 0.1]), 0.1, 2000
SOURCE = "two earlier runs, after An et al. 2021"
# kind, rate -> share of chains in the right well, weighted and resampled
EXPECTED = {
    ("absolute", 0.25): (0.0, 0.49),
    ("absolute", 0.05): (0.53, 0.48),
    ("absolute", 0.5): (0.0, 0.60),
    ("quadratic", 0.25): (0.5, 0.5),
    ("quadratic", 0.5): (0.0, 0.52),
}


def slope(kind: str, t: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Derivative of the class's loss."""
    left = np.sign(t + 1) if kind == "absolute" else t + 1
    right = np.sign(t - 1) if kind == "absolute" else t - 1
    return np.where(c == 0, np.where(t <= 0, left, EPS), np.where(t <= 0, -EPS, right))


def drawn_classes(arm: str, chains: int, seed: int) -> np.ndarray:
    """The class of each step's row, int64 [STEPS, chains]."""
    if arm == "fastbalance":
        labels = _feeds.two_class_labels(1000, NATURAL[1])
        balance = fb.balance.target(dict(enumerate(TARGET)))
        seeds = range(seed * chains, (seed + 1) * chains)
        return np.stack([labels[_feeds.balanced(labels, 1, STEPS, s, balance)[:, 0]].numpy() for s in seeds], axis=1)
    shares = NATURAL if arm == "weighted" else TARGET
    return np.random.default_rng(seed).choice(2, size=(STEPS, chains), p=shares)


def right_share(kind: str, rate: float, scale: np.ndarray, classes: np.ndarray, seed: int) -> float:
    t = np.random.default_rng([seed, 1]).uniform(-1.5, 1.5, classes.shape[1])
    for c in classes:
        t = np.clip(t - rate * scale[c] * slope(kind, t, c), -1e6, 1e6)
    return float((np.abs(t - 1) < 0.5).mean())


def run(quick: bool) -> Result:
    n_seeds, chains = (3, 500) if quick else (10, 1000)
    findings: list[Finding] = []
    found: dict[tuple[str, str, float], list[float]] = {}
    for arm in ("weighted", "resampled", "fastbalance"):
        scale = TARGET / NATURAL if arm == "weighted" else np.ones(2)
        for seed in range(n_seeds):
            classes = drawn_classes(arm, chains, seed)
            for kind, rate in EXPECTED:
                found.setdefault((arm, kind, rate), []).append(right_share(kind, rate, scale, classes, seed))
    for (kind, rate), (weighted, resampled) in EXPECTED.items():
        for arm, value in (("weighted", weighted), ("resampled", resampled), ("fastbalance", resampled)):
            wanted = about(value, SOURCE, margin=0.07)
            measured = t_interval(found[arm, kind, rate])
            findings.append(finding(f"{kind} wells, rate {rate}: in the right well, {arm}", wanted, measured))
    return Result(findings)
