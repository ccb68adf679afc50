"""The Triton kernels without a GPU: run in Triton's interpreter, with faults and without, and compiled and read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from .sass import _tool


def python(code: str, *arguments: str, **environment: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, env={**os.environ, **environment}, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# 1. In the interpreter. It must be chosen before Triton is imported, so it has a process of its own.

GUARDED = """
import sys, torch
from types import SimpleNamespace
import fastbalance.kernels.triton_ops as kernels
from tests.test_ptx import CASES, MIXED, by_oracle

GUARD = -7  # lies behind every output, and must be there afterwards


def guarded(module):
    \"\"\"The module's operations; what they leave unwritten, or write behind their output, is seen.\"\"\"
    def run(out, call):
        buffer = torch.full((out.numel() + 40_000,), GUARD, dtype=out.dtype)
        call(buffer[: out.numel()].view(out.shape))
        assert (buffer[out.numel() :] == GUARD).all(), "behind"
        out.copy_(buffer[: out.numel()].view(out.shape))
    return SimpleNamespace(
        order_block=lambda out, block: run(out, lambda room: module.order_block(room, block)),
        gather=lambda out, records, places: run(
            out.view(torch.int64), lambda room: module.gather(room.view(torch.uint8), records, places)
        ),
    )


def ordered(module, case):
    order = case.order(guarded(module))
    return order.positions(0, len(order)).tolist()


def gathered(module, record_bytes, n):
    \"\"\"Records of 50 rows at n places: by the kernel, and by an index.\"\"\"
    generator = torch.Generator().manual_seed(n)
    records = torch.randint(0, 256, (50, record_bytes), dtype=torch.uint8, generator=generator)
    places, out = torch.randint(0, 50, (n,), generator=generator), torch.empty((n, record_bytes), dtype=torch.uint8)
    guarded(module).gather(out, records, places)
    return out, records[places]
"""

EQUAL = (
    GUARDED
    + """
for case in CASES:
    kernels.POSITIONS = 128 if case is MIXED else 512
    order = case.order()
    assert ordered(kernels, case) == order.positions(0, len(order)).tolist() == by_oracle(case), case
for rectangle in [(0, 30, 5, 12), (7, 5, 0, 1), (29, 1, 11, 12)]:
    assert torch.equal(MIXED.order(guarded(kernels)).places(*rectangle), MIXED.order().places(*rectangle)), rectangle
for record_bytes in (16, 48, 144, 1040):
    for n in (1, 31, kernels.VECTORS - 1, kernels.VECTORS, kernels.VECTORS + 1):
        assert torch.equal(*gathered(kernels, record_bytes, n)), (record_bytes, n)

# Tables and places with gaps are read as they are; records with gaps are refused.
class Gaps:
    @staticmethod
    def order_block(out, block):
        kernels.order_block(out, type(block)(*(torch.stack([table, table * 0], -1)[..., 0] for table in block)))
assert torch.equal(MIXED.order(Gaps).places(7, 5, 0, 1), MIXED.order().places(7, 5, 0, 1))
records, places = torch.arange(128, dtype=torch.uint8).view(8, 16), torch.arange(4)
kernels.gather(out := torch.empty((2, 16), dtype=torch.uint8), records, places[1::2])
assert torch.equal(out, records[1:4:2])
kernels.gather(records[:0], records, places[:0])
for out, source in [(records[::2], records), (records[:4], torch.zeros((8, 32), dtype=torch.uint8)[:, :16])]:
    try:
        kernels.gather(out, source, places)
    except RuntimeError as error:
        assert "view" in str(error)
    else:
        raise AssertionError("a view with gaps was taken")
print("equal")
"""
)

# The source of `triton_ops`: what to replace in it, and by what.
FAULTS = {
    "wrong multiplier": ("0x21F0AAAD", "0x21F0AAAF"),
    "wrong shift": ("g ^= g >> 16", "g ^= g >> 15"),
    "signed shift": ("g ^= g >> 16", "g ^= (g.to(tl.int32) >> 16).to(tl.uint32)"),
    "signed minimum": ("tl.minimum(total, total - a)", "tl.minimum(total.to(tl.int32), (total - a).to(tl.int32))"),
    "even multiplier": ("(k0 | 1) * v", "k0 * v"),
    "two rounds dropped": ("0, _LARGE_ROUNDS)", "0, _LARGE_ROUNDS - 2)"),
    "small sizes without their further rounds": ("has_small = _is_any(is_small)", "has_small = False"),
    "further rounds for all": ("tl.where(is_small, more_lhs, lhs)", "more_lhs"),
    "no walk": ("walks = _is_any(outside)", "walks = False"),
    "walk of all": ("y = tl.where(outside, (lhs", "y = tl.where(outside | True, (lhs"),
    "narrow digits": ("& 15", "& 7"),
    "quotient one too small": ("over = rest >= n", "over = rest > n"),
    "low half of the pass only": ("turn >> 32, _SLOT", "turn * 0, _SLOT"),
    "keys of the slots for strata": ("keys + 2 * _SMALL_ROUNDS", "keys"),
    "strata never mixed": ("if _is_any(mixed)", "if False"),
    "strata always mixed": ("tl.where(mixed, j * n_batches + inside, ticket)", "j * n_batches + inside"),
    "search that ends early": ("half >>= 1", "half >>= 2"),
    "order without the mask of its tail": ("mask=index < n)", "mask=index < n + POSITIONS)"),
    "gather without the mask of its tail": ("words, value, mask=inside[:, None]", "words, value"),
    "gather of the wrong group": ("places + first + k", "places + k"),
    "gather to the wrong group": ("target = 2 * (first * vectors + q)", "target = 2 * q.to(tl.int64)"),
    "wrong size of a vector": ("source = 2 * (place", "source = (place"),
}

FIND_FAULTS = (
    GUARDED
    + """
