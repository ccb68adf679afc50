"""The CUDA interpretation: numba-cuda kernels on torch's tensors and torch's current stream, without copies.

One thread computes one position, or moves 16 bytes of a record. All of a call's batches are one launch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import cuda

from . import bijection as _bijection
from . import locate as at
from . import philox as _philox
from .bijection import LARGE_ROUNDS, SMALL_ROUNDS, SMALL_ROWS, TINY_ROWS
from .locate import Block
from .philox import SLOT_TWEAK, STRATUM_TWEAK
from .torch_ops import take

__all__ = ["gather", "order_block", "take"]

# A small batch is a small grid, and no fault of the user's.
warnings.filterwarnings("ignore", message="Grid size .* will likely result in GPU under-utilization")

THREADS = 256  # of a block

_jit: Callable = cuda.jit(device=True)
u32, u64, i64 = np.uint32, np.uint64, np.int64


@_jit
def _where(condition, x, y):
    return x if condition else y


@_jit
def _is_any(condition):
    return condition


mulhi, philox = _philox.make(_jit, u32, u64)
_body = _bijection.make(_jit, u32, u64, _where, _is_any, mulhi)
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
