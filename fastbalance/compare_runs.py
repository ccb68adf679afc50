"""The jobs of `compare`: how many steps and seeds fit its budget, and their processes, one for each core.

A job is one method with one seed: a split of its own, the same first parameters for all methods, and a learning rate
that its validation rows choose. Jobs go seed by seed, so that whatever is cut off leaves whole comparisons. The first
seed tries all rates; the others only the rate that it chose and the one below, which leaves time for longer training.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import joblib
import numpy as np
import torch

from .compare_arms import METHODS, RATES, Factory, build, measure, run_job
from .compare_data import Sample, Splits, split
from .compare_verdict import LEAST_SEEDS

Progress = Callable[[str, int, int], None]
Runs = list[dict[str, dict[str, Any]]]

ENOUGH_PASSES = 10  # over the training rows; after fewer, what is seen may be who starts faster

_MOST_PASSES, _LEAST_STEPS, _MOST_STEPS = 20, 50, 2000  # the most of both holds: small tables take 2,000 steps
_ENOUGH_STEPS = 500
_WORK_SHARE = 0.9  # of the budget, after which no job begins: one may be under way, and the report takes seconds
_TRAINING_SHARE = 0.8  # of that: times of steps vary, and jobs do not end together


def run(
    sample: Sample,
    factory: Factory,
    seeds: Sequence[int],
    batch_rows: int | None,
    budget_s: float,
    started_s: float,
    n_jobs: int | None,
    tell: Progress,
) -> tuple[Runs, dict[str, Any]]:
    """Run the jobs until all are done, time is up, or Ctrl-C.

    Returns:
        For each seed that was finished (or for the first) the results of the methods by name; and notes for the report.

    Raises:
        ArgumentError: The model does not fit.
        KeyboardInterrupt: Before any job was finished.
    """
    notes: dict[str, Any] = {"interrupted": False, "missing": [], "budget_s": budget_s}
    deadline_s = started_s + _WORK_SHARE * budget_s
    n_jobs = min(n_jobs or joblib.cpu_count(), len(METHODS))
    done: list[dict[str, Any]] = []
    # Memory that is shared is copied where it is written to ("c"): torch warns of arrays that cannot be written.
    pool = joblib.Parallel(
        n_jobs, backend="loky", return_as="generator", pre_dispatch="n_jobs", mmap_mode="c", initializer=_ignore_ctrl_c
    )
    try:
        splits_of = lru_cache(maxsize=1)(partial(split, sample))  # made once for a seed, and handed over once
        splits = splits_of(seeds[0])
        with torch.random.fork_rng(devices=[]):
            build(factory, splits.x[0].shape[1], len(sample.classes))  # a model that does not fit fails here, at once
        n_rows = batch_rows or _batch_rows(len(splits.y[0]), len(sample.classes))
        with pool:
            # All at once, as the jobs will run, and their processes have then imported and compiled what they need.
            with _deaf_to_ctrl_c():
                measured = pool([joblib.delayed(measure)(factory, splits, n_rows)] * n_jobs)
            step_s, fixed_s = np.max(list(measured), axis=0).tolist()
            left_s = (deadline_s - time.perf_counter()) * _TRAINING_SHARE
            n_steps, n_seeds = fit(left_s, len(seeds), n_jobs, len(splits.y[0]) / n_rows, step_s, fixed_s)
            notes |= {"n_steps": n_steps, "batch_rows": n_rows, "n_jobs": n_jobs}
            notes |= {"n_train": len(splits.y[0]), "n_features": splits.x[0].shape[1]}
            notes["missing"] += _cut(n_steps, n_seeds, len(seeds))
            seeds = seeds[:n_seeds]
            rates: dict[str, Sequence[float]] = {method.name: RATES for method in METHODS}
            total = len(seeds) * len(METHODS)
            deadline_s = max(deadline_s, time.perf_counter() + 1)  # one job is done, however long reading took
            tell("training", 0, total)
            for part in (seeds[:1], seeds[1:]):
                for result in pool(_jobs(splits_of, factory, part, n_rows, n_steps, rates, deadline_s)):
                    done.append(result)
                    tell("training", len(done), total)
                if len(done) < len(METHODS):
                    break
                rates = {m.name: _near(result["rate"]) for m, result in zip(METHODS, done, strict=False)}
        if len(done) < total:
            notes["missing"].append(f"{_after(len(done))}: the time was up")
    except KeyboardInterrupt:
        if not done:
            raise
        notes["interrupted"] = True
        notes["missing"].append(f"{_after(len(done))}: interrupted")
    return _by_seed(done), notes


def _by_seed(done: Sequence[dict[str, Any]]) -> Runs:
    """Results of whole seeds, or of the part of the first that there is, by method."""
    names = [method.name for method in METHODS]
    starts = range(0, max(len(done) - len(names) + 1, 1), len(names))
    return [dict(zip(names, done[start : start + len(names)], strict=False)) for start in starts]


def _jobs(
    splits_of: Callable[[int], Splits],
    factory: Factory,
    seeds: Sequence[int],
    batch_rows: int,
    n_steps: int,
    rates: Mapping[str, Sequence[float]],
    deadline_s: float,
) -> Iterator[Any]:
    """Jobs, until the deadline. They are asked for when a process is free."""
    for seed in seeds:
        splits = splits_of(seed)
        for method in METHODS:
            if time.perf_counter() > deadline_s:
                return
            yield joblib.delayed(run_job)(method, factory, splits, batch_rows, n_steps, seed, rates[method.name])


def fit(
    left_s: float, n_seeds: int, n_jobs: int, steps_of_pass: float, step_s: float, fixed_s: float
) -> tuple[int, int]:
    """Steps of a network, and seeds. Seeds give way first, down to three, until the steps are enough."""
    enough = max(_ENOUGH_STEPS, ENOUGH_PASSES * steps_of_pass)
    most = max(_MOST_STEPS, int(_MOST_PASSES * steps_of_pass))
    while True:
        first, others = -(-len(METHODS) // n_jobs), -(-len(METHODS) * (n_seeds - 1) // n_jobs)
        network_s = left_s / (first * len(RATES) + others * len(_near(RATES[0])))
        n_steps = int((network_s - fixed_s) / step_s)
        if n_steps >= enough or n_seeds <= LEAST_SEEDS:
            return int(np.clip(n_steps, _LEAST_STEPS, most)), n_seeds
        n_seeds -= 1


def _near(rate: float) -> Sequence[float]:
    """A rate and the one below it; of the smallest, the one above."""
    start = max(0, RATES.index(rate) - 1)
    return RATES[start : start + 2]


def _cut(n_steps: int, n_seeds: int, wanted: int) -> list[str]:
    texts = []
    if n_seeds < wanted:
        texts.append(f"{wanted - n_seeds} of {wanted} seeds: longer training of the others took their time")
    if n_steps < _ENOUGH_STEPS:
        texts.append(f"steps: {n_steps} a network is little; with more the arms may come out otherwise")
    return texts


def _after(n_done: int) -> str:
    return f"what came after method {n_done % len(METHODS)} of seed {n_done // len(METHODS) + 1}"


def _batch_rows(n_train: int, n_classes: int) -> int:
    """256, but so that an epoch has ten batches, and a batch a row of each class."""
    return max(n_classes, 8, min(256, n_train // 10))


def _ignore_ctrl_c() -> None:
    """A terminal sends Ctrl-C to all processes; this one ends when the main process says so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Let processes that start here not hear Ctrl-C before they come to ignore it; for this one it only waits."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its start, a part of theirs, unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
