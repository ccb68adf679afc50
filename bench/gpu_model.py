"""What a GPU would need for the kernels, from their machine code and NVIDIA's data sheets; no GPU is used.

The time of a launch is modelled as the longer of two: its bytes at the data sheet's bandwidth, and its instructions on
the 64 INT32 lanes of an SM. The second is pessimistic (loads, jumps and half of the multiplies have units of their
own), and torch is charged with its bytes alone, which is optimistic.

python bench/gpu_model.py            rewrite the tables of docs/gpu.md between two markers
python bench/gpu_model.py --check    only say whether they are up to date (exit code 1 if not)
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from tests.sass import ARCHITECTURES, Machine, loops, machine, shortest_walk  # noqa: E402

PAGE = ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- modelled: bench/gpu_model.py writes this -->", "<!-- end of modelled -->"
TOOLS = ("numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvcc")
RECORD_BYTES = (64, 144, 512)
# Packed: 33 columns of 4 bytes and a class id of 8 into a record of 144 bytes, in words of 4; 8 bytes of place a row.
COLUMN_BYTES, PACKED_BYTES, WORD, PLACE_BYTES = 33 * 4 + 8, 144, 4, 8
PACK = f"pack_kernel, {WORD} bytes"
THREADS, REGISTERS_OF_SM = 256, 65_536
WARPS_OF_SM = {"sm_75": 32, "sm_80": 64, "sm_90": 64, "sm_100": 64}
INT32_LANES = 64  # of an SM: white papers of A100 and H100


class Gpu(NamedTuple):
    name: str
    architecture: str
    bytes_per_s: float
    n_sms: int
    clock_hz: float  # boost
    bus_bytes_per_s: float  # in one direction


GPUS = [
    Gpu("A100 80 GB", "sm_80", 2.039e12, 108, 1.41e9, 32e9),
    Gpu("H100 SXM", "sm_90", 3.35e12, 132, 1.755e9, 64e9),
    Gpu("H200", "sm_90", 4.8e12, 132, 1.755e9, 64e9),
]


class Launch(NamedTuple):
    """What one row costs in one kernel, or in a chain of kernels that are bound by memory."""

    n_bytes: int
    instructions: dict[str, int]  # by architecture; empty: taken to cost nothing

    def times(self, gpu: Gpu) -> tuple[float, float]:
        """Seconds a row: of its bytes, of its instructions."""
        lanes = INT32_LANES * gpu.n_sms * gpu.clock_hz
        return self.n_bytes / gpu.bytes_per_s, self.instructions.get(gpu.architecture, 0) / lanes


# torch.randperm of 1e8 rows on CUDA: 56-bit keys in 8 bytes and int64 values are written, digits are counted, pairs
# are sorted in 7 passes of 8 bits that read and write 16 bytes each, and equal keys are looked for.
KEY_BYTES, PAIR_BYTES, SORT_PASSES = 8, 16, 7
RANDPERM = Launch(PAIR_BYTES + KEY_BYTES + SORT_PASSES * 2 * PAIR_BYTES + KEY_BYTES, {})


def order_instructions(architecture: str) -> int:
    """Of a thread, for two classes and a large one: no walk of a cycle, a stratum that lies in one class.

    The shortest walk with 8 mixes and the one division has no step of a search; two classes take up to two.
    """
    code = machine("order_kernel", architecture)
    search = min(len(body) for body in loops(code) if any("LDG.E.64" in text for text in body))
    return len(shortest_walk(code, {"0x21f0aaad": 8, "MUFU": 1})) + 2 * search


def gather_instructions(architecture: str) -> int:
    """Of a thread, which moves 16 bytes."""
    return len(shortest_walk(machine("gather_kernel", architecture), {"MUFU": 1}))


def pack_instructions(architecture: str) -> int:
    """Of a thread, which writes a word."""
    return len(shortest_walk(machine(PACK, architecture), {"MUFU": 1}))


def warps(code: Machine, architecture: str) -> int:
    """Warps that an SM holds; registers are handed out 8 to a thread."""
    blocks = REGISTERS_OF_SM // (THREADS * (-(-code.registers // 8) * 8))
    return min(blocks * THREADS // 32, WARPS_OF_SM[architecture])


def code_table() -> list[str]:
    lines = ["| kernel | architecture | registers | local memory | warps of an SM | instructions of a thread |"]
    lines.append("|---|---|---|---|---|---|")
    count = {"order_kernel": order_instructions, "gather_kernel": gather_instructions, PACK: pack_instructions}
    for name in count:
        for architecture in ARCHITECTURES:
            code = machine(name, architecture)
            local, held = code.stack_bytes + code.spill_bytes, warps(code, architecture)
            of = WARPS_OF_SM[architecture]
            # On sm_100 Philox stays a loop, so that a walk does not tell how often it runs.
            known = name != "order_kernel" or architecture != "sm_100"
            lines.append(
                f"| `{name}` | {architecture} | {code.registers} | {local} bytes | {held} of {of} "
                f"| {count[name](architecture) if known else ''} |"
            )
    return lines


def time_table() -> list[str]:
    """Rows per second of the work and of torch's, and what bounds the slowest of its launches."""
    names = " | ".join(gpu.name for gpu in GPUS)
    lines = [f"| work | bytes of a row | instructions of a row | {names} |", "|---|---|---|" + "---|" * len(GPUS)]
    order = Launch(8, {a: order_instructions(a) for a in ("sm_80", "sm_90")})
    lines += [_line("order", order), _line("`torch.randperm`", RANDPERM)]
    for record in RECORD_BYTES:
        per_row = {a: record // 16 * gather_instructions(a) for a in ("sm_80", "sm_90")}
        gather, index_select = Launch(2 * record + 8, per_row), Launch(2 * record + 8, {})
        lines.append(_line(f"gather, {record}-byte records", gather))
        lines.append(_line(f"order, then gather, {record}", order, gather))
        lines.append(_line(f"`randperm`, then `index_select`, {record}", RANDPERM, index_select))
    words = {a: PACKED_BYTES // WORD * pack_instructions(a) for a in ("sm_80", "sm_90")}
    up = COLUMN_BYTES + PLACE_BYTES
    lines.append(_line(f"pack, {PACKED_BYTES}-byte records", Launch(up + PACKED_BYTES, words)))
    bus = " | ".join(f"{1e-9 * gpu.bus_bytes_per_s / up:.2f} (bus)" for gpu in GPUS)
    return [*lines, f"| its transfer from the host | {up} |  | {bus} |"]


def _line(work: str, *launches: Launch) -> str:
    cells = []
    for gpu in GPUS:
        times = [max(launch.times(gpu)) for launch in launches]
        memory, issue = launches[times.index(max(times))].times(gpu)
        cells.append(f"{1e-9 / sum(times):.2f} ({'memory' if memory >= issue else 'issue'})")
    counts = [sum(launch.instructions.get(a, 0) for launch in launches) for a in ("sm_80", "sm_90")]
    n_bytes = sum(launch.n_bytes for launch in launches)
    return f"| {work} | {n_bytes} | {' / '.join(map(str, counts)) if all(counts) else ''} | {' | '.join(cells)} |"


def tools() -> str:
    return "Compiled with " + ", ".join(f"{name} {version(name)}" for name in TOOLS) + "."


def main() -> int:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    if "--check" in sys.argv and tools() not in old:
        print(f"docs/gpu.md was made with other tools. {tools()}")
        return 1
    tables = "\n".join([*code_table(), "", *time_table(), "", tools()])
    wanted = f"{before}{BEGIN}\n{tables}\n{END}{after}"
    if "--check" in sys.argv:
        return int(wanted != text)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
