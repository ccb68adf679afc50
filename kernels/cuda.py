"""The CUDA interpretation: numba-cuda kernels on torch's tensors and torch's current stream, without copies.

One thread computes one position, moves 16 bytes of a record, or writes one word of a record that is packed. All of a
call's batches are one launch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numba import cuda
from numba.cuda.core import config

from . import bijection as _bijection
from . import locate as at
from . import philox as _philox
from .bijection import LARGE_ROUNDS, SMALL_ROUNDS, SMALL_ROWS, TINY_ROWS
from .cpu_rows import gather_bytes
from .locate import Block
from .philox import SLOT_TWEAK, STRATUM_TWEAK
from .torch_ops import take

__all__ = ["gather", "order_block", "pack", "take"]

# A small batch is a small grid, and no fault of the user's. (A filter of warnings would not last: pytest resets them.)
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

THREADS = 256  # of a block
# Bytes of the records that go up at a time: long against a launch (75 us before it reaches the driver), and yet what is
# copied stays in the host's third-level cache. 33 columns of 4 bytes, two threads, Zen 3: 23 ns a row; 34 with 16 MiB.
UPLOAD_BYTES = 1 << 22

_jit: Callable = cuda.jit(device=True)
u32, u64, i64 = np.uint32, np.uint64, np.int64


@_jit
def _where(condition, x, y):
    return x if condition else y


mulhi, philox = _philox.make(_jit, u32, u64)
_body = _bijection.make(_jit, u32, u64, _where, mulhi)
_feistel, _unrank = _body.feistel, _body.unrank
_find = at.make(_jit, u32, u64, _where, mulhi)
_divide, _last_class = _find.divide, _find.last_class


@_jit
def _permute(x, n, a, r, keys, t0, t1):
    """The bijection of [0, n) at one value."""
    if n <= u64(TINY_ROWS):
        return _unrank(x, n, t0, t1)
    return _feistel(x, n, a, r, keys, t0, t1, SMALL_ROUNDS if n < u64(SMALL_ROWS) else LARGE_ROUNDS)


@cuda.jit
def order_kernel(out, width, classes, draws, strata, keys, numbers):
    """`out[p]`: the place at batch `first + p // width`, position `column + p % width` in the batch."""
    p = cuda.grid(1)
    if p >= out.size:
        return
    row = u32(p) // u32(width)  # 32 bits: a 64-bit division is a call of a hundred instructions
    b, i = i64(row) + numbers[at.FIRST], i64(u32(p) - row * u32(width)) + numbers[at.COLUMN]
    j, n_batches = i64(strata[u64(i)]), numbers[at.BATCHES]
    seed0, seed1 = u32(numbers[at.SEED_LOW]), u32(numbers[at.SEED_HIGH])
    cumulative = draws[at.CUMULATIVE]
    low = _last_class(cumulative, j * n_batches, 0, cumulative.size - 1)
    high = _last_class(cumulative, (j + 1) * n_batches - 1, low, cumulative.size - 1)
    inside = b
    if low < high:
        t0, t1, _, _ = philox(u32(j), u32(numbers[at.NUMBER]), u32(numbers[at.EPOCH]), u32(STRATUM_TWEAK), seed0, seed1)
        grid, shift = u32(numbers[at.BATCH_GRID]), u32(numbers[at.BATCH_SHIFT])
        inside = i64(_permute(u64(b), u64(n_batches), grid, shift, keys[1], t0, t1))
    ticket = j * n_batches + inside
    c = u64(_last_class(cumulative, ticket, low, high))  # unsigned: a signed index costs instructions for its sign
    n = u64(classes[at.ROWS, c])
    turn, offset = _divide(u64(draws[at.OFFSET, c] + ticket - cumulative[c]), n, u32(classes[at.MAGIC, c]))
    turn += u64(draws[at.PASS, c])
    t0, t1, _, _ = philox(u32(classes[at.CLASS_ID, c]), u32(turn), u32(turn >> u64(32)), u32(SLOT_TWEAK), seed0, seed1)
    slot = _permute(offset, n, u32(classes[at.GRID, c]), u32(classes[at.SHIFT, c]), keys[0], t0, t1)
    out[p] = classes[at.START, c] + i64(slot)


def _make_copy16() -> Callable:
    """A device function that moves 16 bytes, as one load and one store of 128 bits."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0":  # the simulator runs Python, and has no vectors

        def copy16(target, t, source, s):
            target[t], target[t + 1] = source[s], source[s + 1]

        return copy16

    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    @intrinsic
    def copy16(_typing, target, t, source, s):
        def generate(context, builder, signature, arguments):
            pair = ir.VectorType(ir.IntType(64), 2).as_pointer()
            pointers = []
            for array, index in ((0, 1), (2, 3)):
                view = context.make_array(signature.args[array])(context, builder, arguments[array])
                pointers.append(builder.bitcast(builder.gep(view.data, [arguments[index]]), pair))
            value = builder.load(pointers[1], align=16)
            builder.store(value, pointers[0], align=16)
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64), generate

    return copy16


_copy16 = _make_copy16()


