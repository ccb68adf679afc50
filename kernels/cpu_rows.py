"""The CPU interpretation of what moves rows: pack columns into records, gather records, number rows by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .threads import shared_out

_jit = numba.njit(nogil=True)
_kernel = numba.njit(nogil=True, cache=True)

_AHEAD = 16  # rows between a prefetch and its use
_LINE_BYTES = 64
# Rows packed at a time: what fits the first-level cache, and no more than this. Arrow's allocator puts large columns at
# equal distances, a multiple of 64 KiB: their lines share a few cache sets, and the hardware's prefetchers follow no
# more than some 32 streams. So each column is read for many rows at once, and the next tile's part of it is asked for
# meanwhile. 33 columns into 144 bytes, just decoded, two threads, Zen 3: 24 ns a row and core; 34 without asking ahead;
# 45 to 75 with 16 rows. Transposing in vector registers saves 3 ns more.
_PACK_ROWS, _PACK_BYTES = 128, 24 << 10
_GATHER_LEAST = 4096  # rows for a thread of its own: about 200 us of work against 20 us to hand it over


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.IntType(8).as_pointer())


@intrinsic
def _prefetch(_context, address):
    """Ask for the cache line at an address, to be read soon."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), word, word, word]),
            "llvm.prefetch.p0",
        )
        builder.call(function, [_pointer(builder, arguments[0]), word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.intp), generate


def _copier(size: int) -> Any:
    """An intrinsic that copies `size` bytes between two addresses: one or two moves, no call."""

    @intrinsic
    def copy(_context, target, source):
        def generate(context, builder, signature, arguments):
            target, source = (_pointer(builder, address) for address in arguments)
            cgutils.raw_memcpy(builder, target, source, ir.Constant(ir.IntType(64), size), 1, align=1)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return copy


@intrinsic
def _copy(_context, target, source, size):
    """Copy `size` bytes between two addresses that do not overlap."""

    def generate(context, builder, signature, arguments):
        target, source = (_pointer(builder, address) for address in arguments[:2])
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1, align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


_copy1, _copy2, _copy4, _copy8 = (_copier(size) for size in (1, 2, 4, 8))


@_kernel
def _gather(out, records, record_bytes, places, start, stop):
    for k in range(start, stop):
        if k + _AHEAD < stop:
            ahead = records + places[k + _AHEAD] * record_bytes
            for line in range(0, record_bytes, _LINE_BYTES):
                _prefetch(ahead + line)
            _prefetch(ahead + record_bytes - 1)
        _copy(out + k * record_bytes, records + places[k] * record_bytes, record_bytes)


def gather(out: torch.Tensor, records: torch.Tensor, places: torch.Tensor) -> None:
    """`out[k] = records[places[k]]`: uint8 `[n, record_bytes]`, contiguous; places int64 `[n]`, each in range."""
    target, source, at, size = out.data_ptr(), records.data_ptr(), places.numpy(), records.shape[1]
    shared_out(lambda start, stop: _gather(target, source, size, at, start, stop), len(at), _GATHER_LEAST)


@_kernel
def _gather_bytes(out, addresses, ends, start, stop):
    for k in range(start, stop):
        if k + _AHEAD < stop:
            _prefetch(addresses[k + _AHEAD])
        _copy(out + ends[k], addresses[k], ends[k + 1] - ends[k])


def gather_bytes(out: torch.Tensor, addresses: np.ndarray, ends: np.ndarray) -> None:
    """Copy strings of bytes together: number k becomes `out[ends[k] : ends[k + 1]]`.

    Args:
        out: uint8, CPU, at least `ends[-1]` bytes.
        addresses: int64 `[n]`. Where each string begins.
        ends: int64 `[n + 1]`, from 0, never decreasing.
    """
    target = out.data_ptr()
    shared_out(lambda start, stop: _gather_bytes(target, addresses, ends, start, stop), len(addresses), _GATHER_LEAST)


@_kernel
def _take(out, values, places, start, stop):
    address = values.ctypes.data
    for k in range(start, stop):
        if k + _AHEAD < stop:
            _prefetch(address + places[k + _AHEAD] * values.itemsize)
        out[k] = np.int64(values[places[k]])


def take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`values[places]` as int64; values are unsigned integers below 2^63."""
    out = torch.empty(len(places), dtype=torch.int64)
    target, source, at = out.numpy(), values.numpy(), places.numpy()
    shared_out(lambda start, stop: _take(target, source, at, start, stop), len(at), _GATHER_LEAST)
    return out


@intrinsic
def _stream16(_context, target, source):
    """Copy 16 aligned bytes past the caches: the target's line is not read first, and pushes nothing out."""

    def generate(context, builder, signature, arguments):
        pair = ir.VectorType(ir.IntType(64), 2).as_pointer()
        target, source = (builder.inttoptr(address, pair) for address in arguments)
        store = builder.store(builder.load(source, align=16), target, align=16)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@_kernel
def _pack(records, record_bytes, places, addresses, offsets, sizes):
    n = places.size
    tile_rows = min(max(_PACK_BYTES // record_bytes, 16), _PACK_ROWS)
    room = np.zeros(tile_rows * record_bytes + _LINE_BYTES, np.uint8)  # zeros: what lies between the columns
    tile = (room.ctypes.data + _LINE_BYTES - 1) // _LINE_BYTES * _LINE_BYTES
    for start in range(0, n, tile_rows):
        rows = min(n - start, tile_rows)
        for column in range(addresses.size):
            size = sizes[column]
            source, target = addresses[column] + start * size, tile + offsets[column]
            for line in range(rows * size, 2 * rows * size, _LINE_BYTES):
                _prefetch(source + line)
            if size == 4:
                for k in range(rows):
                    _copy4(target + k * record_bytes, source + k * 4)
            elif size == 8:
                for k in range(rows):
                    _copy8(target + k * record_bytes, source + k * 8)
            elif size == 1:
                for k in range(rows):
                    _copy1(target + k * record_bytes, source + k)
            elif size == 2:
                for k in range(rows):
                    _copy2(target + k * record_bytes, source + k * 2)
            else:
                for k in range(rows):
                    _copy(target + k * record_bytes, source + k * size, size)
        for k in range(rows):
            if places[start + k] < 0:
                continue
            record, packed = records + places[start + k] * record_bytes, tile + k * record_bytes
            for byte in range(0, record_bytes, 16):
                _stream16(record + byte, packed + byte)
    return room[0]  # keeps `room` alive: the tile is known by its address only


def pack(records: torch.Tensor, places: np.ndarray, columns: Sequence[np.ndarray], offsets: Sequence[int]) -> None:
    """Write row k of every column into record `places[k]`.

    Args:
        records: uint8 `[capacity, record_bytes]`, CPU, aligned to 16 bytes. What lies between the columns becomes 0.
        places: int64 `[n]`. Distinct, each in `[0, capacity)`; or negative: the row is left out.
        columns: Contiguous arrays of n items each; an item may be several values wide (`[n, width]`).
        offsets: Byte offset of each column in the record.
    """
    assert records.data_ptr() % 16 == 0, "the records are allocated by numpy or torch, which align to 64"
    _pack(
        records.data_ptr(),
        records.shape[1],
        places,
        np.array([column.ctypes.data for column in columns], np.int64),
        np.array(offsets, np.int64),
        np.array([column.nbytes // max(1, len(column)) for column in columns], np.int64),
    )


@_kernel
def _number(class_ids, next_slots, out):
    for k in range(class_ids.size):
        c = class_ids[k]
        out[k] = next_slots[c]
        next_slots[c] += 1


def number_rows(class_ids: np.ndarray, next_slots: np.ndarray) -> np.ndarray:
    """Number the rows of each class in order, int64 `[n]`: a counting sort, one part of the data at a time.

    Args:
        class_ids: Integers `[n]`.
        next_slots: int64 `[n_classes]`. The number that the next row of each class gets; advanced.
    """
    out = np.empty(len(class_ids), np.int64)
    _number(class_ids, next_slots, out)
    return out


@_kernel
def count(keys, counts):
    """Add to `counts`, int64 `[n]`, how often each key in [0, n) comes. (numpy's bincount keeps the GIL.)"""
    for k in range(keys.size):
        counts[keys[k]] += 1


@_kernel
def count_near(numbers, first, counts):
    """Add to `counts`, int64 `[2, n]`, how often each of `first, .., first + n - 1` comes; False if another comes.

    Two rows of counts, to be added up: where all numbers are equal, every increment would wait for the last one.
    """
    n = np.uint64(counts.shape[1])
    for k in range(numbers.size):
        key = np.uint64(np.int64(numbers[k])) - np.uint64(first)
        if key >= n:
            return False
        counts[k & 1, np.int64(key)] += 1
    return True
