"""The Triton interpretation: torch's GPU wheels bring Triton, so it needs no extra. One launch a call.

A program computes `POSITIONS` positions, or moves `VECTORS` times 16 bytes of records. What a thread decides for itself
in `cuda` is decided here by the program: a rare way (a walk, a stratum of two classes, a small class) is computed where
one of its positions takes it, and the other positions keep what they had.

The bodies are Triton's own. Triton compiles closures, but its interpreter, in which the tests run these kernels, does
not see what a function closes over; a table is a pointer here and not an array; and a condition is a block of bits.
Philox is `tl.philox_impl`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import locate as at
from .bijection import LARGE_ROUNDS, SMALL_ROUNDS, SMALL_ROWS, TINY_ROWS
from .locate import Block
from .philox import SLOT_TWEAK, STRATUM_TWEAK
from .torch_ops import pack, take

__all__ = ["gather", "order_block", "pack", "take"]

# Of a program. Positions are computed by one warp, two a thread: what a program decides is then a reduction of one
# instruction, without a barrier. Instructions of a row and registers on sm_90: 296 and 92 so; 359 and 64 with one a
# thread; 312 and 56 with four warps.
POSITIONS, VECTORS = 64, 256

# Kernels see constants only as constexpr, which also makes them part of the key of Triton's cache.
_ROWS, _START, _GRID, _SHIFT, _MAGIC, _CLASS_ID = map(
    tl.constexpr, (at.ROWS, at.START, at.GRID, at.SHIFT, at.MAGIC, at.CLASS_ID)
)
_CUMULATIVE, _OFFSET, _PASS = map(tl.constexpr, (at.CUMULATIVE, at.OFFSET, at.PASS))
_BATCHES, _BATCH_GRID, _BATCH_SHIFT, _NUMBER, _EPOCH = map(
    tl.constexpr, (at.BATCHES, at.BATCH_GRID, at.BATCH_SHIFT, at.NUMBER, at.EPOCH)
)
_SEED_LOW, _SEED_HIGH, _FIRST, _COLUMN = map(tl.constexpr, (at.SEED_LOW, at.SEED_HIGH, at.FIRST, at.COLUMN))
_SLOT_TWEAK, _STRATUM_TWEAK = tl.constexpr(SLOT_TWEAK), tl.constexpr(STRATUM_TWEAK)
_TINY_ROWS, _SMALL_ROWS = tl.constexpr(TINY_ROWS), tl.constexpr(SMALL_ROWS)
_SMALL_ROUNDS, _LARGE_ROUNDS = tl.constexpr(SMALL_ROUNDS), tl.constexpr(LARGE_ROUNDS)
_FAR = tl.constexpr(1 << 62)  # a size that no value walks out of


@triton.jit
def _is_any(condition):
    """Whether a condition, a block of bits, holds for any position of the program."""
    return tl.max(condition.to(tl.int32), 0) > 0


@triton.jit
def _tweak(x0, x1, x2, purpose, numbers):
    """The first two words of a counter, under the seed's key."""
    k0, k1 = tl.load(numbers + _SEED_LOW).to(tl.uint32), tl.load(numbers + _SEED_HIGH).to(tl.uint32)
    x3 = tl.full((), purpose, tl.uint32)
    t0, t1, _, _ = tl.philox_impl(x0.to(tl.uint32), x1.to(tl.uint32), x2.to(tl.uint32), x3, k0, k1)
    return t0, t1


@triton.jit
def _mix(v, key, t0, t1):
    """A round's word from half of a value; `key` points to the round's two words."""
    k0 = tl.load(key).to(tl.uint32, bitcast=True) ^ t0
    k1 = tl.load(key + 1).to(tl.uint32, bitcast=True) + t1
    g = (k0 | 1) * v + k1
    g ^= g >> 16
    return g * 0x21F0AAAD


@triton.jit
def _rounds(lhs, rhs, a, down, keys, t0, t1, begin: tl.constexpr, end: tl.constexpr):
    """Rounds [begin, end) of the network, an even number of each; see `bijection.left` and `bijection.right`."""
    for i in tl.static_range(begin, end, 2):
        total = lhs + tl.umulhi(_mix(rhs, keys + 2 * i, t0, t1), a)
        lhs = tl.minimum(total, total - a)  # total < 2a: the one that did not wrap below 0
        rhs ^= _mix(lhs, keys + 2 * i + 2, t0, t1) >> down
    return lhs, rhs


