"""The CUDA kernels without a GPU: compiled for real architectures and read, and run in numba's simulator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = """
import sys
from types import SimpleNamespace
import numba.cuda.compiler, numba.cuda.dispatcher
from numba import cuda
from numba.cuda import types as t
cc = tuple(map(int, sys.argv[2].split(".")))
for module in (numba.cuda.compiler, numba.cuda.dispatcher):  # they ask the driver, and there is none
    module.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
from fastbalance.kernels import cuda as kernels
a = lambda kind, n: t.Array(kind, n, "C")
i = t.int64
signatures = {
    "order_kernel": [a(i, 1), i, a(i, 2), a(i, 2), a(t.int32, 1), a(t.int32, 2), a(i, 1)],
    "gather_kernel": [a(i, 1), a(i, 1), a(i, 1), i],
}
kernel = getattr(kernels, sys.argv[1]).py_func
ptx, _ = cuda.compile(kernel, t.void(*signatures[sys.argv[1]]), cc=cc, abi="numba", output="ptx", device=False)
print(ptx)
"""

SIMULATE = """
from contextlib import nullcontext
from types import SimpleNamespace
import numpy as np, torch
import fastbalance as fb, fastbalance.arena, fastbalance.order, fastbalance.kernels.dispatch
from fastbalance.kernels import cuda as kernels

assert type(kernels.order_kernel).__module__.startswith("numba.cuda.simulator")
np.seterr(over="ignore")  # words wrap
# The device and nothing above it is replaced: tensors of the host stand for those of a GPU.
torch.cuda.device = lambda device: nullcontext()
torch.cuda.current_stream = lambda: SimpleNamespace(cuda_stream=7, device=SimpleNamespace(index=0))
kernels.cuda.as_cuda_array = lambda tensor, sync: tensor.numpy()
streams = []
kernels.cuda.external_stream = lambda pointer: streams.append(pointer) or 0  # the simulator has none
kernels.THREADS = 32

for counts, batch, rows in [([40, 3], 7, 140), ([300, 17, 16, 1, 5000], 12, 360), ([2, 1, 1, 30], 1, 33)]:
    plan = fb.make_plan(counts, "uniform", rows, batch, block_rows=130)
    order = fb.EpochOrder(None, plan, 2**63 + 5, 3)
    wanted = order.positions(0, plan.epoch_rows)
    order._kernels = kernels
    assert torch.equal(order.positions(0, plan.epoch_rows), wanted), counts

data = {"x": torch.rand(90, 5), "b": torch.rand(90) < 0.5, "y": torch.arange(90) % 7 // 6}
def run(rank):
    options = dict(label="y", batch_size=6, device="cpu", extras=("row", "class_id", "weight"))
    loader = fb.BalancedLoader(data, rank=rank, world_size=2, **options)
    return [batch for _ in range(2) for batch in loader]
wanted = [run(0), run(1)]
for module in (fb.order, fb.arena):
    module.dispatch = SimpleNamespace(**{**vars(fb.kernels.dispatch), "kernels_for": lambda device: kernels})
    module.kernels_for = lambda device: kernels
launches = []
launch = kernels._launch
kernels._launch = lambda kernel, *rest: (launches.append(kernel), launch(kernel, *rest))
for rank in (0, 1):
    for got, want in zip(run(rank), wanted[rank], strict=True):
        assert all(torch.equal(got[name], want[name]) for name in want)
assert {kernel for kernel in launches} == {kernels.order_kernel, kernels.gather_kernel}
assert len(launches) == 8, "one launch of each kernel for an epoch that fits a block and a chunk"
assert set(streams) == {7}, "torch's current stream"
print("simulated")
"""


def python(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, env={**os.environ, **environment}, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("architecture", ["7.5", "8.0", "9.0", "10.0"])
def test_order_compiles_to_32_bit_multiplies_and_no_local_memory(architecture):
    ptx = python(COMPILE, "order_kernel", architecture)
    assert f".target sm_{architecture.replace('.', '')}" in ptx
    assert ".local" not in ptx, "spills or arrays in local memory"
    assert len(re.findall(r"\bmul(?:\.lo|\.wide)\.[us]32|\bmad\.lo\.s32", ptx)) > 30
    assert not re.findall(r"\bmul\.hi\.[us]64|\b(?:div|rem)\.[us]64", ptx), "64-bit multiplies or divisions"
    assert not re.findall(r"\bcvt\.[a-z.]*f(?:32|64)", ptx), "an integer went through floating point"


@pytest.mark.parametrize("architecture", ["7.5", "8.0", "9.0", "10.0"])
def test_gather_moves_16_bytes_at_a_time(architecture):
    ptx = python(COMPILE, "gather_kernel", architecture)
    assert re.search(r"\bld(?:\.global)?\.v2\.[ub]64", ptx)
    assert re.search(r"\bst(?:\.global)?\.v2\.[ub]64", ptx)
    assert ".local" not in ptx


def test_simulated_kernels_equal_the_cpu():
    assert python(SIMULATE, NUMBA_ENABLE_CUDASIM="1") == "simulated\n"
