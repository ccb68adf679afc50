"""`fastbalance demo`: predict cancelled flights, with balanced batches and with the usual ways, side by side."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from scipy import stats
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from .demo_arms import (
    ARMS,
    FASTBALANCE,
    Arm,
    Batch,
    Feed,
    Networks,
    endless,
    expected_spread,
    learn,
    minority_mass,
)
from .demo_report import draw, show
from .errors import ArgumentError, explain
from .flights import Flights, Split, load_flights, write_shards
from .kernels.threads import one_thread

BATCH_ROWS = (256, 32)  # 6 and 0.8 cancelled flights in a natural batch, on average


@dataclass(frozen=True)
class _Effort:
    """How much is tried.

    Attributes:
        n_steps: Batches that each network learns from.
        rates: Learning rates to choose from.
        timed_rows: Rows to time a feed with; the epoch, if that is shorter.
    """

    n_steps: int = 1000
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    timed_rows: int = 1 << 20


_QUICK = _Effort(n_steps=60, rates=(0.1, 0.3), timed_rows=1 << 15)
_TIMED_S = 0.5
# Name, feed, and whether the DataLoader fetches row by row.
_FEEDS: tuple[tuple[str, Feed, bool], ...] = (
    ("DataLoader, shuffle", "shuffle", True),
    ("DataLoader, WeightedRandomSampler", "WeightedRandomSampler", True),
    ("the same, a batch at once", "WeightedRandomSampler", False),
    ("fastbalance, natural", "fastbalance, natural", False),
    ("fastbalance", "fastbalance", False),
)


@dataclass(frozen=True)
class _Task:
    """What all arms share: the data, in memory and as files, and the effort."""

    flights: Flights
    shards: Path
    n_seeds: int
    effort: _Effort

    @property
    def share(self) -> float:
        """Share of cancelled flights in the training split."""
        return float(self.flights.train.y.mean())

    def feed(self, feed: Feed, batch_rows: int, seed: int, by_row: bool = False) -> Iterator[Batch]:
        return endless(feed, self.flights.train, self.shards, batch_rows, seed, by_row)


def run(output: Path, n_seeds: int = 5, quick: bool = False) -> dict[str, Any]:
    """Compare fastbalance with weighted losses and with torch's sampler on the flights of New York, 2013.

    Prints tables, and writes `train/*.parquet`, `demo.json` and `demo.png`.

    Args:
        output: Folder to write to; made where it is missing.
        n_seeds: Networks for each arm and learning rate, at least 2.
        quick: Two seeds and few steps: shows that everything works, and nothing else.

    Returns:
        What `demo.json` holds.

    Raises:
        ArgumentError: Fewer than 2 seeds.
        ImportError: The packages of `fastbalance[demo]` are missing.
    """
    if n_seeds < 2:
        raise ArgumentError(explain("n_seeds", got=n_seeds, allowed=">= 2, as an interval needs two values"))
    output = Path(output)
    flights = load_flights()
    write_shards(flights, output / "train")
    task = _Task(flights, output / "train", 2 if quick else n_seeds, _QUICK if quick else _Effort())
    with one_thread(), Progress(console=Console(stderr=True)) as progress:
        feeds = _time_feeds(task, progress)
        comparisons = _compare_arms(task, progress)
    results = {"task": _describe(task), "feeds": feeds, "comparisons": comparisons}
    show(results)
    (output / "demo.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, output / "demo.png")
    return results


def _time_feeds(task: _Task, progress: Progress) -> list[dict[str, Any]]:
    return [
        {"name": name, "rows_per_s": _rows_per_s(task, feed, by_row)}
        for name, feed, by_row in progress.track(_FEEDS, description="Timing the feeds")
    ]


def _compare_arms(task: _Task, progress: Progress) -> list[dict[str, Any]]:
    n_steps = len(BATCH_ROWS) * len(ARMS) * task.effort.n_steps
    bar = progress.add_task("Training the networks", total=n_steps)
    comparisons = []
    for batch_rows in BATCH_ROWS:
        arms = [_try_arm(task, arm, batch_rows, lambda: progress.advance(bar)) for arm in ARMS]
        comparisons.append({"batch_rows": batch_rows, "arms": _with_differences(arms)})
    return comparisons


def _rows_per_s(task: _Task, feed: Feed, by_row: bool) -> float:
    """Rows per second of a feed alone, after its first batch; the median of some passes.

    Passes as long as an epoch hold one start of an epoch each, and with it the time of the sampler.
    """
    batch_rows = BATCH_ROWS[0]
    n_batches = min(len(task.flights.train.y), task.effort.timed_rows) // batch_rows
    batches = task.feed(feed, batch_rows, 0, by_row)
    next(batches)
    rates: list[float] = []
    end_s = time.perf_counter() + _TIMED_S
    while not rates or time.perf_counter() < end_s:
        started_s = time.perf_counter()
        for _ in islice(batches, n_batches):
            pass
        rates.append(n_batches * batch_rows / (time.perf_counter() - started_s))
    return statistics.median(rates)


def _try_arm(task: _Task, arm: Arm, batch_rows: int, advance: Callable[[], None]) -> dict[str, Any]:
    """Train an arm at every rate, choose the rate that ranks the validation days best, and score the test days."""
    rates = task.effort.rates
    networks = Networks(task.flights.train.x.shape[1], rates, task.n_seeds)
    feeds = [task.feed(arm.feed, batch_rows, seed) for seed in range(task.n_seeds)]
    minority_rows = learn(networks, arm, feeds, task.effort.n_steps, task.share, advance)
    shift = math.log(task.share / (1 - task.share)) if arm.moved else 0.0
    valid = {rate: float(np.mean(_score(networks, rate, task.flights.valid, shift)["pr_auc"])) for rate in rates}
    best = max(rates, key=valid.__getitem__)
    test = _score(networks, best, task.flights.test, shift)
    mass = minority_mass(arm.loss, minority_rows, batch_rows, task.share)
    return {
        "name": arm.name,
        "rate": best,
        "valid_pr_auc": list(valid.values()),
        **{metric: _summary(values) for metric, values in test.items()},
        "spread": float(mass.std() / mass.mean()),
        "expected_spread": expected_spread(arm, batch_rows, task.share),
        "minority_mass": float(mass.mean()),
    }


def _score(networks: Networks, rate: float, split: Split, shift: float) -> dict[str, list[float]]:
    """PR-AUC and balanced accuracy for each seed. A network that diverged ranks all rows the same."""
    y = split.y.numpy()
    logits = [np.nan_to_num(z) for z in networks.logits(rate, split.x).numpy()]
    return {
        "pr_auc": [float(average_precision_score(y, z)) for z in logits],
        "balanced_accuracy": [float(balanced_accuracy_score(y, z > shift)) for z in logits],
    }


def _summary(values: Sequence[float]) -> dict[str, Any]:
    """Values of the seeds, their mean, and its 95 % interval by Student's t."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"seeds": list(values), "mean": mean, "interval": [mean - half, mean + half]}


def _with_differences(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add fastbalance minus arm, seed by seed: the same first parameters, the same test days."""
    ours = next(arm for arm in arms if arm["name"] == FASTBALANCE.name)
    for arm in arms:
        if arm is not ours:
            for metric in ("pr_auc", "balanced_accuracy"):
                pairs = zip(ours[metric]["seeds"], arm[metric]["seeds"], strict=True)
                arm[f"{metric}_difference"] = _summary([a - b for a, b in pairs])
    return arms


def _describe(task: _Task) -> dict[str, Any]:
    splits = {"train": task.flights.train, "valid": task.flights.valid, "test": task.flights.test}
    return {
        "rows": {name: len(split.y) for name, split in splits.items()},
        "cancelled": {name: int(split.y.sum()) for name, split in splits.items()},
        "days": {name: len(np.unique(split.days)) for name, split in splits.items()},
        "features": list(task.flights.features),
        "rates": list(task.effort.rates),
        "steps": task.effort.n_steps,
        "seeds": task.n_seeds,
        "quick": task.effort is _QUICK,
    }
