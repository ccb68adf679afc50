"""On a machine with a GPU: are the kernels right, and how fast are they?

Work: places of a balanced epoch of two classes, 1 % positives; gathers of records of 64, 144 and 512 bytes, both with
every interpretation that is installed; packing 33 columns of 4 bytes and a class id into records of 144, from the
host's memory; whole batches of the loader. Peers: torch.randperm, index_select, and packing on the CPU. Every result is
first compared with the CPU's, bit for bit. Times are those of CUDA events. bench/gpu_check.py runs this and more.

    python bench/gpu.py [--rows 16777216] [--repeats 20] [--output gpu_bench.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from _harness import environment
from fastbalance.kernels import cpu_rows, dispatch, torch_ops

from fastbalance import BalancedLoader, EpochOrder, make_plan
from fastbalance.split import block_of

DEVICE = torch.device("cuda")
BATCH_ROWS, RECORD_BYTES, LOADER_BATCHES = 4096, (64, 144, 512), 256
N_COLUMNS, PACKED_BYTES = 33, 144
Row = dict[str, Any]


class Timer:
    """Times work, and prints a line of each."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats

    def row(self, work: str, rows: int, row_bytes: int, run: Callable[[], Any]) -> Row:
        """One row of the results.

        Args:
            rows: That one run handles.
            row_bytes: That must be read and written for a row, on the GPU; 0: not a question of its memory.
        """
        p20, p50, p80 = np.percentile(self._milliseconds(run), [20, 50, 80])
        bandwidth = f"{rows * row_bytes / p50 / 1e6:8.0f} GB/s" if row_bytes else ""
        print(f"{work:44} {p50:10.3f} ms {rows / p50 / 1e6:8.3f} G rows/s {bandwidth}", flush=True)
        return {"work": work, "rows": rows, "row_bytes": row_bytes, "milliseconds": [p20, p50, p80]}

    def _milliseconds(self, run: Callable[[], Any]) -> list[float]:
        """Of each repeat, by CUDA events; the first run, which compiles, is left out."""
        run()
        times = []
        for _ in range(self.repeats):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop))
        return times


def interpretations() -> dict[str, ModuleType]:
    """Those that run on the GPU; the loader's comes first."""
    used = dispatch.kernels_for(DEVICE)
    found = {used.__name__.rpartition(".")[2]: used}
    if find_spec("triton") is not None:
        from fastbalance.kernels import triton_ops

        found["triton_ops"] = triton_ops
    return found | {"torch_ops": torch_ops}


def order_rows(timer: Timer, rows: int) -> Iterator[Row]:
    plan = make_plan([rows - rows // 100, rows // 100], "uniform", None, BATCH_ROWS)
    gpu, cpu = (EpochOrder(None, plan, seed=0, device=device) for device in (DEVICE, "cpu"))
    n_batches = block_of(plan, 0).n_batches
    wanted = cpu.places(0, n_batches, 0, BATCH_ROWS)
    n = wanted.numel()
    for name, kernels in interpretations().items():
        gpu._kernels = kernels
        places = gpu.places(0, n_batches, 0, BATCH_ROWS).cpu()
        assert torch.equal(places, wanted), f"the order of {name} differs from the CPU's"
        yield timer.row(f"order, one block, {name}", n, 8, lambda: gpu.places(0, n_batches, 0, BATCH_ROWS))
    yield timer.row("torch.randperm, as many", n, 0, lambda: torch.randperm(n, device=DEVICE))
    yield timer.row("torch.randperm, all rows", rows, 0, lambda: torch.randperm(rows, device=DEVICE))


def gather_rows(timer: Timer, rows: int, record_bytes: int) -> Iterator[Row]:
    records = torch.randint(256, (rows // 8, record_bytes), dtype=torch.uint8, device=DEVICE)
    n = len(records)
    places = torch.randint(n, (n,), device=DEVICE)
    out, words = torch.empty_like(records), records.view(torch.int64)
    wanted, moved, into = records.cpu()[places.cpu()], 2 * record_bytes + 8, out.view(torch.int64)
    for name, kernels in interpretations().items():
        out.zero_()
        kernels.gather(out, records, places)
        assert torch.equal(out.cpu(), wanted), f"the gather of {name} differs from the CPU's"
        gather = partial(kernels.gather, out, records, places)
        yield timer.row(f"gather, {record_bytes} bytes, {name}", n, moved, gather)
    select = f"index_select, {record_bytes} bytes"
    yield timer.row(select, n, moved, lambda: torch.index_select(words, 0, places, out=into))
    shuffled = f"randperm, then index_select, {record_bytes} bytes"
    yield timer.row(shuffled, n, 0, lambda: torch.index_select(words, 0, torch.randperm(n, device=DEVICE), out=into))


def pack_rows(timer: Timer, rows: int) -> Iterator[Row]:
    kernels, n = next(iter(interpretations().values())), rows // 8
    random = np.random.default_rng(0)
    columns = [*random.random((N_COLUMNS, n), np.float32), random.integers(0, 2, n)]
    offsets, places = [*range(0, 4 * N_COLUMNS, 4), PACKED_BYTES - 8], random.permutation(n)
    wanted, records = (torch.zeros((n, PACKED_BYTES), dtype=torch.uint8, device=d) for d in ("cpu", DEVICE))
    cpu_rows.pack(wanted, places, columns, offsets)
    kernels.pack(records, places, columns, offsets)
    assert torch.equal(records.cpu(), wanted), "the packed records differ from the CPU's"
    yield timer.row("pack, transfer included", n, 0, lambda: kernels.pack(records, places, columns, offsets))
    on_cpu = "packed on the CPU, then index_copy_"
    yield timer.row(on_cpu, n, 0, lambda: torch_ops.pack(records, places, columns, offsets))
    up = torch.empty(n * (4 * N_COLUMNS + 16), dtype=torch.uint8, pin_memory=DEVICE.type == "cuda")
    yield timer.row("its bytes from pinned memory (limit)", n, 0, lambda: up.to(DEVICE, non_blocking=True))


def loader_rows(timer: Timer, rows: int) -> Iterator[Row]:
    data = {"x": torch.rand(rows // 8, 32), "y": (torch.rand(rows // 8) < 0.01).long()}
    gpu, cpu = (BalancedLoader(data, label="y", batch_size=BATCH_ROWS, device=device) for device in (DEVICE, "cpu"))
    for mine, wanted in islice(zip(gpu, cpu, strict=True), 4):
        assert all(torch.equal(mine[name].cpu(), wanted[name]) for name in wanted), "a batch differs from the CPU's"
    n_batches = min(LOADER_BATCHES, len(gpu))
    yield timer.row("loader", n_batches * BATCH_ROWS, 0, lambda: [None for _ in islice(gpu, n_batches)])


def all_rows(timer: Timer, rows: int) -> Iterator[Row]:
    yield from order_rows(timer, rows)
    for record_bytes in RECORD_BYTES:
        yield from gather_rows(timer, rows, record_bytes)
    yield from pack_rows(timer, rows)
    yield from loader_rows(timer, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1 << 24)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("gpu_bench.json"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench/gpu.py: torch sees no CUDA GPU here; nothing was measured.", file=sys.stderr)
        return 2
    results = []
    for row in all_rows(Timer(arguments.repeats), arguments.rows):
        results.append(row)  # what was measured before a failure is kept
        arguments.output.write_text(json.dumps({"results": results, **environment()}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
