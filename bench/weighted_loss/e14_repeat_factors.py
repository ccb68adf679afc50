"""Repeat factors are no integers: what does rounding them do to an epoch?

Set-up: 20,000 rows with factors r ~ U(1, 2), 1,000 epochs. Rounded up; Bernoulli (floor(r) + [U < r - floor(r)]);
systematic (one U for all: floor(U + S_i) - floor(U + S_(i-1)) of the cumulative sums); and fastbalance's plan, with a
class for each distinct factor (100 of them), whose quotas are largest remainders.

Expected: 2.0 draws a row (+33 %), 1.5 with a random total, 1.5 with an exact total; standard deviation of the total:
sqrt(sum p (1 - p)) = sqrt(n / 6) for Bernoulli, at most 1/2 systematic, 0 for a plan.
"""

from __future__ import annotations

import math

import numpy as np

import fastbalance as fb

from ._common import Expected, Result, about, exact, finding, root_interval, t_interval

ROWS, CLASSES = 20_000, 100


def plan_total() -> tuple[float, float]:
    """Draws a row of a plan, and the largest gap between a class's quota and its factors' sum."""
    factors = 1 + (np.arange(CLASSES) + 0.5) / CLASSES
    counts = np.full(CLASSES, ROWS // CLASSES)
    balance = fb.balance.target(dict(enumerate(factors * counts)))
    plan = fb.make_plan(counts, balance, round(float((factors * counts).sum())), 100)
    return plan.epoch_rows / ROWS, float(np.abs(plan.quotas - factors * counts).max())


def run(quick: bool) -> Result:
    rng = np.random.default_rng(0)
    factors = 1 + rng.random(ROWS)
    part = factors - np.floor(factors)
    n_epochs = 100 if quick else 1000
    bernoulli = np.array([ROWS + (rng.random(ROWS) < part).sum() for _ in range(n_epochs)])
    sums = np.cumsum(factors)
    systematic = np.floor(rng.random(n_epochs) + sums[-1])
    spread = root_interval((bernoulli - factors.sum()) ** 2)
    mean, quota_gap = plan_total()
    uniform = "r ~ U(1, 2)"
    return Result([
        finding("rounded up: draws a row", about(2.0, uniform, margin=0.001), t_interval(np.ceil(factors))),
        finding("Bernoulli: draws a row", about(1.5, uniform, margin=0.01), t_interval(bernoulli / ROWS)),
        finding("Bernoulli: standard deviation of the total", about(math.sqrt(ROWS / 6), "sqrt(sum p (1 - p))",
                                                                    relative=0.25), spread),
        finding("systematic: draws a row", about(1.5, uniform, margin=0.01), t_interval(systematic / ROWS)),
        finding("systematic: standard deviation of the total", Expected(0, 0.5, "<= 1/2", "one U for all"),
                exact(float(systematic.std()))),
        finding("fastbalance: draws a row", about(1.5, "largest remainders", margin=1e-9), exact(mean)),
        finding("fastbalance: largest gap of a quota", Expected(0, 1, "< 1", "largest remainders"), exact(quota_gap)),
    ])  # fmt: skip
