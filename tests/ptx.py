"""PTX in numpy: executes compiled CUDA kernels without a GPU, one lane a thread, all threads of a launch at once.

It knows the integer instructions that our kernels compile to, and refuses all others by name. Lanes that part at a
branch are brought together again by always running those that are furthest behind. Source of the semantics:
NVIDIA, "Parallel Thread Execution ISA", section 9.7.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray

MAX_STEPS = 3_000  # straight stretches of code in one launch; a loop that never ends is an error
UNWRITTEN = 0xDEADBEEFDEADBEEF  # what a register holds before the first write

TYPES = {f"{a}{8 * size}": np.dtype(f"{b}{size}") for a, b in ("bu", "uu", "si") for size in (1, 2, 4, 8)}
PREDICATE = np.dtype(bool)
WIDER = {np.dtype(f"{kind}{size}"): np.dtype(f"{kind}{2 * size}") for kind in "ui" for size in (1, 2, 4)}


class PtxError(Exception):
    """A launch that a GPU would not survive, or of which PTX does not define the result."""


class UnknownInstruction(PtxError):  # noqa: N818 - it names what it is about
    """An instruction or an operand that this interpreter does not know."""


def _high(x: Array, y: Array) -> Array:
    wide = WIDER.get(x.dtype, np.dtype(object))  # Python's integers hold 128 bits
    return ((x.astype(wide) * y.astype(wide)) >> 8 * x.itemsize).astype(x.dtype)


def _wide(x: Array, y: Array) -> Array:
    return x.astype(WIDER[x.dtype]) * y.astype(WIDER[x.dtype])


def _amount(x: Array, bits: Array) -> Array:
    return np.minimum(bits, 8 * x.itemsize).astype(x.dtype)  # numpy, too, shifts everything out at the width


def _remainder(x: Array, y: Array) -> Array:
    if not y.all():
        raise PtxError("division by zero: PTX does not define the result")
    return np.fmod(x, y)  # of the sign of x


def _divide(x: Array, y: Array) -> Array:
    return (x - _remainder(x, y)) // y  # toward zero


def _select(x: Array, y: Array, condition: Array) -> Array:
    return np.where(condition, x, y)


COMPARE = dict(eq=np.equal, ne=np.not_equal, lt=np.less, le=np.less_equal, gt=np.greater, ge=np.greater_equal)
COMPARE |= dict(lo=np.less, ls=np.less_equal, hi=np.greater, hs=np.greater_equal)  # the unsigned spelling
# Operation without its type -> what it does, and the types of its operands: t: the instruction's, w: twice as wide,
# u: u32, p: predicate.
ALU: dict[str, tuple[Callable[..., Array], str]] = {
    "mov": (np.copy, "t"),
    "ld.param": (np.copy, "t"),
    "cvta.to.global": (np.copy, "t"),  # there is one address space
    "add": (np.add, "tt"),
    "sub": (np.subtract, "tt"),
    "mul.lo": (np.multiply, "tt"),
    "mul.hi": (_high, "tt"),
    "mul.wide": (_wide, "tt"),
    "mad.lo": (lambda x, y, z: x * y + z, "ttt"),
    "mad.hi": (lambda x, y, z: _high(x, y) + z, "ttt"),
    "mad.wide": (lambda x, y, z: _wide(x, y) + z, "ttw"),
    "div": (_divide, "tt"),
    "rem": (_remainder, "tt"),
    "min": (np.minimum, "tt"),
    "max": (np.maximum, "tt"),
    "abs": (np.abs, "t"),
    "neg": (np.negative, "t"),
    "and": (np.bitwise_and, "tt"),
    "or": (np.bitwise_or, "tt"),
    "xor": (np.bitwise_xor, "tt"),
    "not": (np.invert, "t"),
    "shl": (lambda x, bits: x << _amount(x, bits), "tu"),
    "shr": (lambda x, bits: x >> _amount(x, bits), "tu"),
    "selp": (_select, "ttp"),
    **{f"setp.{name}": (compare, "tt") for name, compare in COMPARE.items()},
    **{f"cvt.{name}": (lambda x, dtype=dtype: x.astype(dtype), "t") for name, dtype in TYPES.items()},
}
JUMPS = {"bra", "bra.uni", "ret", "exit"}
MEMORY = re.compile(r"(ld|st)(\.global)?(\.v[24])?")


class Instruction(NamedTuple):
    guard: str  # predicate that must hold, or ""
    is_negated: bool  # it must not hold
    operation: str  # without the type
    dtype: np.dtype
    operands: list[str]


class Kernel(NamedTuple):
    parameters: list[str]
    code: list[Instruction]
    labels: dict[str, int]  # index of the instruction behind it
    starts: list[int]  # where straight stretches of code begin, and the end


def _is_known(operation: str, target: str) -> bool:
    if operation in ALU:  # a mov may take a word apart
        return bool(re.fullmatch(r"%\w+", target)) or (operation == "mov" and target.startswith("{"))
    return bool(MEMORY.fullmatch(operation))


def _decode(text: str) -> Instruction:
    if not (match := re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([\w.]+)\s*(.*)", text, re.DOTALL)):
        raise UnknownInstruction(text)
    negation, guard, opcode, rest = match.groups(default="")
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)
    if opcode in JUMPS:
        return Instruction(guard, bool(negation), opcode, PREDICATE, operands)
    operation, _, kind = opcode.rpartition(".")
    is_logic = kind == "pred" and operation in {"mov", "and", "or", "xor", "not"}
    dtype = PREDICATE if is_logic else TYPES.get(kind)
    n_operands = 1 + len(ALU[operation][1]) if operation in ALU else 2
    if dtype is None or len(operands) != n_operands or not _is_known(operation, operands[0]):
        raise UnknownInstruction(text)
    return Instruction(guard, bool(negation), operation, dtype, operands)


@lru_cache(maxsize=32)
def parse(ptx: str, entry: str) -> Kernel:
    """The kernel whose mangled name contains `entry`."""
    kernel = rf"\.entry\s+[\w$]*{entry}[\w$]*\s*\(([^)]*)\)[^{{]*\{{(.*?)\n\}}"
    if not (match := re.search(kernel, re.sub(r"//[^\n]*", "", ptx), re.DOTALL)):
        raise PtxError(f"no kernel {entry}")
    header, body = match.groups()
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for statement in map(str.strip, body.replace(":", ":;").split(";")):
        if statement.endswith(":"):
            labels[statement[:-1]] = len(code)
        elif statement and not re.match(r"\.(reg|pragma)\s", statement):
            code.append(_decode(statement))
    behind_jumps = {k + 1 for k, instruction in enumerate(code) if instruction.operation in JUMPS}
    starts = sorted({*labels.values(), *behind_jumps, len(code)})
    return Kernel(re.findall(r"([\w$]+)\s*(?:,|$)", header.strip()), code, labels, starts)


class Memory:
    """Copies of arrays in one flat address space: 256-byte aligned, and apart, with nothing between them."""

    BASE, ALIGNMENT = 0x7F00_0000_0000, 256

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays, self._offsets, end = arrays, [], self.ALIGNMENT
        for array in arrays:
            self._offsets.append(end)
            end += (-(-array.nbytes // self.ALIGNMENT) + 1) * self.ALIGNMENT
        self.bytes, self._is_mapped = np.zeros(end, np.uint8), np.zeros(end, bool)
        for array, part in self._parts():
            self.bytes[part] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self._is_mapped[part] = True

    def _parts(self) -> Iterator[tuple[Array, slice]]:
        for array, offset in zip(self._arrays, self._offsets, strict=True):
            yield array, slice(offset, offset + array.nbytes)

    def address(self, array: Array) -> int:
        return next(self.BASE + part.start for mine, part in self._parts() if mine is array)

    def offsets(self, addresses: Array, size: int, lanes: Array) -> Array:
        """Places in `bytes` of accesses of `size` bytes, checked."""
        offsets = addresses - np.uint64(self.BASE)  # below the base it wraps, and is far too large
        inside = offsets <= self.bytes.size - size
        checked = np.where(inside, offsets, 0).astype(np.int64)
        inside &= self._is_mapped[checked] & self._is_mapped[checked + size - 1]
        for is_bad, fault in ((~inside, "is in no buffer"), (addresses % size != 0, "is misaligned")):
            if is_bad.any():
                k = is_bad.argmax()
                raise PtxError(f"lane {lanes[k]}: {size} bytes at {addresses[k]:#x}: the access {fault}")
        return checked

    def copy_back(self) -> None:
        for array, part in self._parts():
            array[...] = self.bytes[part].view(array.dtype).reshape(array.shape)


def _names(vector: str) -> list[str]:
    return vector.strip("{}").replace(",", " ").split()


class _Launch:
    def __init__(self, kernel: Kernel, grid: int, block: int, memory: Memory, values: Sequence[int]) -> None:
        if len(values) != len(kernel.parameters):
            raise PtxError(f"{len(values)} parameters for a kernel that takes {len(kernel.parameters)}")
        self._kernel, self._memory = kernel, memory
        threads = np.arange(grid * block, dtype=np.uint64)
        parameters = zip(kernel.parameters, values, strict=True)
        self._registers = {
            **{f"[{name}]": np.full_like(threads, value % 2**64) for name, value in parameters},
            "%tid.x": threads % block,
            "%ctaid.x": threads // block,
            "%ntid.x": np.full_like(threads, block),
            "%nctaid.x": np.full_like(threads, grid),
        }
        self._pc = np.zeros(threads.size, np.int64)

    def run(self) -> None:
        """Execute until every lane has returned; always the lanes that are furthest behind."""
        code, starts = self._kernel.code, self._kernel.starts
        for _ in range(MAX_STEPS):
            at = int(self._pc.min(initial=len(code)))
            if at == len(code):
                return
            lanes, stop = np.flatnonzero(self._pc == at), starts[bisect_right(starts, at)]
            self._pc[lanes] = stop
            for instruction in code[at:stop]:
                self._execute(instruction, lanes)
        raise PtxError(f"still running after {MAX_STEPS:,} steps")

    def _execute(self, instruction: Instruction, lanes: Array) -> None:
        guard, is_negated, operation, dtype, operands = instruction
        if guard:
            lanes = lanes[self._read(guard, PREDICATE, lanes) != is_negated]
        if operation in JUMPS:
            self._pc[lanes] = self._kernel.labels[operands[0]] if operands else len(self._kernel.code)
        elif operation in ALU:
            compute, kinds = ALU[operation]
            types = {"t": dtype, "w": WIDER.get(dtype, dtype), "u": TYPES["u32"], "p": PREDICATE}
            target, *sources = operands
            values = [self._read(name, types[kind], lanes) for name, kind in zip(sources, kinds, strict=True)]
            self._write(target, compute(*values), lanes)
        else:
            self._move(operation, dtype, operands, lanes)

    def _move(self, operation: str, dtype: np.dtype, operands: list[str], lanes: Array) -> None:
        """A load or a store, of one word or of a vector."""
        is_load = operation.startswith("ld")
        words, place = operands if is_load else reversed(operands)
        base, _, shift = place.strip("[]").partition("+")
        names, addresses = _names(words), self._read(base, TYPES["u64"], lanes)
        addresses += self._read(shift or "0", TYPES["u64"], lanes)
        offsets = self._memory.offsets(addresses, dtype.itemsize * len(names), lanes) // dtype.itemsize
        memory = self._memory.bytes.view(dtype)
        for k, name in enumerate(names):
            if is_load:
                self._write(name, memory[offsets + k], lanes)
            else:
                memory[offsets + k] = self._read(name, dtype, lanes)

    def _read(self, operand: str, dtype: np.dtype, lanes: Array) -> Array:
        """A register, a parameter or a number, cut to the width of a type."""
        if operand in self._registers or re.fullmatch(r"%[a-z]+\d+", operand):
            return self._register(operand, dtype)[lanes].astype(dtype)
        if not re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
            raise UnknownInstruction(f"operand {operand}")
        return np.full(lanes.size, int(operand.rstrip("U"), 0) % 2**64, np.uint64).astype(dtype)

    def _write(self, operand: str, value: Array, lanes: Array) -> None:
        """Into a register; or in equal parts, the lowest first, into several: `_` takes one that nobody wants."""
        if operand.startswith("{"):
            names = _names(operand)
            parts = value.view(f"u{value.itemsize // len(names)}").reshape(-1, len(names)).T
            for name, part in zip(names, parts, strict=True):
                self._write(name, part, lanes)
        elif operand != "_":
            self._register(operand, value.dtype)[lanes] = value  # a signed value is extended by its sign

    def _register(self, name: str, dtype: np.dtype) -> Array:
        if name not in self._registers:
            kind = PREDICATE if dtype == PREDICATE else np.dtype(np.uint64)
            self._registers[name] = np.full(self._pc.size, UNWRITTEN, np.uint64).astype(kind)
        return self._registers[name]


def launch(ptx: str, entry: str, grid: int, block: int, arguments: Sequence[Array | int]) -> None:
    """Execute a kernel that numba compiled, on `grid` times `block` threads; arrays are changed in place.

    numba passes an array as (meminfo, parent, items, bytes of an item, address, shape.., strides..).

    Raises:
        PtxError: An access outside of every array or misaligned, a division by zero, or a loop without an end.
        UnknownInstruction: The kernel has an instruction that is not known here.
    """
    memory = Memory([a for a in arguments if isinstance(a, np.ndarray)])
    values: list[int] = []
    for a in arguments:
        if isinstance(a, np.ndarray):
            values += [0, 0, a.size, a.itemsize, memory.address(a), *a.shape, *a.strides]
        else:
            values.append(int(a))
    _Launch(parse(ptx, entry), grid, block, memory, values).run()
    memory.copy_back()
