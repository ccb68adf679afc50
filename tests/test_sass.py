"""The machine code of the CUDA kernels: registers, spills, width of the memory accesses, and what is not in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import cuda
from numba.cuda import types

from . import ptx
from .sass import ARCHITECTURES, VARIANTS, Machine, assemble, machine, ptx_of, shortest_walk

BENCH = Path(__file__).parents[1] / "bench"
# Registers of a thread. 65,536 of an SM hold 6 blocks of 256 threads at 40 registers; 8 blocks, a full SM, at 32. On
# sm_75 an SM is full with 4 blocks, which 64 registers allow.
MOST_REGISTERS = {"order_kernel": 40, "gather_kernel": 16, "pack_kernel": 16}
MOST_REGISTERS_SM_75 = 64
# A 32-bit division by a run-time divisor is one reciprocal: one of each of these.
FLOAT_UNIT = ["I2F", "MUFU", "F2I"]


def faults(code: Machine, most_registers: int) -> set[str]:
    """What no kernel of ours may have."""
    found = {
        "local memory": code.stack_bytes or code.spill_bytes or code.count(r"\b(LDL|STL)\b"),
        "calls": code.count(r"\bCALL\b"),
        "registers": code.registers > most_registers,
        "floating point": any(code.count(rf"\b{name}\b") > 1 for name in FLOAT_UNIT)
        or code.count(r"\bD[A-Z]+\b|\bF2F"),
    }
    return {name for name, is_there in found.items() if is_there}


def moves_16_bytes(code: Machine) -> bool:
    """Whether records are read and written 128 bits at a time."""
    return code.count(r"\bLDG\.E\.128\b") == 1 and code.count(r"\bSTG\b") == code.count(r"\bSTG\.E\.128\b") == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", VARIANTS)
def test_sass_has_no_local_memory_no_calls_and_few_registers(name, architecture):
    most_registers = MOST_REGISTERS_SM_75 if architecture == "sm_75" else MOST_REGISTERS[name.split(",")[0]]
    assert faults(machine(name, architecture), most_registers) == set()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sass_of_the_order_multiplies_32_bits(architecture):
    code = machine("order_kernel", architecture)
    walk = [code.code[i] for i in shortest_walk(code, {"0x21f0aaad": 8, "MUFU": 1})]
    assert sum(bool(re.search(r"\bIMAD\.(HI|WIDE)\b|\bIMAD ", text)) for text in walk) >= 16, "two a round"
    assert len(walk) < 450


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sass_of_the_gather_moves_16_bytes_a_thread(architecture):
    assert moves_16_bytes(machine("gather_kernel", architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("n_bytes", [1, 2, 4, 8])
def test_sass_of_the_pack_loads_and_stores_one_word(n_bytes, architecture):
    code = machine(f"pack_kernel, {n_bytes} bytes", architecture)
    width = {1: r"\.U8", 2: r"\.U16", 4: "", 8: r"\.64"}[n_bytes]
    assert code.count(r"\bSTG\b") == code.count(rf"\bSTG\.E{width}(\.SYS)? ") == 1
    assert code.count(r"\bLDG\b") == 4, "two of the table, one place, one word"


@pytest.fixture
def accesses(monkeypatch):
    """Addresses of every access of compiled code as it runs, with its size: int64, one a thread."""
    found: list[tuple[int, np.ndarray]] = []
    check = ptx.Memory.offsets

    def traced(memory, addresses, size, lanes):
        found.append((size, addresses.astype(np.int64)))
        return check(memory, addresses, size, lanes)

    monkeypatch.setattr(ptx.Memory, "offsets", traced)
    return found


@pytest.mark.parametrize("vectors", [1, 4, 9, 32])
def test_sass_gather_is_coalesced(vectors, accesses):
    """Neighbouring threads read and write neighbouring 16 bytes."""
    places = np.array([3, 0, 4, 4, 1], np.int64)
    records, out = (np.zeros(n * 2 * vectors, np.int64) for n in (6, len(places)))
    code = ptx_of(*VARIANTS["gather_kernel"], "sm_90")
    ptx.launch(code, "gather_kernel", 1, 256, [out, records, places, vectors])
    loads, stores = (addresses for size, addresses in accesses if size == 16)
    thread = np.arange(len(places) * vectors)
    assert np.array_equal(stores - stores[0], 16 * thread)
    wanted = 16 * (places[thread // vectors] * vectors + thread % vectors)
    assert np.array_equal(loads - loads[0], wanted - wanted[0])


def test_sass_pack_is_coalesced(accesses):
    """Neighbouring threads write neighbouring words of a record; of a column, neighbouring rows read neighbours."""
    places, width = np.array([3, 0, 4, 1, 2], np.int64), 8
    items, records = np.zeros(1000, np.int32), np.zeros(5 * width, np.int32)
    table = np.stack([100 * np.arange(width), np.ones(width)]).astype(np.int32)
    code = ptx_of(*VARIANTS["pack_kernel, 4 bytes"], "sm_90")
    ptx.launch(code, "pack_kernel", 1, 256, [records, items, table, places])
    *_, loads, stores = (addresses for size, addresses in accesses if size == 4)
    row, word = np.divmod(np.arange(5 * width), width)
    assert np.array_equal(stores - stores.min(), 4 * (places[row] * width + word))
    assert np.array_equal(loads - loads[0], 4 * (100 * word + row))


@cuda.jit
def indexes_a_local_array(out, start):
    table = cuda.local.array(64, types.int64)
    for k in range(64):
        table[k] = start * k
    out[cuda.grid(1)] = table[out[cuda.grid(1)] & 63]


@cuda.jit
def divides_64_bits(out, divisor):
    out[cuda.grid(1)] //= divisor


@cuda.jit
def moves_4_bytes(out, records, places, words):
    q = cuda.grid(1)
    out[q] = records[places[q // words] * words + q % words]


LONGS, INTS = types.Array(types.int64, 1, "C"), types.Array(types.int32, 1, "C")


@pytest.mark.parametrize(("kernel", "fault"), [(indexes_a_local_array, "local memory"), (divides_64_bits, "calls")])
def test_sass_control_bad_kernels_are_found(kernel, fault):
    code = assemble(kernel, (LONGS, types.int64), "sm_90")
    assert fault in faults(code, 255)


def test_sass_control_a_gather_of_4_bytes_is_found():
    code = assemble(moves_4_bytes, (INTS, INTS, LONGS, types.int64), "sm_90")
    assert not moves_16_bytes(code)


def test_sass_model_of_docs_gpu_is_up_to_date():
    done = subprocess.run([sys.executable, BENCH / "gpu_model.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run bench/gpu_model.py\n{done.stdout}{done.stderr}"
