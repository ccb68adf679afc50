"""The torch interpretation on the CPU: how far does torch.compile take it, and how far is numba's?

Work: the places of one block, 2^20 rows in batches of 4,096, int64 out (8 bytes a row): of 2 classes, 1 % positives,
and of 1,000 equal ones. Limit: numba's kernel, which is what the loader runs on a CPU. All are first compared bit for
bit. Beside it, what a call of an operator costs over a call of its kernel, for a gather of 16 records.

    python bench/compiled.py [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _harness import Case, report, save, time_in_turn
from fastbalance.kernels import cpu, ops, torch_ops
from fastbalance.kernels.locate import Block

from fastbalance import EpochOrder, make_plan
from fastbalance.split import block_of

BATCH_ROWS = 4096
COUNTS = {2: [99_000_000, 1_000_000], 1000: [100_000] * 1000}


def block_of_classes(n_classes: int, rows: int) -> tuple[torch.Tensor, Block]:
    """Room for the places of a block, and the block."""
    plan = make_plan(COUNTS[n_classes], "uniform", 4 * rows, BATCH_ROWS, block_rows=rows)
    found = block_of(plan, 0)
    out = torch.empty((found.n_batches, BATCH_ROWS), dtype=torch.int64)
    return out, EpochOrder(None, plan, seed=0, epoch=3)._block(found, 0, 0)


def order(n_classes: int, rows: int, repeats: int, keep: bool) -> None:
    out, block = block_of_classes(n_classes, rows)
    compiled = torch.compile(torch_ops.order_block, fullgraph=True, dynamic=False)
    wanted = torch.empty_like(out)
    cpu.order_block(wanted, block)
    for order_block in (torch_ops.order_block, compiled):
        started = time.perf_counter()
        order_block(out.zero_(), block)
        assert torch.equal(out, wanted)
    axes = {"rows": rows, "classes": n_classes, "batch_rows": BATCH_ROWS}
    print(f"first call of the compiled, or its cached code: {time.perf_counter() - started:.1f} s  {axes}")
    cases = [
        Case("numba", lambda: cpu.order_block(out, block), out.numel(), 8, repeats),
        Case("torch, compiled", lambda: compiled(out, block), out.numel(), 8, repeats),
        Case("torch, eager", lambda: torch_ops.order_block(out, block), out.numel(), 8, repeats),
    ]
    time_in_turn(cases)
    report("compiled", cases, axes, "numba", "torch, compiled", keep)


def call(keep: bool) -> None:
    """Microseconds of a call."""
    records, places = torch.zeros((64, 64), dtype=torch.uint8), torch.arange(16)
    out = torch.empty((16, 64), dtype=torch.uint8)
    for name, gather in {"kernel": cpu.gather, "operator": ops.gather}.items():
        seconds = [_seconds(lambda gather=gather: gather(out, records, places)) for _ in range(9)]
        p20, p50, p80 = np.percentile(seconds, [20, 50, 80])
        print(f"a call of gather, {name}: {1e6 * p50:.1f} us")
        if keep:
            save("operator_call", {"case": name, "axes": {"places": 16}, "seconds": [p20, p50, p80]})


def _seconds(run: Callable[[], Any], calls: int = 2000) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - started) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2^16 rows, two repeats, nothing kept")
    arguments = parser.parse_args()
    keep = not arguments.quick
    rows, repeats = (1 << 16, 2) if arguments.quick else (1 << 20, 5)
    for n_classes in COUNTS:
        order(n_classes, rows, repeats, keep)
    call(keep)


if __name__ == "__main__":
    main()
