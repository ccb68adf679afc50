"""The torch interpretation and the operators under torch.compile: the same bits, one graph, no second compilation.

The backends `eager` and `aot_eager` capture the graph as every backend gets it, and run it without generating code,
which takes a tenth of the time. Slow tests generate it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from fastbalance.kernels import cpu, ops, torch_ops
from fastbalance.kernels import cuda as cuda_kernels
from fastbalance.kernels.locate import BATCHES, COLUMN, EPOCH, FIRST, Block
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastbalance as fb
from fastbalance.split import block_of

from . import oracle, ptx
from .device import Launch, replace_driver
from .sass import ptx_of

SIZES = (*range(1, 18), 40, 300, 4095, 4096, 4097, 5000, 2**31 - 1, 2**31, 2**31 + 1, 2**40)
BATCH, HEIGHT = 97, 20
# Inductor imports what torch itself calls deprecated.
on_inductor = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
LAST = 2**32 - 1  # epoch; the passes of a class of one row are then above 2^32


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plan_of(sizes: tuple[int, ...] = SIZES, batch: int = BATCH, height: int = HEIGHT) -> fb.BalancePlan:
    return fb.make_plan(sizes, "uniform", 3 * batch * height, batch, block_rows=batch * height)


def block_at(plan: fb.BalancePlan, seed: int, epoch: int, batch: int, column: int = 0) -> Block:
    """The block of a batch, to be computed from that batch on."""
    found = block_of(plan, batch)
    return fb.EpochOrder(None, plan, seed, epoch)._block(found, batch - found.first_batch, column)


def blocks(plan: fb.BalancePlan) -> Iterator[Block]:
    """Every block of some epochs."""
    for seed, epoch in [(0, 0), (2**64 - 1, 3), (1, LAST)]:
        for batch in range(0, plan.n_batches, HEIGHT):
            yield block_at(plan, seed, epoch, batch)


def by(order_block, block: Block, height: int = HEIGHT, width: int = BATCH) -> torch.Tensor:
    out = torch.full((height, width), -1)
    order_block(out, block)
    return out


def compiled_once(function, backend: str):
    """A function that is compiled at its first call, in one graph, and must not be compiled again."""
    fast = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
    stances = iter(["default"])

    def call(*arguments):
        with torch.compiler.set_stance(next(stances, "fail_on_recompile")):
            return fast(*arguments)

    return call


# 1. The torch interpretation.


@on_inductor
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_order_equals_eager_and_the_cpu_for_all_sizes_at_once(backend):
    plan = plan_of()
    fast = compiled_once(torch_ops.order_block, backend)
    for block in blocks(plan):
        wanted = by(cpu.order_block, block)
        assert torch.equal(by(torch_ops.order_block, block), wanted)
        assert torch.equal(by(fast, block), wanted)


slow = [((size,), height) for size in (40, 5000) for height in (3, 40)]
slow += [(sizes, height) for sizes in ((9, 16), (2**40, 4095, 1)) for height in (3, 40)]


@pytest.mark.parametrize(
    ("sizes", "height"),
    [((5,), 40), ((17, 2**33), 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)],
)
def test_compiled_order_of_some_regimes_only_equals_eager_and_the_oracle(sizes, height):
    plan = plan_of(sizes, 7, height)
    plain = sizes, tuple(plan.quotas.tolist()), 7, plan.epoch_rows
    fast = compiled_once(torch_ops.order_block, "eager")
    for epoch in (0, LAST):
        block = block_at(plan, 9, epoch, height)
        got = by(fast, block, height, 7)
        assert torch.equal(got, by(torch_ops.order_block, block, height, 7))
        wanted = [oracle.place_at(p, *plain, 9, epoch, plan.block_rows) for p in range(7 * height, 14 * height)]
        assert got.view(-1).tolist() == wanted


def test_compiled_order_of_rectangles_of_a_block():
    plan = plan_of((40, 3, 1, 300, 5000))
    fast = compiled_once(torch_ops.order_block, "eager")
    whole = by(cpu.order_block, block_at(plan, 1, 2, 0))
    for first, column in [(0, 0), (5, 13), (14, 80)]:
        got = by(fast, block_at(plan, 1, 2, first, column), 6, 17)
        assert torch.equal(got, whole[first : first + 6, column : column + 17])


def test_compiled_gather_and_take():
    records = torch.randint(0, 256, (50, 48), dtype=torch.uint8)
    places = torch.randint(0, 50, (31,))
    out = torch.empty((31, 48), dtype=torch.uint8)
    compiled_once(torch_ops.gather, "aot_eager")(out, records, places)
    assert torch.equal(out, records[places])
    for dtype in (torch.uint32, torch.uint64):
        values = (torch.arange(50) * 85899345).to(dtype)  # up to 2^32
        got = compiled_once(torch_ops.take, "aot_eager")(values, places)
        assert torch.equal(got, places * 85899345)


# 2. The operators.


def gathered(n: int, record_bytes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    records = torch.randint(0, 256, (50, record_bytes), dtype=torch.uint8)
    return torch.zeros((n, record_bytes), dtype=torch.uint8), records, torch.arange(2 * n)[::2] * 7 % 50


@pytest.mark.parametrize(("sizes", "batch", "height"), [((40, 3), 7, 20), ((5000,), 1, 1), (SIZES, 97, 20)])
def test_operator_order_block_is_well_made(sizes, batch, height):
    arguments = torch.zeros((height, batch), dtype=torch.int64), *block_at(plan_of(sizes, batch, height), 5, 1, 0)
    torch.library.opcheck(torch.ops.fastbalance.order_block.default, arguments)


@pytest.mark.parametrize(("n", "record_bytes"), [(0, 16), (1, 48), (31, 144)])
def test_operator_gather_is_well_made(n, record_bytes):
    torch.library.opcheck(torch.ops.fastbalance.gather.default, gathered(n, record_bytes))


@pytest.mark.parametrize("dtype", [torch.uint32, torch.uint64])
@pytest.mark.parametrize("n", [0, 1, 31])
def test_operator_take_is_well_made(n, dtype):
    arguments = torch.arange(50).to(dtype), torch.arange(n) * 7 % 50
    torch.library.opcheck(torch.ops.fastbalance.take.default, arguments)


def test_operators_equal_the_kernels():
    block = block_at(plan_of(), 5, 1, 0)
    assert torch.equal(by(ops.order_block, block), by(cpu.order_block, block))
    out, records, places = gathered(31, 48)
    ops.gather(out, records, places)
    assert torch.equal(out, records[places])
    assert ops.take(torch.arange(50).to(torch.uint32), places).tolist() == places.tolist()


def test_order_runs_through_the_operators():
    order, wanted = (fb.EpochOrder(np.arange(5003, dtype=np.uint32), plan_of((5000, 3)), 1) for _ in range(2))
    order._kernels = ops
    assert torch.equal(order[100:4000], wanted[100:4000])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"out": torch.zeros((2, 3), dtype=torch.int32)}, TypeError, "out: got torch.int32; allowed: torch.int64"),
        ({"out": torch.zeros(6, dtype=torch.int64)}, ValueError, r"out: got shape \[6\]; allowed: 2 dimensions"),
        ({"out": torch.zeros((3, 2), dtype=torch.int64).T}, ValueError, r"out: got strides \[1, 2\]; allowed: a cont"),
        ({"strata": torch.zeros(7)}, TypeError, "strata: got torch.float32; allowed: torch.int32"),
        ({"numbers": torch.zeros(9, dtype=torch.int64, device="meta")}, ValueError, "numbers: got device meta"),
        ({"numbers": torch.zeros(8, dtype=torch.int64)}, ValueError, "keys and numbers: got 24 and 8 entries; allowed"),
        ({"draws": torch.zeros((2, 2), dtype=torch.int64)}, ValueError, "draws: got 2 lines; allowed: 3"),
        ({"draws": torch.zeros((3, 5), dtype=torch.int64)}, ValueError, "classes and draws: got 2 and 5 columns"),
    ],
)
def test_operator_order_block_refuses(change, error, message):
    block = block_at(plan_of((40, 3), 7, 20), 5, 1, 0)
    arguments = {"out": torch.zeros((2, 3), dtype=torch.int64), **block._asdict(), **change}
    with pytest.raises(error, match=message):
        ops.order_block(arguments.pop("out"), Block(**arguments))


@pytest.mark.parametrize(
    ("out", "records", "places", "error", "message"),
    [
        ((4, 16), (9, 16), torch.zeros(4), TypeError, "places: got torch.float32; allowed: torch.int64"),
        ((4, 16), (9, 32), torch.arange(4), ValueError, "got 16 and 32 bytes a record; allowed: the same multiple of"),
        ((4, 24), (9, 24), torch.arange(4), ValueError, "got 24 and 24 bytes a record"),
        ((3, 16), (9, 16), torch.arange(4), ValueError, "out: got 3 records; allowed: as many as places, 4"),
        ((4, 16), (9, 16, 1), torch.arange(4), ValueError, r"records: got shape \[9, 16, 1\]; allowed: 2 dimensions"),
    ],
)
def test_operator_gather_refuses(out, records, places, error, message):
    with pytest.raises(error, match=message):
        ops.gather(torch.zeros(out, dtype=torch.uint8), torch.zeros(records, dtype=torch.uint8), places)


def test_operators_refuse_views_with_gaps_and_signed_values():
    records = torch.zeros((8, 32), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"records: got strides \[32, 1\]"):
        ops.gather(torch.zeros((2, 16), dtype=torch.uint8), records[:, :16], torch.arange(2))
    with pytest.raises(TypeError, match=r"values: got torch.int64; allowed: torch.uint32"):
        ops.take(torch.arange(5), torch.arange(2))


@on_inductor
def test_a_users_step_is_one_graph_and_compiles_once():
    plan = plan_of((40, 3, 300))
    records = torch.rand((plan.n_rows, 8)).view(torch.uint8)
    weights = torch.rand((3, 2))

    def step(block: Block, records: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        places = torch.empty((2, BATCH), dtype=torch.int64)
        ops.order_block(places, block)
        rows = torch.empty((2 * BATCH, 32), dtype=torch.uint8)
        ops.gather(rows, records, places.view(-1))
        return rows.view(torch.float32)[:, 2:5] @ weights

    fast = compiled_once(step, "inductor")
    for epoch in (0, 1, LAST):
        for batch in (0, 6, HEIGHT):
            block = block_at(plan, 3, epoch, batch)
            torch.testing.assert_close(fast(block, records, weights), step(block, records, weights))


# 3. What a CUDA graph demands of the CUDA interpretation: the launches of one call, repeated, do the work of others.


class NothingNew(TorchDispatchMode):
    """Fails where an operator makes memory, or a number of the host."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for result in tree_leaves(results):
            if result is not None:
                assert isinstance(result, torch.Tensor), f"{operator} waits for a number"
                assert result.untyped_storage().data_ptr() in known, f"{operator} makes a tensor"
        return results


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (lambda x: x + 1, "add.Tensor makes a tensor"),
        (lambda x: torch.empty(3), "empty.memory_format makes a tensor"),
        (lambda x: x.clone(), "clone.default makes a tensor"),
        (lambda x: int(x[0]), "_local_scalar_dense.default waits for a number"),
        (lambda x: x.nonzero(), "nonzero.default makes a tensor"),
    ],
)
def test_what_a_graph_cannot_capture_is_found(does, message):
    numbers = torch.arange(3)
    with NothingNew(), pytest.raises(AssertionError, match=message):
        does(numbers)