@triton.jit
def _feistel(x, n, is_small, a, r, keys, t0, t1):
    """The bijection of [0, n), n >= 17. Small sizes take their further rounds where the program has any."""
    down, mask, shift = (32 - r) & 31, (1 << r) - 1, r.to(tl.int64)
    has_small = _is_any(is_small)
    y, outside, walks = x, x >= 0, True  # everything takes the first step
    while walks:
        lhs, rhs = (y >> shift).to(tl.uint32), y.to(tl.uint32) & mask
        lhs, rhs = _rounds(lhs, rhs, a, down, keys, t0, t1, 0, _LARGE_ROUNDS)
        if has_small:
            more_lhs, more_rhs = _rounds(lhs, rhs, a, down, keys, t0, t1, _LARGE_ROUNDS, _SMALL_ROUNDS)
            lhs, rhs = tl.where(is_small, more_lhs, lhs), tl.where(is_small, more_rhs, rhs)
        y = tl.where(outside, (lhs.to(tl.int64) << shift) | rhs.to(tl.int64), y)
        outside = y >= n
        walks = _is_any(outside)
    return y


@triton.jit
def _unrank(x, n, t0, t1):
    """Place x of the order of [0, n), n <= 16, that the word `t1 * 2^32 + t0` stands for; see `bijection.unrank`."""
    hi, lo = t1.to(tl.int64), t0.to(tl.int64)
    digits = x * 0
    picked = x * 0
    for i in range(_TINY_ROWS):
        radix = tl.maximum(n - i, 1)
        low = lo * radix
        high = hi * radix + (low >> 32)
        digit = high >> 32
        hi, lo = high & 0xFFFFFFFF, low & 0xFFFFFFFF
        digits |= digit << (4 * i)
        picked = tl.where(x == i, digit, picked)
    for step in range(_TINY_ROWS):
        i = _TINY_ROWS - 1 - step
        digit = (digits >> (4 * i)) & 15
        picked = tl.where((i < x) & (digit <= picked), picked + 1, picked)
    return picked


@triton.jit
def _permute(x, n, a, r, keys, t0, t1):
    """The bijection of [0, n), position by position: int64 x and n, words a, r, t0 and t1.

    A regime is computed where any position of the program is in it, with a harmless n for the others.
    """
    is_tiny = n <= _TINY_ROWS
    is_small = (n < _SMALL_ROWS) & (n > _TINY_ROWS)
    y = _feistel(x, tl.where(is_tiny, _FAR, n), is_small, a, r, keys, t0, t1)
    if _is_any(is_tiny):
        y = tl.where(is_tiny, _unrank(tl.where(is_tiny, x, 0), tl.where(is_tiny, n, 1), t0, t1), y)
    return y


@triton.jit
def _divide(x, n, reciprocal):
    """`divmod(x, n)` of int64 by the reciprocal, a word; see `locate.divide`."""
    quotient = tl.umulhi(x.to(tl.uint32), reciprocal).to(tl.int64)
    rest = x - quotient * n
    over = rest >= n
    return tl.where(over, quotient + 1, quotient), tl.where(over, rest - n, rest)


@triton.jit
def _last_class(cumulative, ticket, n_classes, half):
    """The last class whose first ticket is <= ticket; `half` is the largest power of two below n_classes, or 0."""
    c = (ticket * 0).to(tl.int32)
    while half > 0:
        probe = c + half
        first = tl.load(cumulative + probe, mask=probe < n_classes, other=_FAR)
        c = tl.where(first <= ticket, probe, c)
        half >>= 1
    return c


