"""How fast are row numbers made, with how much memory, and from how many rows on do samplers refuse?

Set-up: N = 10^5 .. 10^8 rows, 1 % minority, batches of 4,096; an epoch of balanced row numbers, or 2^22 of them where
it is longer. Each is measured in a process of its own. Peak memory is what it grew by at most, as the kernel keeps it
(Linux), labels not counted; making the sampler is. WeightedRandomSampler; imbalanced-learn's RandomOverSampler and
torchsampler's ImbalancedDatasetSampler where they are installed and work with this torch; fastbalance. Not catalyst's
BalanceClassSampler: pip from 24.1 on refuses its last release, 22.4, and with torch 2.13 it cannot be constructed.

Expected: torch's sampler raises RuntimeError above 2^24 = 16,777,216 rows; so does torchsampler, which draws by the
same call. Rates are measured, not expected, but for the direction.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from types import ModuleType

import numpy as np
import torch
from torch.utils.data import WeightedRandomSampler

import fastbalance as fb

from . import _feeds
from ._common import Expected, Grid, Result, above, exact, finding
from ._memory import Peak, in_fresh_process

F, BATCH, MOST_ROWS, LIMIT = 0.01, 4096, 1 << 22, 1 << 24
Maker = Callable[[torch.Tensor], Iterator[int | torch.Tensor]]


def torch_sampler(labels: torch.Tensor) -> Iterator[int]:
    weights = (0.5 / torch.bincount(labels).double())[labels]
    return iter(WeightedRandomSampler(weights, len(labels), True))


def ours(labels: torch.Tensor) -> Iterator[torch.Tensor]:
    rows, counts = _feeds.class_rows(labels)
    plan = fb.make_plan(counts, "uniform", None, BATCH)
    order = fb.EpochOrder(rows, plan, 0)
    return (order[start : start + (1 << 20)] for start in range(0, plan.epoch_rows, 1 << 20))


def imbalanced_learn(labels: torch.Tensor) -> Iterator[torch.Tensor]:
    from imblearn.over_sampling import RandomOverSampler

    sampler = RandomOverSampler(random_state=0)
    sampler.fit_resample(np.zeros((len(labels), 1), np.int8), labels.numpy())
    yield torch.from_numpy(sampler.sample_indices_)


def torchsampler(labels: torch.Tensor) -> Iterator[int]:
    """It imports torchvision to know data sets whose labels are not given; an empty module stands in for it here."""
    absent = "torchvision" not in sys.modules
    if absent:
        sys.modules["torchvision"] = ModuleType("torchvision")
    try:
        from torchsampler import ImbalancedDatasetSampler
    finally:
        if absent:
            del sys.modules["torchvision"]
    return iter(ImbalancedDatasetSampler(labels, labels=labels.tolist()))


MAKERS: dict[str, Maker] = {
    "fastbalance": ours,
    "WeightedRandomSampler": torch_sampler,
    "imbalanced-learn": imbalanced_learn,
    "torchsampler": torchsampler,
}
# Largest tables that they are given: torchsampler grows by 690 bytes a row.
LARGEST = {"imbalanced-learn": 10**7, "torchsampler": 10**6}


def measure(make: Maker, labels: torch.Tensor) -> list:
    """Rows a second, seconds to the first batch of rows, MB; or the error."""
    done, first_s = 0, 0.0
    with Peak() as peak:
        started = time.perf_counter()
        try:
            for rows in make(labels):
                done += rows.numel() if isinstance(rows, torch.Tensor) else 1
                if not first_s and done >= BATCH:
                    first_s = time.perf_counter() - started
                if done >= MOST_ROWS:
                    break
        except RuntimeError as error:
            return [type(error).__name__, str(error).splitlines()[0][:60], ""]
        seconds = time.perf_counter() - started
    return [done / seconds, first_s, peak.mb]


def alone(name: str, n_rows: int) -> list:
    """What `measure` finds in this process, after a small table has compiled and imported what a sampler needs."""
    torch.set_num_threads(1)
    measure(MAKERS[name], _feeds.two_class_labels(10_000, F))
    return measure(MAKERS[name], _feeds.two_class_labels(n_rows, F))


def refuses(n_rows: int) -> bool:
    """Whether torch's sampler raises RuntimeError with as many rows, a single index being asked for."""
    try:
        list(islice(WeightedRandomSampler(torch.ones(n_rows), 1, True), 1))
    except RuntimeError:
        return True
    return False


def hindrance(make: Maker) -> str:
    """Why a sampler cannot be measured here, or nothing; it has then compiled and imported what it needs."""
    try:
        measure(make, _feeds.two_class_labels(10_000, F))
    except (ImportError, TypeError) as error:  # not installed, or written for another torch
        return f"{type(error).__name__}: {error}"
    return ""


def run(quick: bool) -> Result:
    grid = Grid("Row numbers of balanced epochs", ("rows", "sampler", "rows/s", "first 4,096 rows, s", "grew by, MB"))
    sizes = (10**5, 10**6) if quick else (10**5, 10**6, 10**7, 10**8)
    hindrances = {name: hindrance(make) for name, make in MAKERS.items()}
    names = [name for name in MAKERS if not hindrances[name]]
    for n_rows in sizes:
        for name in names:
            too_large = n_rows > LARGEST.get(name, n_rows)
            found = ["not run", "", ""] if too_large else in_fresh_process(alone, name, n_rows)
            grid.rows.append([n_rows, name, *found])
    rates = {(row[0], row[1]): row[2] for row in grid.rows}
    findings = [
        finding(
            "torch's sampler refuses 2^24 + 1 rows", Expected(1, 1, "an error", "torch"), exact(refuses(LIMIT + 1))
        ),
        finding("torch's sampler takes 2^24 - 1 rows", Expected(0, 0, "no error", "torch"), exact(refuses(LIMIT - 1))),
    ]
    for n_rows in [n for n in sizes if n < LIMIT]:
        ratio = rates[n_rows, "fastbalance"] / rates[n_rows, "WeightedRandomSampler"]
        findings.append(finding(f"rows/s, {n_rows:,} rows: ours / torch's", above(1, "direction"), exact(ratio)))
    return Result(findings, [grid], [f"{name}: not measured, {why}" for name, why in hindrances.items() if why])
