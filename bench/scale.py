"""Does it scale to data that no machine here holds? Counts are made up; all else is what a run does.

Work: 1e12 rows in 1e6 groups, 1,000 classes (a long tail; every group holds 8 of them), 4,096 ranks with a lane
and 24 GiB each: plan what is kept and streamed, lay out the order of one rank, and cut blocks that are far apart.
Asserted: exact quotas over all lanes, and that a lane's windows hold what its draws ask for.

    python bench/scale.py [--quick]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from _harness import save

from fastbalance import Dataset, make_plan
from fastbalance.labels import LabelScan
from fastbalance.residency import stream_plan
from fastbalance.shards import Shard
from fastbalance.source import Groups, Source
from fastbalance.windows import GroupOrder, LaneOrder

RECORD_BYTES, GROUP_CLASSES = 144, 8


class Counted(Shard):
    """A shard of which only the sizes are known."""

    def group_bytes(self, columns: Any) -> np.ndarray:
        return self.group_rows * RECORD_BYTES


def made_up(rows: int, n_groups: int, n_classes: int) -> Dataset:
    """Classes of sizes that fall as 1/k, each spread over groups drawn at random."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, n_classes + 1)
    classes = rng.choice(n_classes, (n_groups, GROUP_CLASSES), p=share / share.sum())
    classes[:n_classes, 0] = np.arange(n_classes)  # no class without rows
    keys = np.unique((np.arange(n_groups)[:, None] * n_classes + classes).ravel())
    group_of, class_of = np.divmod(keys, n_classes)
    counts = np.full(len(keys), rows // len(keys), np.int64)
    values = pa.table({"y": np.arange(n_classes)})
    group_rows = np.bincount(group_of, counts, n_groups).astype(np.int64)
    scan = LabelScan(
        values=values,
        group_ptr=np.searchsorted(group_of, np.arange(n_groups + 1)),
        group_classes=class_of.astype(np.int32),
        group_counts=counts,
        class_counts=np.bincount(class_of, counts, n_classes).astype(np.int64),
    )
    schema = pa.schema([("x", pa.list_(pa.float32(), 32)), ("y", pa.int64())])
    groups = Groups(
        shard=np.zeros(n_groups, np.int32),
        index=np.arange(n_groups, dtype=np.int32),
        first_row=np.cumsum(group_rows) - group_rows,
        n_rows=group_rows,
    )
    return Dataset(Source((Counted("counts alone", schema, group_rows),), schema, groups), scan)


def timed(what: str, run: Callable[[], Any], kept: dict[str, float]) -> Any:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{what:60} {seconds:8.3f} s   peak memory grows by {grown:7.0f} MiB")
    kept[what] = round(seconds, 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1e9 rows in 1e4 groups, 16 ranks, nothing kept")
    quick = parser.parse_args().quick
    rows, n_groups, n_classes, ranks = (10**9, 10**4, 100, 16) if quick else (10**12, 10**6, 1000, 4096)
    data = made_up(rows, n_groups, n_classes)
    seconds: dict[str, float] = {}
    entries = timed("sort the counts by class", data.entries_by_class, seconds)
    sizes = f"{data.n_rows:,} rows, {n_groups:,} groups, {n_classes:,} classes, {ranks:,} ranks"
    print(f"{sizes}; {len(entries[0]):,} counts, of 12 bytes in an index")
    balanced = make_plan(data.class_counts, "sqrt", None, 1024 * ranks)
    plan = timed(
        "plan: what is kept, blocks, windows, predicted reads",
        lambda: stream_plan(balanced, data, RECORD_BYTES, ["x", "y"], 24 << 30, ranks, ranks, 8),
        seconds,
    )
    print(str(plan).splitlines()[-2:])
    groups = GroupOrder(0, n_groups, plan.window_groups)
    lane = timed("lay out one rank", lambda: LaneOrder(plan, data, groups, 0, ranks // 3, torch.device("cpu")), seconds)
    for epoch, batch in ((0, 0), (3, plan.n_batches // 2), (3, plan.n_batches // 2 + plan.block_batches)):
        block = lane.range(epoch, batch)
        cut = timed(f"cut the block of epoch {epoch}, batch {batch:,}", partial(lane.segments, epoch, block), seconds)
        assert cut.draws.sum() == block.n_batches * block.batch_rows
        assert (cut.offsets < cut.rows).all()
    quotas = sum(plan.lane_quotas(k, 3) for k in range(ranks))
    assert np.array_equal(quotas, plan.quotas)
    if not quick:
        axes = {"rows": rows, "groups": n_groups, "classes": n_classes, "ranks": ranks}
        save("scale", {"case": "fastbalance", "axes": axes, "seconds": seconds})


if __name__ == "__main__":
    main()