def test_captured_launches_compute_other_batches_from_other_numbers(monkeypatch):
    captured: list[Launch] = []
    replace_driver(monkeypatch, captured.append)
    plan = plan_of((40, 3, 17, 5000), 12, 10)
    block, records = block_at(plan, 3, 0, 0), torch.randint(0, 256, (plan.n_rows, 32), dtype=torch.uint8)
    places, rows = torch.zeros((4, 12), dtype=torch.int64), torch.zeros((48, 32), dtype=torch.uint8)
    flat = places.view(-1)
    with NothingNew():
        cuda_kernels.order_block(places, block)
        cuda_kernels.gather(rows, records, flat)
    texts = [ptx_of(launch.kernel, launch.types, "sm_90") for launch in captured]
    assert len(texts) == 2
    for epoch, batch, seed in [(0, 0, 3), (0, 5, 3), (1, 13, 3), (LAST, 26, 2**63)]:
        other = block_at(plan, seed, epoch, batch)
        for table, content in zip(block, other, strict=True):
            table.copy_(content)
        for launch, text in zip(captured, texts, strict=True):
            ptx.launch(text, launch.kernel.py_func.__name__, launch.blocks, launch.threads, launch.arguments)
        wanted = by(cpu.order_block, other, 4, 12)
        assert torch.equal(places, wanted)
        assert torch.equal(rows, records[wanted.view(-1)])


@pytest.mark.parametrize("order_block", [cpu.order_block, torch_ops.order_block, ops.order_block])
def test_all_numbers_are_read_from_the_tensor(order_block):
    plan = plan_of((40, 3, 300))
    block = block_at(plan, 3, 0, 0)
    before = by(order_block, block, 4, 12)
    other = block_at(plan, 3, 0, 7, 5)
    assert other.numbers[[FIRST, COLUMN, EPOCH, BATCHES]].tolist() == [7, 5, 0, HEIGHT]
    block.numbers.copy_(other.numbers)
    got = by(order_block, block, 4, 12)
    assert not torch.equal(got, before)
    assert torch.equal(got, by(cpu.order_block, other, 4, 12))