import json
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from triton.runtime.errors import InterpreterError

faults, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
source = Path(kernels.__file__).read_text()
# All regimes and strata of several classes; and passes above 2^32.
FAULTY = MIXED._replace(batch=9), next(case for case in CASES if case.counts == (1, 2, 1))


def outcome(module):
    is_any, calls = module._is_any, count()

    def limited(condition):  # a fault can make a walk that does not end
        if next(calls) > 60:
            raise RuntimeError("still running")
        return is_any(condition)

    module._is_any = limited
    try:
        for case in FAULTY:
            if ordered(module, case) != by_oracle(case):
                return "different"
        same = torch.equal(*gathered(module, 48, module.VECTORS + 30))
        return "equal" if same else "different"
    except AssertionError as error:
        return str(error)
    except InterpreterError as error:
        return "still running" if "still running" in str(error) else str(error)


found = {}
for number, (name, (old, new)) in enumerate({"none": ("", ""), **faults}.items()):
    assert old in source, name
    path = folder / f"fault_{number}.py"
    path.write_text(source.replace(old, new) if old else source)
    # In the package, so that its imports are those of triton_ops.
    spec = spec_from_file_location(f"fastbalance.kernels.{path.stem}", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.POSITIONS = 512
    found[name] = outcome(module)
print(json.dumps(found))
"""
)


def test_triton_in_its_interpreter_equals_the_cpu_the_oracle_and_an_index():
    assert python(EQUAL, TRITON_INTERPRET="1") == "equal\n"


@pytest.mark.slow
def test_triton_with_a_planted_fault_is_found_out(tmp_path):
    found = json.loads(python(FIND_FAULTS, json.dumps(FAULTS), str(tmp_path), TRITON_INTERPRET="1"))
    assert found.pop("none") == "equal"
    assert set(found.values()) == {"different", "still running", "behind"}
    assert {name for name, outcome in found.items() if outcome == "behind"} == {
        name for name in FAULTS if "mask of its tail" in name
    }


# 2. Compiled, without a driver.

COMPILE = """
import inspect, json, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import fastbalance.kernels.triton_ops as kernels

TYPES = {"strata": "*i32", "keys": "*i32"}
COUNTS = {"n", "width", "n_classes", "half", "vectors"}
WARPS = {"order_kernel": 1, "gather_kernel": 4}
done = {}
for name, n_warps in WARPS.items():
    kernel = getattr(kernels, name)
    constants = {k: getattr(kernels, k) for k in kernel.arg_names if k.isupper()}
    signature = {
        k: "constexpr" if k in constants else "i32" if k in COUNTS else TYPES.get(k, "*i64") for k in kernel.arg_names
    }
    pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    for architecture in sys.argv[1].split():
        for alignment in (16, 8):  # of all tensors
            attributes = {(i,): [["tt.divisibility", 16]] for i in pointers if alignment == 16}
            source = ASTSource(kernel, signature, constants, attributes)
            if alignment == 8 and name == "order_kernel":
                continue
            target = GPUTarget("cuda", int(architecture), 32)
            compiled = triton.compile(source, target=target, options={"num_warps": n_warps})
            done[f"{name} {architecture} {alignment}"] = compiled.asm["ptx"]
print(json.dumps(done))
"""

ARCHITECTURES = ["80", "90", "100"]
# 65,536 registers of an SM: 16 warps, each of which computes two positions a thread, at 128; 64 warps at 32.
MOST_REGISTERS = {"order_kernel": 128, "gather_kernel": 32}
MOVES_16_BYTES = [
    r"\bld\.global(?:\.\w+)*\.v(?:2\.[bu]64|4\.[bu]32)\b",
    r"\bst\.global(?:\.\w+)*\.v(?:2\.[bu]64|4\.[bu]32)\b",
]


@cache
def all_ptx() -> dict[str, str]:
    """All kernels for all architectures: "kernel architecture alignment" -> PTX."""
    with TemporaryDirectory() as cache_folder:
        return json.loads(python(COMPILE, " ".join(ARCHITECTURES), TRITON_CACHE_DIR=cache_folder))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", MOST_REGISTERS)
def test_triton_compiles_to_32_bit_arithmetic_without_spills(name, architecture, tmp_path):
    text = all_ptx()[f"{name} {architecture} 16"]
    assert not re.findall(r"\.local\b|\bcall\b", text), "local memory, or calls"
    assert not re.findall(r"\bmul\.hi\.[us]64|\b(?:div|rem)\.[us]64", text), "64-bit multiplies or divisions"
    assert not re.findall(r"\bcvt\.[a-z.]*f(?:32|64)", text), "an integer went through floating point"
    path = Path(tmp_path, "kernel.ptx")
    path.write_text(text)
    target = re.search(r"^\.target (\w+)", text, re.MULTILINE)
    assert target
    assert target[1].startswith(f"sm_{architecture}")
    command = [_tool("nvidia-cuda-nvcc", "ptxas"), "-v", "-arch", target[1], path, "-o", tmp_path / "kernel.cubin"]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in log
    registers = re.search(r"Used (\d+) registers", log)
    assert registers
    assert int(registers[1]) <= MOST_REGISTERS[name]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_triton_gather_moves_16_bytes_at_a_time(architecture):
    text = all_ptx()[f"gather_kernel {architecture} 16"]
    for pattern in MOVES_16_BYTES:
        assert re.search(pattern, text)


def test_triton_control_a_gather_of_unaligned_records_is_seen():
    text = all_ptx()["gather_kernel 90 8"]
    assert not any(re.search(pattern, text) for pattern in MOVES_16_BYTES)
