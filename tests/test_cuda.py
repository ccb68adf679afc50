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
    "order_kernel": [a(i, 1), i, i, i, a(i, 2), a(i, 2), a(t.int32, 1), a(t.int32, 2), *[i] * 7],
    "gather_kernel": [a(i, 1), a(i, 1), a(i, 1), i],
}
kernel = getattr(kernels, sys.argv[1]).py_func
ptx, _ = cuda.compile(kernel, t.void(*signatures[sys.argv[1]]), cc=cc, abi="numba", output="ptx")
print(ptx)
"""

SIMULATE = """
import numpy as np, torch
from fastbalance import EpochOrder, make_plan
from fastbalance.kernels import bijection, cpu, cuda as kernels
assert type(kernels.order_kernel).__module__.startswith("numba.cuda.simulator")

class Launch:
    def __init__(self, order, kernel): self.order, self.kernel = order, kernel
    def order_block(self, out, first, column, block):
        arrays = [x.numpy() for x in (block.classes, block.draws, block.strata, block.keys)]
        threads = 32
        self.kernel[-(-out.numel() // threads), threads](
            out.view(-1).numpy(), first, column, out.shape[1], *arrays, block.n_batches, block.grid, block.shift,
            block.number, block.epoch, block.seed0, block.seed1)

np.seterr(over="ignore")  # words wrap
for counts, batch, rows in [([40, 3], 7, 140), ([300, 17, 16, 1, 5000], 12, 360), ([2, 1, 1, 30], 1, 33)]:
    plan = make_plan(counts, "uniform", rows, batch, block_rows=130)
    order = EpochOrder(None, plan, 2**63 + 5, 3)
    wanted = order.positions(0, plan.epoch_rows)
    order._kernels = Launch(order, kernels.order_kernel)
    assert torch.equal(order.positions(0, plan.epoch_rows), wanted), counts

records = np.random.default_rng(0).integers(0, 2**63, (50, 6)).astype(np.uint64)
places = np.random.default_rng(1).integers(0, 50, 33)
out = np.zeros((33, 6), np.uint64)
kernels.gather_kernel[4, 32](out.reshape(-1), records.reshape(-1), places, 3)
assert (out == records[places]).all()
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
