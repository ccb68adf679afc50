"""The compiled CUDA kernels, executed: the PTX of every architecture gives the order of the CPU and of the oracle."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fastbalance.kernels import cpu_rows
from fastbalance.kernels import cuda as cuda_kernels

import fastbalance as fb

from . import oracle, ptx
from .device import Launch, replace_driver
from .packed import ALL, FOURS, PACKED, Packed
from .sass import ARCHITECTURES, ptx_of

# 1. The interpreter, by cases worked out by hand.

KERNEL = """
.visible .entry _Z4caseB1(.param .u64 .ptr .align 1 p0, .param .u64 p1, .param .u64 p2, .param .u64 p3,
    .param .u64 p4, .param .u64 p5, .param .u64 p6)
{
    .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [p4];
    cvta.to.global.u64 %rd1, %rd1;
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %rd2, %r1, 8, %rd1; // the lane's word
    BODY
    ret;

}
"""


def run(body: str, grid: int = 1, block: int = 1, words: int | None = None) -> list[int]:
    """Run a body that stores to [%rd2]; the words of the one array that the kernel gets, uint64."""
    out = np.zeros(grid * block if words is None else words, np.uint64)
    ptx.launch(KERNEL.replace("BODY", body), "case", grid, block, [out])
    return out.tolist()


M32, M64 = 2**32, 2**64


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("mov.u64 %rd3, -1", M64 - 1),
        ("add.s32 %r3, 2147483647, 1", 2**31),
        ("add.u64 %rd3, -1, 3", 2),
        ("sub.s64 %rd3, 3, 5", M64 - 2),
        ("sub.u32 %r3, 3, 5", M32 - 2),
        ("mul.lo.s32 %r3, 65537, 65537", 2 * 65536 + 1),
        ("mul.lo.u64 %rd3, 4294967297, 4294967297", 2 * M32 + 1),
        ("mul.hi.u32 %r3, -1, -1", M32 - 2),
        ("mul.hi.s32 %r3, -1, 5", M32 - 1),
        ("mul.hi.u64 %rd3, -1, -1", M64 - 2),
        ("mul.hi.s64 %rd3, -2, 3", M64 - 1),
        ("mul.wide.u32 %rd3, -1, 2", 2 * (M32 - 1)),
        ("mul.wide.s32 %rd3, -1, 2", M64 - 2),
        ("mul.wide.u16 %r3, 65535, 65535", 65535**2),
        ("mad.lo.s32 %r3, 65536, 65537, -1", 65535),
        ("mad.hi.u32 %r3, -1, 2, 7", 8),
        ("mad.wide.u32 %rd3, -1, 2, 4294967296", 2 * (M32 - 1) + M32),
        ("mad.wide.s32 %rd3, -1, 2, 1", M64 - 1),
        ("div.u32 %r3, -1, 2", 2**31 - 1),
        ("div.s64 %rd3, -7, 2", M64 - 3),
        ("div.s64 %rd3, -7, -2", 3),
        ("rem.s64 %rd3, -7, 2", M64 - 1),
        ("rem.u32 %r3, -1, 10", 5),
        ("min.u32 %r3, -1, 1", 1),
        ("min.s32 %r3, -1, 1", M32 - 1),
        ("max.u64 %rd3, -1, 1", M64 - 1),
        ("max.s64 %rd3, -1, 1", 1),
        ("abs.s32 %r3, -5", 5),
        ("neg.s64 %rd3, 5", M64 - 5),
        ("neg.s32 %r3, 5", M32 - 5),
        ("and.b64 %rd3, 12, 10", 8),
        ("or.b64 %rd3, 12, 10", 14),
        ("xor.b64 %rd3, 12, 10", 6),
        ("not.b32 %r3, 0xF", M32 - 16),
        ("shl.b32 %r3, 3, 31", 2**31),
        ("shl.b32 %r3, 3, 32", 0),
        ("shl.b64 %rd3, 3, 64", 0),
        ("shl.b64 %rd3, 3, -1", 0),
        ("shr.u32 %r3, -1, 31", 1),
        ("shr.u32 %r3, -1, 33", 0),
        ("shr.s32 %r3, -8, 2", M32 - 2),
        ("shr.s32 %r3, -8, 99", M32 - 1),
        ("shr.s64 %rd3, 8, 64", 0),
        ("shr.b64 %rd3, -1, 60", 15),
        ("cvt.s64.s32 %rd3, -5", M64 - 5),
        ("cvt.u64.u32 %rd3, -5", M32 - 5),
        ("cvt.u32.u64 %r3, 0x123456789A", 0x3456789A),
        ("cvt.s32.s8 %r3, 0x1FF", M32 - 1),
        ("cvt.u16.u32 %rs3, 0x12345; cvt.u64.u16 %rd3, %rs3", 0x2345),
        ("mov.b64 {_, %r3}, 0x100000002", 1),
        ("mov.b64 {%r3, _}, 0x100000002", 2),
        ("setp.lt.s32 %p1, -1, 1; selp.b64 %rd3, 7, 9, %p1", 7),
        ("setp.lt.u32 %p1, -1, 1; selp.b64 %rd3, 7, 9, %p1", 9),
        ("setp.le.u64 %p1, 1, 1; selp.b64 %rd3, 7, 9, %p1", 7),
        ("setp.gt.s64 %p1, 1, -1; selp.b64 %rd3, 7, 9, %p1", 7),
        ("setp.hi.u64 %p1, 1, -1; selp.b64 %rd3, 7, 9, %p1", 9),
        ("setp.ge.u32 %p1, 1, 1; selp.b64 %rd3, 7, 9, %p1", 7),
        ("setp.eq.s32 %p1, 4294967296, 0; selp.b64 %rd3, 7, 9, %p1", 7),
        ("setp.ne.b64 %p1, 4294967296, 0; selp.b64 %rd3, 7, 9, %p1", 7),
        ("setp.eq.s32 %p1, 0, 0; not.pred %p2, %p1; and.pred %p3, %p1, %p2; selp.u64 %rd3, 7, 9, %p3", 9),
        ("mov.u64 %rd3, 1; setp.eq.s32 %p1, 0, 0; @%p1 mov.u64 %rd3, 2; @!%p1 mov.u64 %rd3, 3", 2),
    ],
)
def test_ptx_instruction(instruction, expected):
    result = "b64 [%rd2], %rd3" if "%rd3" in instruction else "b32 [%rd2], %r3"
    assert run(f"{instruction}; st.global.{result};") == [expected]


def test_ptx_loads_and_stores_of_every_width():
    body = """
    mov.u64 %rd3, 0x80FF;
    st.u16 [%rd2], %rd3;
    ld.s16 %rd4, [%rd2]; st.global.u64 [%rd2+8], %rd4;
    ld.u8 %rd4, [%rd2]; st.u64 [%rd2+16], %rd4;
    ld.s8 %r4, [%rd2+0]; cvt.u64.u32 %rd4, %r4; st.b64 [%rd2+24], %rd4;
    ld.global.v2.u64 {%rd5, %rd6}, [%rd2+16]; st.v2.u64 [%rd2+32], {%rd6, %rd5};
    add.s64 %rd7, %rd2, 56; ld.u64 %rd8, [%rd7+-48]; st.u64 [%rd7+-8], %rd8;"""
    low = M64 - 0x7F01
    assert run(body, words=8) == [0x80FF, low, 0xFF, M32 - 1, M32 - 1, 0xFF, low, 0]


def test_ptx_lanes_know_their_place():
    body = """
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %nctaid.x;
    mad.lo.s32 %r5, %r2, %r3, %r1;
    mad.wide.u32 %rd2, %r5, 8, %rd1;
    mad.lo.s32 %r5, %r4, 100, %r5; cvt.u64.u32 %rd3, %r5;
    st.global.u64 [%rd2], %rd3;"""
    assert run(body, grid=3, block=5) == [300 + lane for lane in range(15)]


def test_ptx_lanes_part_and_meet_again():
    """Lane k adds up k, k-1, .., 1: loops of different lengths; then odd and even lanes take different ways."""
    body = """
    mov.u32 %r2, %r1; mov.u64 %rd3, 0;
    bra.uni $L_test;