@triton.jit(do_not_specialize=["n", "width", "n_classes", "half"])
def order_kernel(out, n, width, classes, draws, strata, keys, numbers, n_classes, half, POSITIONS: tl.constexpr):  # noqa: N803
    """`out[p]`: the place at batch `first + p // width`, position `column + p % width` in the batch."""
    n, width = n.to(tl.uint32), width.to(tl.uint32)
    index = tl.program_id(0).to(tl.uint32) * POSITIONS + tl.arange(0, POSITIONS).to(tl.uint32)
    p = tl.minimum(index, n - 1)  # behind the end the last position is computed again, and not stored
    row = p // width
    b = row.to(tl.int64) + tl.load(numbers + _FIRST)
    i = (p - row * width).to(tl.int64) + tl.load(numbers + _COLUMN)
    j, n_batches = tl.load(strata + i).to(tl.int64), tl.load(numbers + _BATCHES)
    cumulative = draws + _CUMULATIVE * n_classes
    c = _last_class(cumulative, j * n_batches, n_classes, half)
    ticket = j * n_batches + b
    following = tl.load(cumulative + c + 1, mask=c + 1 < n_classes, other=_FAR)
    mixed = following < (j + 1) * n_batches  # the stratum holds tickets of the next class too
    if _is_any(mixed):
        t0, t1 = _tweak(j, tl.load(numbers + _NUMBER), tl.load(numbers + _EPOCH), _STRATUM_TWEAK, numbers)
        size = j * 0 + n_batches
        a, r = tl.load(numbers + _BATCH_GRID).to(tl.uint32), tl.load(numbers + _BATCH_SHIFT).to(tl.uint32)
        inside = _permute(b, size, a, r, keys + 2 * _SMALL_ROUNDS, t0, t1)
        ticket = tl.where(mixed, j * n_batches + inside, ticket)
        c = _last_class(cumulative, ticket, n_classes, half)
    line = classes + c
    size = tl.load(line + _ROWS * n_classes)
    reciprocal = tl.load(line + _MAGIC * n_classes).to(tl.uint32)
    k = ticket - tl.load(cumulative + c)
    turn, offset = _divide(tl.load(draws + _OFFSET * n_classes + c) + k, size, reciprocal)
    turn += tl.load(draws + _PASS * n_classes + c)
    t0, t1 = _tweak(tl.load(line + _CLASS_ID * n_classes), turn, turn >> 32, _SLOT_TWEAK, numbers)
    a = tl.load(line + _GRID * n_classes).to(tl.uint32)
    r = tl.load(line + _SHIFT * n_classes).to(tl.uint32)
    slot = _permute(offset, size, a, r, keys, t0, t1)
    tl.store(out + index, tl.load(line + _START * n_classes) + slot, mask=index < n)


@triton.jit(do_not_specialize=["n", "vectors"])
def gather_kernel(out, records, places, n, vectors, VECTORS: tl.constexpr):  # noqa: N803
    """Records are int64 words, `vectors` times two; `VECTORS` records are `vectors` programs.

    Neighbouring threads move neighbouring 16 bytes of a record. Both are numbered within the `VECTORS` records, in 32
    bits: a 64-bit division is a call of a hundred instructions.
    """
    program, per_row = tl.program_id(0).to(tl.uint32), vectors.to(tl.uint32)
    group = program // per_row
    q = (program - group * per_row) * VECTORS + tl.arange(0, VECTORS).to(tl.uint32)
    k = q // per_row
    first = group.to(tl.int64) * VECTORS
    inside = first + k < n
    place = tl.load(places + first + k, mask=inside, other=0)
    words = tl.arange(0, 2)[None, :]
    source = 2 * (place * vectors + (q - k * per_row))
    target = 2 * (first * vectors + q)
    value = tl.load(records + source[:, None] + words, mask=inside[:, None])
    tl.store(out + target[:, None] + words, value, mask=inside[:, None])


def order_block(out: torch.Tensor, block: Block) -> None:
    """As `cpu.order_block`, in one launch on torch's current stream. A view of a table with gaps is copied."""
    n, n_classes = out.numel(), block.draws.shape[1]
    if n == 0:
        return
    half = (1 << (n_classes - 1).bit_length()) >> 1
    tables = [table.contiguous() for table in block]
    # Words wrap; under TRITON_DEBUG=1 that would be a failed assertion on the device.
    options = {"num_warps": 1, "sanitize_overflow": False}
    with torch.accelerator.device_index(out.device.index):
        order_kernel[(triton.cdiv(n, POSITIONS),)](
            out.view(-1), n, out.shape[1], *tables, n_classes, half, POSITIONS, **options
        )  # fmt: skip


def gather(out: torch.Tensor, records: torch.Tensor, places: torch.Tensor) -> None:
    """`out[k] = records[places[k]]`: uint8 `[n, record_bytes]`, contiguous, a multiple of 16 bytes a record."""
    n, vectors = len(places), records.shape[1] // 16
    if n == 0:
        return
    target, source = (t.view(torch.int64).view(-1) for t in (out, records))
    with torch.accelerator.device_index(out.device.index):
        gather_kernel[(triton.cdiv(n, VECTORS) * vectors,)](
            target, source, places.contiguous(), n, vectors, VECTORS, num_warps=4
        )  # fmt: skip
