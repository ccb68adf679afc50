"""Machine code of CUDA kernels without a GPU: numba-cuda makes PTX, `ptxas` a cubin, `nvdisasm` text that is read here.

`ptxas` and `nvdisasm` come from the packages nvidia-cuda-nvcc and nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import heapq
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import files
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

from fastbalance.kernels import cuda as kernels
from numba import cuda
from numba.cuda import types

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100"]

_i64 = types.int64
_longs, _table = types.Array(_i64, 1, "C"), types.Array(_i64, 2, "C")
_ints, _int_table = types.Array(types.int32, 1, "C"), types.Array(types.int32, 2, "C")
_words = {1: types.uint8, 2: types.int16, 4: types.int32, 8: _i64}
# What is launched: a name -> the kernel, and numba's types of its arguments. Records are packed in words of each width.
VARIANTS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "order_kernel": (kernels.order_kernel, (_longs, _i64, _table, _table, _ints, _int_table, _longs)),
    "gather_kernel": (kernels.gather_kernel, (_longs, _longs, _longs, _i64)),
    **{
        f"pack_kernel, {n_bytes} bytes": (kernels.pack_kernel, (*[types.Array(word, 1, "C")] * 2, _int_table, _longs))
        for n_bytes, word in _words.items()
    },
}


class Machine(NamedTuple):
    """A compiled kernel."""

    registers: int  # of a thread
    stack_bytes: int
    spill_bytes: int  # stored and loaded
    code: list[str]  # instructions
    labels: dict[str, int]  # index of the instruction behind it

    def count(self, pattern: str) -> int:
        """Instructions in which a pattern occurs."""
        return sum(bool(re.search(pattern, instruction)) for instruction in self.code)


def _tool(package: str, name: str) -> Path:
    return next(Path(str(path.locate())) for path in files(package) or [] if path.name == name)


@cache
def ptx_of(kernel: Any, signature: tuple[Any, ...], architecture: str) -> str:
    """PTX of what `cuda.jit` made, as it is launched. numba asks the driver for the device; here it is told."""
    number = architecture.removeprefix("sm_")
    cc = int(number[:-1]), int(number[-1])
    device = SimpleNamespace(compute_capability=cc)
    asks = [f"numba.cuda.{module}.get_current_device" for module in ("compiler", "dispatcher")]
    options = dict(cc=cc, device=False, abi="numba", output="ptx")
    with patch(asks[0], lambda: device), patch(asks[1], lambda: device):
        ptx, _ = cuda.compile(kernel.py_func, types.void(*signature), **options)
    return ptx


def assemble(kernel: Any, signature: tuple[Any, ...], architecture: str) -> Machine:
    """Machine code of what `cuda.jit` made, with its limit of registers if it has one."""
    limit = kernel.targetoptions.get("max_registers")
    with TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx_of(kernel, signature, architecture))
        ptxas = [_tool("nvidia-cuda-nvcc", "ptxas"), "-v", "-arch", architecture, source, "-o", cubin]
        ptxas += ["-maxrregcount", str(limit)] if limit else []
        log = subprocess.run(ptxas, check=True, capture_output=True, text=True).stderr
        nvdisasm = [_tool("nvidia-cuda-nvdisasm", "nvdisasm"), "-c", cubin]
        text = subprocess.run(nvdisasm, check=True, capture_output=True, text=True).stdout

    def total(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, log)))

    stack, spills = total(r"(\d+) bytes stack frame"), total(r"(\d+) bytes spill (?:stores|loads)")
    return Machine(total(r"Used (\d+) registers"), stack, spills, *_read(text))


def _read(text: str) -> tuple[list[str], dict[str, int]]:
    code: list[str] = []
    labels: dict[str, int] = {}
    for label, instruction in re.findall(r"^\s*(?:(\.L_\w+):|/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;)", text, re.MULTILINE):
        if label:
            labels[label] = len(code)
        elif instruction != "NOP":  # behind the end, and nowhere else in optimised code
            code.append(instruction)
    return code, labels


@cache
def machine(name: str, architecture: str) -> Machine:
    """A kernel of `fastbalance.kernels.cuda`."""
    return assemble(*VARIANTS[name], architecture)


def _next(machine: Machine, at: int) -> list[int]:
    """Where control may go from an instruction; nowhere from the end of the kernel."""
    instruction = machine.code[at]
    is_guarded = instruction.startswith("@") or re.search(r"\bU?P\d", instruction)
    target = re.search(r"\bBRA\b.*`\(([.\w]+)\)", instruction)
    ends = re.search(r"\bEXIT\b", instruction) and not is_guarded
    following = [] if ends or (target and not is_guarded) else [at + 1]
    return following + ([machine.labels[target[1]]] if target else [])


def shortest_walk(machine: Machine, marks: Mapping[str, int]) -> list[int]:
    """Indices of the instructions of the shortest way from the entry to the last store that meets marks so often.

    A mark is text of an instruction. The shortest way is the one that a thread takes which meets nothing rare: a
    guarded instruction counts whether or not its guard holds, as it is issued.
    """
    store = max(i for i, instruction in enumerate(machine.code) if "STG" in instruction)
    goal, start = (store, *marks.values()), (0, *[0] * len(marks))
    queue: list[tuple[int, tuple[int, ...]]] = [(1, start)]
    came_from: dict[tuple[int, ...], tuple[int, ...] | None] = {start: None}
    while queue:
        steps, state = heapq.heappop(queue)
        if state == goal:
            break
        met = [n + (mark in machine.code[state[0]]) for n, mark in zip(state[1:], marks, strict=True)]
        if any(n > most for n, most in zip(met, marks.values(), strict=True)):
            continue
        for at in _next(machine, state[0]):
            following = (at, *met)
            if following not in came_from:  # every step costs the same, so the first way is the shortest
                came_from[following] = state
                heapq.heappush(queue, (steps + 1, following))
    walk: list[int] = []
    step: tuple[int, ...] | None = goal
    while step is not None:
        walk.append(step[0])
        step = came_from[step]  # KeyError: no way meets the marks so often
    return walk[::-1]


def loops(machine: Machine) -> list[list[str]]:
    """Bodies of the loops, in the order of their ends."""
    ends = ((min(_next(machine, at), default=at + 1), at) for at, text in enumerate(machine.code) if "BRA" in text)
    return [machine.code[start : end + 1] for start, end in ends if start < end]