@cuda.jit
def gather_kernel(out, records, places, vectors):
    """Records are uint64 words; a record is `vectors` times 16 bytes. Thread q moves vector q of `out`.

    Neighbouring threads move neighbouring vectors of a record, so loads and stores are coalesced.
    """
    q = cuda.grid(1)
    if q >= places.size * vectors:
        return
    k = i64(u32(q) // u32(vectors))
    vector = q - k * vectors
    _copy16(out, i64(2 * q), records, i64(2 * (places[k] * vectors + vector)))


@cuda.jit
def pack_kernel(records, items, sources, places):
    """Thread q writes word `q % width` of the record at `places[q // width]`, where `width = sources.shape[1]`.

    For row k it is the word `sources[0] + k * sources[1]` of the items. Neighbouring threads write neighbouring words;
    they read in as many places as there are columns, and the records after them read beside it. A negative place: the
    row is left out.
    """
    q = cuda.grid(1)
    width = u32(sources.shape[1])
    if q >= places.size * i64(width):
        return
    k = u32(q) // width
    place = places[u64(k)]
    if place < 0:
        return
    word = u32(u32(q) - u32(k * width))
    source = u32(u32(sources[0, u64(word)]) + u32(k * u32(sources[1, u64(word)])))
    records[u64(place) * u64(width) + u64(word)] = items[u64(source)]


def _launch(kernel: Any, n_threads: int, device: torch.device, *arguments: Any) -> None:
    """Queue a kernel on torch's current stream of a device; tensors are handed over without a copy.

    Torch's array interface names no stream, so numba would not wait for torch: the stream is given.
    """
    if n_threads == 0:
        return
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        with cuda.gpus[stream.device.index]:
            views = [cuda.as_cuda_array(a, sync=False) if isinstance(a, torch.Tensor) else a for a in arguments]
            kernel[-(-n_threads // THREADS), THREADS, cuda.external_stream(stream.cuda_stream)](*views)


def order_block(out: torch.Tensor, block: Block) -> None:
    """As `cpu.order_block`, in one launch."""
    _launch(order_kernel, out.numel(), out.device, out.view(-1), out.shape[1], *block)


def gather(out: torch.Tensor, records: torch.Tensor, places: torch.Tensor) -> None:
    """`out[k] = records[places[k]]`: uint8 `[n, record_bytes]`, contiguous, a multiple of 16 bytes a record."""
    vectors = records.shape[1] // 16
    target, source = (t.view(torch.int64).view(-1) for t in (out, records))
    _launch(gather_kernel, len(places) * vectors, out.device, target, source, places, vectors)


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_pinned = partial(torch.empty, dtype=torch.uint8, pin_memory=True)


def pack(records: torch.Tensor, places: np.ndarray, columns: Sequence[np.ndarray], offsets: Sequence[int]) -> None:
    """As `cpu_rows.pack`, into records on the GPU: the columns go up as they are, and are put together there.

    Rows go up in parts. One is copied to pinned memory while the one before is under way, and none further ahead: of
    readers that are faster than the bus, the host's memory would fill up. On return everything is written.
    """
    sizes = [column.nbytes // max(1, len(column)) for column in columns]
    part_rows = max(1, UPLOAD_BYTES // records.shape[1])
    under_way: list[torch.cuda.Event] = []
    for start in range(0, len(places), part_rows):
        part = slice(start, start + part_rows)
        under_way.append(_pack_part(records, places[part], [column[part] for column in columns], offsets, sizes))
        if len(under_way) > 1:
            under_way.pop(0).synchronize()
    for event in under_way:
        event.synchronize()


def _pack_part(
    records: torch.Tensor,
    places: np.ndarray,
    columns: Sequence[np.ndarray],
    offsets: Sequence[int],
    sizes: Sequence[int],
) -> torch.cuda.Event:
    """Queue one transfer of all that a part of the rows needs, and one launch; the event of their end."""
    word = math.gcd(8, *sizes, *offsets)  # bytes: as wide as columns and offsets allow
    width = records.shape[1] // word
    # Where row 0 has each word of its record, and how far apart rows are, in words; and words of zeros.
    sources = np.zeros((3, width), np.int32)
    arrays = [places, sources, *columns]  # of whole words all, so that each begins with one
    ends = np.cumsum([0, *(array.nbytes for array in arrays)])
    sources[0] = (places.nbytes + sources[:2].nbytes) // word  # between columns: a zero, the same for every row
    for size, offset, start in zip(sizes, offsets, ends[2:-1].tolist(), strict=True):
        span = slice(offset // word, (offset + size) // word)
        sources[0, span] = start // word + np.arange(size // word)
        sources[1, span] = size // word
    # torch keeps pinned memory that was let go until the transfers from it have ended.
    staged = _pinned(int(ends[-1]))
    gather_bytes(staged, np.array([array.ctypes.data for array in arrays]), ends)
    items = staged.to(records.device, non_blocking=True)
    at_places = items[: places.nbytes].view(torch.int64)
    table = items[places.nbytes :][: sources.nbytes].view(torch.int32).view(3, width)
    target = records.view(_WORDS[word]).view(-1)
    _launch(pack_kernel, len(places) * width, records.device, target, items.view(target.dtype), table, at_places)
    return torch.cuda.current_stream(records.device).record_event(torch.cuda.Event(blocking=True))
