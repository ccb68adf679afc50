"""Checks in numba's CUDA simulator. It is chosen when numba is imported, so they run in a process of their own.

`NUMBA_ENABLE_CUDASIM=1 python -m tests.simulator` prints {check: "ok" or what went wrong}.
"""

from __future__ import annotations

import json
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import pytest
import torch
from fastbalance.kernels import cpu_rows, dispatch
from fastbalance.kernels import cuda as kernels
from numba import cuda

import fastbalance as fb
import fastbalance.arena
from fastbalance.split import block_of

from .device import Streams, replace_torch
from .packed import PACKED, Packed


def order_equals_the_cpu(_streams: Streams) -> None:
    for counts, batch, rows in [([40, 3], 7, 140), ([300, 17, 16, 1, 5000], 12, 360), ([2, 1, 1, 30], 1, 33)]:
        _compare(fb.make_plan(counts, "uniform", rows, batch, block_rows=130))


def order_of_short_last_batches_equals_the_cpu(_streams: Streams) -> None:
    for tail in ("keep", "drop", "pad"):
        _compare(fb.make_plan([40, 30, 3], "natural", None, 9, tail=tail))


def _compare(plan: fb.BalancePlan) -> None:
    order = fb.EpochOrder(None, plan, 2**63 + 5, 3)
    wanted = order.positions(0, plan.epoch_rows)
    order._kernels = kernels
    assert torch.equal(order.positions(0, plan.epoch_rows), wanted), plan


def gather_equals_an_index(_streams: Streams) -> None:
    for n in (0, 1, 31, 32, 33, 70):
        records = torch.from_numpy(np.random.default_rng(n).integers(0, 256, (50, 48), np.uint8))
        places = torch.arange(2 * n)[::2] * 7 % 50  # a view that is not contiguous
        out = torch.empty((n, 48), dtype=torch.uint8)
        kernels.gather(out, records, places)
        assert torch.equal(out, records[places]), n


def pack_equals_the_cpu(streams: Streams) -> None:
    for case in PACKED:
        if case.n < 257:  # a thread of the simulator is a thread of Python
            assert torch.equal(case.by(kernels.pack), case.by(cpu_rows.pack)), case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "UPLOAD_BYTES", 160)
        case = Packed(31, ((4, 1), (1, 9)))  # in four parts
        streams.most_under_way = 0
        assert torch.equal(case.by(kernels.pack), case.by(cpu_rows.pack))
    assert (streams.most_under_way, streams.under_way) == (2, 0), "at most two parts at a time, and none in the end"


def loader_equals_the_cpu(_streams: Streams) -> None:
    data = {"x": torch.rand(90, 5), "b": torch.rand(90) < 0.5, "y": torch.arange(90) % 7 // 6}

    def run(rank: int) -> list[dict[str, torch.Tensor]]:
        extras = ("row", "class_id", "weight")
        loader = fb.BalancedLoader(data, "y", 6, device="cpu", rank=rank, world_size=2, extras=extras)
        return [batch for _ in range(2) for batch in loader]

    wanted, launched = [run(0), run(1)], []
    launch = kernels._launch
    with _everywhere(kernels), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_launch", lambda kernel, *rest: (launched.append(kernel), launch(kernel, *rest)))
        for rank in (0, 1):
            for got, want in zip(run(rank), wanted[rank], strict=True):
                assert all(torch.equal(got[name], want[name]) for name in want)
    names = Counter(kernel.__name__ for kernel in launched)
    assert names == {"pack_kernel": 2, "order_kernel": 4, "gather_kernel": 4}, "an epoch fits a block and a chunk"


@contextmanager
def _everywhere(module: ModuleType) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "kernels_for", lambda device: module)
        patch.setattr(fb.arena, "kernels_for", lambda device: module)
        yield


def launches_go_to_the_current_stream(streams: Streams) -> None:
    used: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "external_stream", lambda pointer: used.append(pointer) or 0)
        for stream in (7, 99, 7):
            streams.current[0] = stream
            gather_equals_an_index(streams)
            assert set(used) == {stream}
            used.clear()


def views_with_gaps_are_refused(_streams: Streams) -> None:
    records, places = torch.zeros((8, 16), dtype=torch.uint8), torch.arange(4)
    for out, source in [(records[::2], records), (records[:4], torch.zeros((8, 32), dtype=torch.uint8)[:, :16])]:
        with pytest.raises(RuntimeError, match="view"):
            kernels.gather(out, source, places)
    with pytest.raises(RuntimeError, match="view"):
        kernels.pack(records[::2], places.numpy(), [places.numpy()], [0])
    order = fb.EpochOrder(None, fb.make_plan([5, 3], "uniform", 8, 4), 0)
    with pytest.raises(RuntimeError, match="view"):
        kernels.order_block(torch.zeros((2, 8), dtype=torch.int64)[:, :4], order._block(block_of(order.plan, 0), 0, 0))


CHECKS: list[Callable[[Streams], None]] = [
    order_equals_the_cpu,
    order_of_short_last_batches_equals_the_cpu,
    gather_equals_an_index,
    pack_equals_the_cpu,
    loader_equals_the_cpu,
    launches_go_to_the_current_stream,
    views_with_gaps_are_refused,
]


def main() -> None:
    assert type(kernels.order_kernel).__module__.startswith("numba.cuda.simulator")
    warnings.simplefilter("ignore", RuntimeWarning)  # words wrap
    kernels.THREADS = 32
    found = {}
    for check in CHECKS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda, "as_cuda_array", lambda tensor, sync: tensor.numpy(), raising=False)
            patch.setattr(cuda, "external_stream", lambda pointer: 0)  # the simulator has none
            try:
                check(replace_torch(patch))
                found[check.__name__] = "ok"
            except Exception:
                found[check.__name__] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