$L_loop:
    cvt.u64.u32 %rd4, %r2;
    add.s64 %rd3, %rd3, %rd4;
    add.s32 %r2, %r2, -1;
$L_test:
    setp.ne.s32 %p1, %r2, 0;
    @%p1 bra $L_loop;

    and.b32 %r3, %r1, 1;
    setp.eq.s32 %p2, %r3, 0;
    @!%p2 bra $L_odd;
    add.s64 %rd3, %rd3, 1000;
    bra.uni $L_end;
$L_odd:
    setp.eq.s32 %p3, %r1, 5;
    @%p3 ret;
$L_end:
    st.global.u64 [%rd2], %rd3;"""
    expected = [k * (k + 1) // 2 + (0 if k % 2 else 1000) for k in range(9)]
    expected[5] = 0
    assert run(body, block=9) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("st.global.u64 [%rd2], 1;", "lane 2: 8 bytes at 0x7f0000000110: the access is in no buffer"),
        ("ld.global.u64 %rd3, [%rd2+-8];", "lane 0: .*: the access is in no buffer"),
        ("ld.global.u64 %rd3, [8];", "lane 0: 8 bytes at 0x8: the access is in no buffer"),
        ("ld.global.u64 %rd3, [%rd1+4];", "lane 0: .*: the access is misaligned"),
        ("ld.global.v2.u64 {%rd3, %rd4}, [%rd2];", "lane 1: 16 bytes .*: the access is in no buffer"),
        ("div.u32 %r3, 5, %r1;", "division by zero"),
        ("$L_1: bra.uni $L_1;", "still running"),
    ],
)
def test_ptx_refuses_what_a_gpu_would_not_survive(body, message):
    with pytest.raises(ptx.PtxError, match=message):
        run(body, block=3, words=2)


@pytest.mark.parametrize(
    "instruction",
    [
        "add.f32 %f1, %f2, %f3",
        "add.cc.u32 %r1, %r2, %r3",
        "lop3.b32 %r1, %r2, %r3, %r4, 0x80",
        "call.uni (r), other, (p)",
        "ld.shared.u32 %r1, [%rd1]",
        "ld.global.v8.b32 {%r1}, [%rd1]",
        "atom.global.add.u32 %r1, [%rd1], 1",
        "bar.sync 0",
        "setp.lt.and.s32 %p1, %r1, %r2, %p2",
        "setp.lt.s32 %p1|%p2, %r1, %r2",
        "mov.u32 %r1, %laneid",
        "mov.u32 %r1, %tid.y",
        "mov.b64 %rd3, {%r1, %r2}",
        ".local .b8 depot[8]",
    ],
)
def test_ptx_refuses_instructions_it_does_not_know(instruction):
    with pytest.raises(ptx.UnknownInstruction):
        run(f"{instruction};")


def test_ptx_refuses_a_wrong_launch():
    with pytest.raises(ptx.PtxError, match="no kernel nothing"):
        ptx.launch(KERNEL.replace("BODY", ""), "nothing", 1, 1, [])
    with pytest.raises(ptx.PtxError, match="1 parameters for a kernel that takes 7"):
        ptx.launch(KERNEL.replace("BODY", ""), "case", 1, 1, [5])


# 2. The kernels.

ORDER, GATHER, PACK = "order_kernel", "gather_kernel", "pack_kernel"


class Fault(NamedTuple):
    """What to replace in the PTX of a kernel, how many thread blocks to leave out, and what must come of it.

    The outcome is "different", for other numbers, or a pattern of the message of the interpreter.
    """

    kernel: str
    pattern: str
    replacement: str | Callable[[re.Match], str] = ""
    missing_blocks: int = 0
    outcome: str = "different"


def executed(architecture: str, fault: Fault | None = None) -> Callable[[Launch], None]:
    """What stands in for a GPU: executes the PTX of a launch for an architecture, with a fault or without."""

    def run(launch: Launch) -> None:
        name, n_blocks = launch.kernel.py_func.__name__, launch.blocks
        text = ptx_of(launch.kernel, launch.types, architecture)
        if fault and fault.kernel == name:
            text, n_planted = re.subn(fault.pattern, fault.replacement, text)
            assert n_planted
            n_blocks -= fault.missing_blocks
        out, inputs = launch.arguments[0], [a for a in launch.arguments[1:] if isinstance(a, np.ndarray)]
        before = [a.copy() for a in inputs]
        if name != PACK:  # that leaves some records as they are
            out.fill(-1)  # what no thread writes to is seen
        ptx.launch(text, name, n_blocks, launch.threads, launch.arguments)
        assert all(map(np.array_equal, inputs, before)), "the kernel wrote to its inputs"

    return run


def install(patch: pytest.MonkeyPatch, architecture: str, fault: Fault | None = None) -> None:
    replace_driver(patch, executed(architecture, fault))
    patch.setattr(cuda_kernels, "THREADS", 96)  # several blocks
    patch.setattr(cuda_kernels, "UPLOAD_BYTES", 5000)  # several parts


@pytest.fixture(params=ARCHITECTURES)
def kernels(request, monkeypatch):
    """The CUDA interpretation, whose launches are executed here."""
    install(monkeypatch, request.param)
    return cuda_kernels


class Case(NamedTuple):
    counts: tuple[int, ...]
    batch: int
    rows: int | None = None  # None: every row once, and a short last batch
    epoch: int = 0
    seed: int = 2**63 + 5
    block_rows: int = 2**20

    def order(self, kernels: ModuleType | None = None) -> fb.EpochOrder:
        """On the CPU, or as the given kernels compute it."""
        balance = "natural" if self.rows is None else "uniform"
        plan = fb.make_plan(self.counts, balance, self.rows, self.batch, block_rows=self.block_rows)
        order = fb.EpochOrder(None, plan, self.seed, self.epoch)
        order._kernels = kernels or order._kernels
        return order


@lru_cache
def by_oracle(case: Case) -> list[int]:
    plan = case.order().plan
    quotas = tuple(plan.quotas.tolist())
    return oracle.places(case.counts, quotas, case.batch, plan.epoch_rows, case.seed, case.epoch, case.block_rows)


MIXED = Case((17, 300, 16, 1, 5000, 40), 12, 360, epoch=3)
CASES = [
    MIXED,
    Case(tuple(range(1, 18)), 13, 700, epoch=1, block_rows=300),
    Case((40, 3, 1, 300), 7, epoch=2, block_rows=100),
    Case((5000,), 1, 97),
    Case((4095, 4096, 4097, 2**16, 2**16 + 1), 97, 300, seed=0),
    Case((2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32 + 9, 2**40), 11, 400, epoch=5),
    Case((1, 2, 1), 5, 60, epoch=2**32 - 1, seed=2**64 - 1),  # passes above 2^32
    Case((2**33, 3), 1, 1 + 2**5, epoch=2**28, seed=1),
]


@pytest.mark.parametrize("case", CASES)
def test_ptx_of_the_order_equals_the_cpu_and_the_oracle(kernels, case):
    got = case.order(kernels)
    places = got.positions(0, len(got)).tolist()
    assert places == case.order().positions(0, len(got)).tolist()
    assert places == by_oracle(case)


@pytest.mark.parametrize(("batch", "n_batches", "start", "stop"), [(0, 30, 5, 12), (7, 5, 0, 1), (29, 1, 11, 12)])
def test_ptx_of_a_rectangle_of_a_block_equals_the_cpu(kernels, batch, n_batches, start, stop):
    rectangle = batch, n_batches, start, stop
    assert torch.equal(MIXED.order(kernels).places(*rectangle), MIXED.order().places(*rectangle))


def gathered(record_bytes: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Records of 50 rows at n places: by the CUDA interpretation, and by an index."""
    random = np.random.default_rng(n)
    records = torch.from_numpy(random.integers(0, 256, (50, record_bytes), np.uint8))
    places = torch.from_numpy(random.permutation(np.arange(n) % 50))
    out = torch.empty((n, record_bytes), dtype=torch.uint8)
    cuda_kernels.gather(out, records, places)
    return out, records[places]


