"""How uneven are the batches? Spread of the minority's part of the loss, and of the whole weight.

Set-up: 40,000 batches of each arm, in 20 groups, f = 10, 1, 0.1 %, B = 16, 64, 256, 100,000 rows; batches from
torch's samplers and from fastbalance.

Expected: CV = sqrt((1 - s) / (s B)), with s = f for a weighted loss and s = 1/2 for resampling with replacement, 0
for fastbalance; the binomial chance of a batch without a minority row. For weights .02 and 1.98 (f = 1 %) and B = 16:
2.487 against .250. A permutation of few rows: the same times the hypergeometric correction.
"""

from __future__ import annotations

import numpy as np

from . import _feeds, _formulas
from ._common import Finding, Result, about, finding, root_interval, share_interval

SHARES, BATCHES, GROUPS = (0.1, 0.01, 0.001), (16, 64, 256), 20
FORMULA = "binomial counts"


def measured_cv(values: np.ndarray, mean: float) -> tuple[float, float, float]:
    """CV about a known mean: squares are averaged over groups of batches, which have no chance in common."""
    squares = ((values / mean - 1) ** 2).reshape(GROUPS, -1).mean(axis=1)
    return root_interval(squares)


def of_setting(f: float, batch_rows: int, n_batches: int) -> list[Finding]:
    majority, minority = _formulas.weights(f)
    counts = {
        name: _feeds.minority_counts(name, f, batch_rows, n_batches, 0) for name in ("natural", "iid", "balanced")
    }
    where = f"f {f:.1%}, B {batch_rows}"

    def cv(name: str, expected: float, values: np.ndarray, mean: float) -> Finding:
        wanted = about(expected, FORMULA, relative=0.1)
        return finding(f"{where}: CV of the {name}", wanted, measured_cv(values, mean))

    empty = int((counts["natural"] == 0).sum())
    weight = (minority * counts["natural"] + majority * (batch_rows - counts["natural"])) / batch_rows
    absent = _formulas.no_minority(f, batch_rows)
    return [
        cv("mass, weighted", _formulas.mass_cv(f, batch_rows), counts["natural"], f * batch_rows),
        cv("mass, WeightedRandomSampler", _formulas.mass_cv(0.5, batch_rows), counts["iid"], batch_rows / 2),
        cv("mass, fastbalance", 0.0, counts["balanced"], batch_rows / 2),
        cv("whole weight, weighted", _formulas.weight_cv(f, batch_rows), weight, 1.0),
        finding(
            f"{where}: batches without minority", about(absent, FORMULA, margin=0.02), share_interval(empty, n_batches)
        ),
    ]


def few_rows(n_batches: int) -> Finding:
    """The balanced permutation, where an epoch is few batches: 400 rows, B = 100."""
    counts = _feeds.minority_counts("permuted", 0.1, 100, n_batches, 0, rows=222)
    labels = _feeds.two_class_labels(222, 0.1)
    n1 = int(labels.sum())
    repeated = n1 * ((222 - n1) // n1)
    rows = 222 - n1 + repeated
    share = repeated / rows
    expected = about(_formulas.permuted_mass_cv(share, 100, rows), "hypergeometric counts", relative=0.1)
    return finding(f"CV of the mass, a permutation of {rows} rows, B 100", expected, measured_cv(counts, share * 100))


def run(quick: bool) -> Result:
    n_batches = 10_000 if quick else 40_000
    settings = [(0.01, 16), (0.1, 16)] if quick else [(f, b) for f in SHARES for b in BATCHES]
    settings.sort(key=lambda setting: setting != (0.01, 16))
    findings = [each for f, b in settings for each in of_setting(f, b, n_batches)]
    return Result([*findings, few_rows(n_batches)])
