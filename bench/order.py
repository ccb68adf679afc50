"""How fast is the order itself: positions to places, nothing gathered?

Work: the places of a balanced epoch, 1 % positives, int64 out (8 bytes a row). Limit: the bijection alone on the same
range, in turn bounded by filling memory. Peers: torch.randperm (a plain shuffle: no balance), numpy's permutation,
Grain's index_shuffle (stateless, one index a call), and torch.multinomial with replacement (what WeightedRandomSampler
calls; it refuses more than 2^24 rows).

    python bench/order.py [--rows 100000000] [--quick]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from _harness import Case, report, save, time_in_turn
from fastbalance.kernels import cpu, dispatch
from fastbalance.kernels.philox import SLOT_ROUND_KEYS
from fastbalance.kernels.threads import shared_out

from fastbalance import EpochOrder, make_plan
from fastbalance.split import pieces

BATCH_ROWS = 4096
MULTINOMIAL_ROWS, GRAIN_ROWS = 1 << 24, 1 << 17


def every_block(order: EpochOrder) -> int:
    """Compute the whole epoch, block by block, as the loader does; returns the rows."""
    blocks = pieces(order.plan, 0, order.plan.n_batches)
    return sum(order.places(batch, n_batches, 0, block.batch_rows).numel() for block, batch, n_batches in blocks)


def bijection_alone(rows: int) -> None:
    """The same number of places from one class and one pass: no search, no strata."""
    keys, grid, block = cpu.round_keys(0, SLOT_ROUND_KEYS), dispatch.grid(rows), 1 << 20
    for first in range(0, rows, block):
        out = torch.empty(min(block, rows - first), dtype=torch.int64).numpy()
        shared_out(
            lambda start, stop, first=first, out=out: cpu.bijection_range(
                first + start, rows, *grid, keys, np.uint32(1), np.uint32(2), out[start:stop]
            ),
            len(out),
            least=20_000,
        )


def grain_shuffle(rows: int) -> None:
    from grain._src.python.experimental.index_shuffle.python.index_shuffle_module import index_shuffle

    for index in range(GRAIN_ROWS):
        index_shuffle(index, rows - 1, 0, 4)  # 4 rounds: its default


def check(order: EpochOrder) -> None:
    """The timed thing is the right thing: exact quotas, nobody twice before everybody once."""
    counts, plan = order.plan.class_counts, order.plan
    used = np.bincount(order.positions(0, plan.epoch_rows).numpy(), minlength=plan.n_rows)
    for c, start in enumerate(np.cumsum(counts) - counts):
        mine = used[start : start + counts[c]]
        assert mine.sum() == plan.quotas[c]
        assert mine.max() - mine.min() <= 1


def throughput(rows: int, repeats: int, keep: bool) -> None:
    minority = rows // 100
    plan = make_plan([rows - minority, minority], "uniform", None, BATCH_ROWS)
    order = EpochOrder(None, plan, seed=0)
    check(order)
    weights = torch.ones(min(rows, MULTINOMIAL_ROWS), dtype=torch.float64)
    filled = torch.empty(rows, dtype=torch.int64)
    cases = [
        Case("memory fill", lambda: filled.fill_(1), rows, 8, repeats),
        Case("bijection alone", lambda: bijection_alone(rows), rows, 8, repeats),
        Case("fastbalance", lambda: every_block(order), plan.epoch_rows, 8, repeats),
        Case("torch.randperm", lambda: torch.randperm(rows), rows, 8, repeats),
        Case("numpy permutation", lambda: np.random.default_rng(0).permutation(rows), rows, 8, 2),
        Case("Grain's index_shuffle", lambda: grain_shuffle(rows), GRAIN_ROWS, 8, 2),
        Case("torch.multinomial", lambda: torch.multinomial(weights, len(weights), True), len(weights), 8, 2),
    ]
    time_in_turn(cases)
    report(
        "order", cases, {"rows": rows, "classes": 2, "batch_rows": BATCH_ROWS}, "bijection alone", "fastbalance", keep
    )


def many_classes(rows: int, repeats: int, keep: bool) -> None:
    cases = []
    for n_classes in (2, 100, 1000, 100_000):
        plan = make_plan(np.full(n_classes, rows // n_classes), "uniform", None, BATCH_ROWS)
        order = EpochOrder(None, plan, seed=0)
        cases.append(Case(f"{n_classes} classes", lambda order=order: every_block(order), plan.epoch_rows, 8, repeats))
    time_in_turn(cases)
    report("order_classes", cases, {"rows": rows, "batch_rows": BATCH_ROWS}, "2 classes", "2 classes", keep)


def first_rows(keep: bool) -> None:
    """Seconds from nothing but counts to the first 4,096 places of an epoch, and to those of a batch in the middle."""
    for rows, n_classes in ((10**6, 2), (10**8, 2), (10**10, 2), (10**12, 2), (10**12, 1000)):
        minority = rows // 100
        share = minority // (n_classes - 1)
        counts = [rows - share * (n_classes - 1)] + [share] * (n_classes - 1)
        seconds = []
        for epoch in range(5):
            started = time.perf_counter()
            plan = make_plan(counts, "uniform", None, BATCH_ROWS)
            order = EpochOrder(None, plan, seed=0, epoch=epoch)
            order.places(0, 1, 0, BATCH_ROWS)
            order.places(plan.n_batches // 2, 1, 0, BATCH_ROWS)
            seconds.append(time.perf_counter() - started)
        axes = {"rows": rows, "classes": n_classes}
        print(f"plan, seek to two batches, their places: {axes}  {1000 * np.median(seconds):.2f} ms")
        if keep:
            save("order_first_rows", {"case": "fastbalance", "axes": axes, "seconds": sorted(seconds)[1:4]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--quick", action="store_true", help="2^22 rows, two repeats, nothing kept")
    arguments = parser.parse_args()
    keep = not arguments.quick
    rows, repeats = (1 << 22, 2) if arguments.quick else (arguments.rows, 5)
    throughput(rows, repeats, keep)
    many_classes(min(rows, 20_000_000), repeats, keep)
    first_rows(keep)


if __name__ == "__main__":
    main()