@pytest.mark.parametrize("n", [1, 31, 96, 97, 200])
@pytest.mark.parametrize("record_bytes", [16, 48, 144])
@pytest.mark.usefixtures("kernels")
def test_ptx_of_the_gather_equals_an_index(record_bytes, n):
    assert torch.equal(*gathered(record_bytes, n))


@pytest.mark.parametrize("case", PACKED, ids=lambda case: f"{case.n} rows of {len(case.columns)} columns")
def test_ptx_of_the_pack_equals_the_cpu(kernels, case):
    assert torch.equal(case.by(kernels.pack), case.by(cpu_rows.pack))


# 3. Faults, planted in the PTX: the comparisons above must see every one.

OUTSIDE = "is in no buffer"
NOTHING = r"^", ""
LATE_GUARD = r"setp\.(ge|lt)(\.s64\s+%p1,)", lambda m: f"setp.{dict(ge='gt', lt='le')[m[1]]}{m[2]}"


def swapped(kind: str, letter: str) -> tuple[str, str]:
    """Subtractions the other way round."""
    return rf"(sub\.{kind}\s+%{letter}\d+), (%{letter}\d+), (%{letter}\d+)", r"\1, \3, \2"


FAULTS = {
    "wrong shift": Fault(ORDER, r"(shr\.u32\s+%r\d+, %r\d+), 16;", r"\1, 15;"),
    "four rounds dropped": Fault(
        ORDER, r"(selp\.b64\s+%rd\d+), 5, 3,", r"\1, 3, 1,", outcome="different|still running"
    ),
    "wrong multiplier in a round": Fault(ORDER, "569420461", "569420463"),
    "wrong multiplier in the keys": Fault(ORDER, "-766435501", "-766435503"),
    "wrong step of the keys": Fault(ORDER, "-1640531527", "-1640531525"),
    "even multiplier": Fault(ORDER, r"(or\.b32\s+%r\d+, %r\d+), 1;", r"\1, 0;"),
    "swapped operands, 32 bits": Fault(ORDER, *swapped("s32", "r"), outcome="still running"),
    "swapped operands, 64 bits": Fault(ORDER, *swapped("s64", "rd"), outcome=f"still running|{OUTSIDE}"),
    "narrow digits": Fault(ORDER, r"(and\.b64\s+%rd\d+, %rd\d+), 15;", r"\1, 7;"),
    "order of one thread too many": Fault(ORDER, *LATE_GUARD, outcome=OUTSIDE),
    "order of one block too few": Fault(ORDER, *NOTHING, missing_blocks=1),
    "wrong size of a vector": Fault(GATHER, r"(shl\.b64\s+%rd\d+, %rd\d+), 4;", r"\1, 3;", outcome="misaligned"),
    "swapped halves": Fault(GATHER, r"(st\S+v2\S+\s+.*)\{(%rd\d+), (%rd\d+)", r"\1{\3, \2"),
    "swapped operands in the gather": Fault(GATHER, *swapped("s64", "rd"), outcome=OUTSIDE),
    "gather of one thread too many": Fault(GATHER, *LATE_GUARD, outcome=OUTSIDE),
    "gather of one block too few": Fault(GATHER, *NOTHING, missing_blocks=1),
    "swapped lines of the table": Fault(
        PACK, r"(mad\.lo\.s32\s+%r\d+), (%r\d+), (%r\d+), (%r\d+)", r"\1, \4, \3, \2", outcome=f"different|{OUTSIDE}"
    ),
    "swapped operands in the pack": Fault(PACK, *swapped("s64", "rd"), outcome=OUTSIDE),
    "pack of one thread too many": Fault(PACK, *LATE_GUARD, outcome=OUTSIDE),
    "pack of one block too few": Fault(PACK, *NOTHING, missing_blocks=1),
}


def outcome(fault: Fault) -> str:
    """What comes of a launch: "equal" or "different" numbers, or the message of the interpreter."""
    try:
        if fault.kernel == GATHER:
            return "equal" if torch.equal(*gathered(48, 97)) else "different"
        if fault.kernel == PACK:
            cases = Packed(97, ALL), Packed(97, FOURS)
            same = all(torch.equal(case.by(cuda_kernels.pack), case.by(cpu_rows.pack)) for case in cases)
            return "equal" if same else "different"
        order = MIXED.order(cuda_kernels)
        return "equal" if order.positions(0, len(order)).tolist() == by_oracle(MIXED) else "different"
    except ptx.PtxError as error:
        return str(error)


@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
@pytest.mark.parametrize("name", FAULTS)
def test_ptx_with_a_planted_fault_is_found_out(monkeypatch, architecture, name):
    install(monkeypatch, architecture, FAULTS[name])
    assert re.search(FAULTS[name].outcome, outcome(FAULTS[name]))
