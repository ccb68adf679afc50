"""On a machine with a GPU: are the kernels right, and how fast are they?

Work: places of a balanced epoch of two classes, 1 % positives; gathers of records of 64, 144 and 512 bytes; whole
batches of the loader. Peers: torch.randperm and index_select. Every result is first compared with the CPU's, bit for
bit. Times are those of CUDA events.

    python bench/gpu.py [--rows 16777216] [--output gpu.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import environment
from fastbalance.kernels import dispatch

from fastbalance import BalancedLoader, EpochOrder, make_plan
from fastbalance.split import block_of

BATCH_ROWS, RECORD_BYTES, REPEATS, LOADER_BATCHES = 4096, (64, 144, 512), 20, 256


def milliseconds(run: Callable[[], Any]) -> float:
    """Median over the repeats, by CUDA events; the first run, which compiles, is left out."""
    run()
    times = []
    for _ in range(REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return float(np.median(times))


def row(work: str, rows: int, run: Callable[[], Any]) -> dict[str, Any]:
    took = milliseconds(run)
    speed = rows / took / 1e6
    print(f"{work:48} {took:10.3f} ms {speed:8.3f} G rows/s")
    return {"work": work, "rows": rows, "milliseconds": took}


def order_rows(rows: int) -> Iterator[dict[str, Any]]:
    plan = make_plan([rows - rows // 100, rows // 100], "uniform", None, BATCH_ROWS)
    gpu, cpu = (EpochOrder(None, plan, seed=0, device=device) for device in ("cuda", "cpu"))
    n_batches = block_of(plan, 0).n_batches
    first = gpu.places(0, n_batches, 0, BATCH_ROWS)
    assert torch.equal(first.cpu(), cpu.places(0, n_batches, 0, BATCH_ROWS)), "the order differs from the CPU's"
    yield row("order, one block", first.numel(), lambda: gpu.places(0, n_batches, 0, BATCH_ROWS))
    yield row("torch.randperm, as many", first.numel(), lambda: torch.randperm(first.numel(), device="cuda"))


def gather_rows(rows: int, record_bytes: int) -> Iterator[dict[str, Any]]:
    kernels = dispatch.kernels_for(torch.device("cuda"))
    records = torch.randint(256, (rows // 8, record_bytes), dtype=torch.uint8, device="cuda")
    places = torch.randint(len(records), (rows // 8,), device="cuda")
    out, words = torch.empty_like(records), records.view(torch.int64)
    kernels.gather(out, records, places)
    assert torch.equal(out.cpu(), records.cpu()[places.cpu()]), "the gather differs from the CPU's"
    yield row(f"gather, {record_bytes} bytes", len(places), lambda: kernels.gather(out, records, places))
    yield row(f"index_select, {record_bytes} bytes", len(places), lambda: words.index_select(0, places))


def loader_rows(rows: int) -> Iterator[dict[str, Any]]:
    data = {"x": torch.rand(rows // 8, 32), "y": (torch.rand(rows // 8) < 0.01).long()}
    gpu, cpu = (BalancedLoader(data, label="y", batch_size=BATCH_ROWS, device=device) for device in ("cuda", "cpu"))
    for mine, wanted in islice(zip(gpu, cpu, strict=True), 4):
        assert all(torch.equal(mine[name].cpu(), wanted[name]) for name in wanted), "a batch differs from the CPU's"
    batches = min(LOADER_BATCHES, len(gpu))
    yield row("loader", batches * BATCH_ROWS, lambda: [None for _ in islice(gpu, batches)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1 << 24)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench/gpu.py: torch sees no CUDA GPU here; nothing was measured.", file=sys.stderr)
        return 2
    results = list(order_rows(arguments.rows))
    for record_bytes in RECORD_BYTES:
        results += gather_rows(arguments.rows, record_bytes)
    results += loader_rows(arguments.rows)
    arguments.output.write_text(json.dumps({"results": results, **environment()}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
