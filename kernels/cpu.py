"""The CPU interpretation of the order: numba, vectorised round by round, without the GIL.

The order is computed stratum by stratum: there consecutive tickets belong to one class and one pass, so key
and modulus are constants of a vector loop. (The GPU asks the other way round: one position a thread.)
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from . import bijection as _bijection
from . import locate as at
from . import philox as _philox
from .bijection import LARGE_ROUNDS, N_KEYS, SMALL_ROUNDS, SMALL_ROWS, TINY_ROWS
from .cpu_rows import gather, pack, take
from .philox import SLOT_TWEAK, STRATUM_TWEAK
from .threads import shared_out

__all__ = [
    "bijection",
    "bijection_range",
    "drawn",
    "gather",
    "order_block",
    "pack",
    "round_keys",
    "take",
    "tweaks",
    "words",
]

# Not `parallel=True`: numba's thread layers abort the process after a fork, or when two threads enter.
# Callers share out the work themselves (`threads.py`); these kernels only let go of the GIL.
_jit = numba.njit(nogil=True)
_kernel = numba.njit(nogil=True, cache=True)

u32, u64, i32, i64 = np.uint32, np.uint64, np.int32, np.int64

_CHUNK = 1024  # tickets at a time: their halves and places (16 KiB) stay in the first-level cache
_TILE = 16  # strata at a time: 16 places of 8 bytes are two whole cache lines of a batch
_NARROW = 1 << 16  # grid sides up to here multiply in 32-bit steps


@_jit
def _where(condition, x, y):
    return x if condition else y


mulhi, philox = _philox.make(_jit, u32, u64)


@_jit
def _mulhi_narrow(x, a):
    """`mulhi` for a <= 2^16 without widening, so without shuffles between vector lanes.

    8 rounds of 1e8 rows take 2.4 instead of 2.6 ns, 12 rounds 2.5 instead of 3.2 (Zen 3, AVX2).
    """
    return u32(u32(u32(x >> u32(16)) * a) + (u32(u32(x & u32(0xFFFF)) * a) >> u32(16))) >> u32(16)


_wide = _bijection.make(_jit, u32, u64, _where, mulhi)
_narrow = _bijection.make(_jit, u32, u64, _where, _mulhi_narrow)
_left, _unleft, _right, _feistel, _unrank = (
    _wide.left, _wide.unleft, _wide.right, _wide.feistel, _wide.unrank,
)  # fmt: skip
_left_narrow, _unleft_narrow = _narrow.left, _narrow.unleft
_find = at.make(_jit, u32, u64, _where, mulhi)
_divide, _last_class = _find.divide, _find.last_class


@_kernel
def _fill_words(x0, x1, x2, purpose, seed, out):
    low, high = u32(seed), u32(seed >> u64(32))
    for i in range(x0.size):
        words = philox(u32(x0[i]), u32(x1[i]), u32(x2[i]), u32(purpose), low, high)
        for w in range(4):
            out[i, w] = words[w]


def words(x0: np.ndarray, x1: np.ndarray, x2: np.ndarray, purpose: int, seed: int) -> np.ndarray:
    """The Philox words of the counters `(x0, x1, x2, purpose)`, uint32 `[len(x0), 4]`."""
    counters = [np.ascontiguousarray(x, np.int64) for x in np.broadcast_arrays(x0, x1, x2)]
    out = np.empty((counters[0].size, 4), np.uint32)
    _fill_words(*counters, u32(purpose), u64(seed), out)
    return out


def tweaks(x0: np.ndarray, x1: np.ndarray, x2: np.ndarray, purpose: int, seed: int) -> np.ndarray:
    """The two tweak words of each counter, uint32 `[len(x0), 2]`."""
    return words(x0, x1, x2, purpose, seed)[:, :2]


def round_keys(seed: int, purpose: int) -> np.ndarray:
    """The round keys of a purpose, uint32 `[24]`."""
    q = np.arange(N_KEYS // 4)
    return words(q, np.zeros_like(q), np.zeros_like(q), purpose, seed).reshape(-1)


@_jit
def _n_rounds(n):
    return SMALL_ROUNDS if n < SMALL_ROWS else LARGE_ROUNDS


@_jit
def _permute(x, n, a, r, keys, t0, t1):
    """The bijection of [0, n) at one value."""
    if n <= TINY_ROWS:
        return i64(_unrank(u64(x), u64(n), t0, t1))
    return i64(_feistel(u64(x), u64(n), a, r, keys, t0, t1, _n_rounds(n)))


@_jit
def _unpermute(y, n, a, r, keys, t0, t1):
    """The inverse at one value, n >= 17: the same cycle, walked the other way."""
    down, mask = u32(32 - r), u32((u64(1) << u64(r)) - u64(1))
    n_keys = 2 * _n_rounds(n)
    x = u64(y)
    while True:
        lhs, rhs = u32(x >> u64(r)), u32(u32(x) & mask)
        for done in range(0, n_keys, 4):
            i = n_keys - 4 - done
            rhs = _right(lhs, rhs, down, u32(keys[i + 2] ^ t0), u32(keys[i + 3] + t1))
            lhs = _unleft(lhs, rhs, u32(a), u32(keys[i] ^ t0), u32(keys[i + 1] + t1))
        x = (u64(lhs) << u64(r)) | u64(rhs)
        if x < u64(n):
            return i64(x)


@_jit
def _halves(first, size, r, lhs, rhs):
    """The halves of the consecutive values `first + q`, in words: a chunk is far shorter than 2^31."""
    mask = u32((u64(1) << u64(r)) - u64(1))
    high, low, down = u32(first >> r), u32(u32(first) & mask), u32(r & 31)
    for q in range(size):
        value = u32(low + u32(q))
        lhs[q] = u32(high + u32(value >> down))
        rhs[q] = u32(value & mask)


@_jit
def _rounds(lhs, rhs, size, a, r, keys, t0, t1, n_rounds):
    """The rounds of `size` values whose halves are given, in place."""
    down = u32(32 - r)
    for i in range(0, 2 * n_rounds, 4):
        k0, k1 = u32(keys[i] ^ t0), u32(keys[i + 1] + t1)
        k2, k3 = u32(keys[i + 2] ^ t0), u32(keys[i + 3] + t1)
        if a <= _NARROW:
            for q in range(size):
                lhs[q] = _left_narrow(lhs[q], rhs[q], a, k0, k1)
                rhs[q] = _right(lhs[q], rhs[q], down, k2, k3)
        else:
            for q in range(size):
                lhs[q] = _left(lhs[q], rhs[q], a, k0, k1)
                rhs[q] = _right(lhs[q], rhs[q], down, k2, k3)


@_jit
def _unrounds(lhs, rhs, size, a, r, keys, t0, t1, n_rounds):
    """The inverse of `_rounds`, for a <= 2^16."""
    down = u32(32 - r)
    for done in range(0, 2 * n_rounds, 4):
        i = 2 * n_rounds - 4 - done
        k0, k1 = u32(keys[i] ^ t0), u32(keys[i + 1] + t1)
        k2, k3 = u32(keys[i + 2] ^ t0), u32(keys[i + 3] + t1)
        for q in range(size):
            rhs[q] = _right(lhs[q], rhs[q], down, k2, k3)
            lhs[q] = _unleft_narrow(lhs[q], rhs[q], a, k0, k1)


@_jit
def _permute_run(first, size, n, a, r, keys, t0, t1, lhs, rhs, out, start):
    """`out[q] = start + bijection(first + q)` for q in [0, size): consecutive values under one key."""
    if n <= TINY_ROWS:
        for q in range(size):
            out[q] = start + _permute(first + q, n, a, r, keys, t0, t1)
        return
    _halves(first, size, r, lhs, rhs)
    _rounds(lhs, rhs, size, u32(a), r, keys, t0, t1, _n_rounds(n))
    highest = i64(0)
    for q in range(size):
        y = (i64(lhs[q]) << r) | i64(rhs[q])
        highest = max(highest, y)
        out[q] = start + y
    if highest >= n:  # rare: of 2^r values at most one falls outside
        for q in range(size):
            if out[q] - start >= n:
                out[q] = start + _permute(out[q] - start, n, a, r, keys, t0, t1)


@_jit
def _unpermute_run(first, size, n, a, r, keys, t0, t1, lhs, rhs, out):
    """`out[q] = inverse bijection(first + q)` for q in [0, size); n < 2^31."""
    if n <= TINY_ROWS:
        for x in range(n):
            q = _permute(x, n, a, r, keys, t0, t1) - first
            if 0 <= q < size:
                out[q] = x
        return
    _halves(first, size, r, lhs, rhs)
    _unrounds(lhs, rhs, size, u32(a), r, keys, t0, t1, _n_rounds(n))
    highest, up = u32(0), u32(r & 31)
    for q in range(size):
        x = u32(u32(lhs[q] << up) | rhs[q])
        highest = max(highest, x)
        out[q] = i32(x)
    if highest >= n:
        for q in range(size):
            if out[q] >= n:
                out[q] = i32(_unpermute(out[q], n, a, r, keys, t0, t1))


@_kernel
def _bijection_at(x, n, a, r, keys, t0, t1, out):
    for q in range(x.size):
        out[q] = _permute(x[q], n, a, r, keys, t0, t1)


def bijection(x: np.ndarray, n: int, keys: np.ndarray, t0: int, t1: int) -> np.ndarray:
    """The bijection of [0, n) at the values `x`, int64 `[len(x)]`."""
    out = np.empty(x.size, np.int64)
    _bijection_at(np.ascontiguousarray(x, np.int64), n, *_bijection.grid(n), keys, u32(t0), u32(t1), out)
    return out


@_kernel
def bijection_range(first, n, a, r, keys, t0, t1, out):
    """`out[q] = bijection(first + q)`, int64: the vector path alone, the limit that bench/order.py names."""
    lhs, rhs = np.empty(_CHUNK, np.uint32), np.empty(_CHUNK, np.uint32)
    for done in range(0, out.size, _CHUNK):
        size = min(_CHUNK, out.size - done)
        _permute_run(first + done, size, n, a, r, keys, t0, t1, lhs, rhs, out[done:], i64(0))


@_jit
def _tickets(ticket, size, low, high, block, work):
    """Places of the tickets [ticket, ticket + size) of the classes [low, high], into `work`.

    They are cut into runs of one class and one pass: consecutive offsets under one key.
    """
    classes, draws, numbers = block.classes, block.draws, block.numbers
    seed0, seed1 = u32(numbers[at.SEED_LOW]), u32(numbers[at.SEED_HIGH])
    lhs, rhs, places, _ = work
    done = 0
    while done < size:
        c = low = _last_class(draws[at.CUMULATIVE], ticket + done, low, high)
        n = classes[at.ROWS, c]
        k = ticket + done - draws[at.CUMULATIVE, c]
        turn, offset = _divide(u64(draws[at.OFFSET, c] + k), u64(n), classes[at.MAGIC, c])
        turn += u64(draws[at.PASS, c])
        run = min(size - done, n - i64(offset))
        if c < high:
            run = min(run, draws[at.CUMULATIVE, c + 1] - ticket - done)
        t0, t1, _, _ = philox(
            u32(classes[at.CLASS_ID, c]), u32(turn), u32(turn >> u64(32)), u32(SLOT_TWEAK), seed0, seed1
        )
        _permute_run(
            i64(offset), run, n, classes[at.GRID, c], classes[at.SHIFT, c], block.keys[0], t0, t1,
            lhs, rhs, places[done:], classes[at.START, c],
        )  # fmt: skip
        done += run


@_jit
def _mixed_stratum(j, first, low, high, block, work, tile, column):
    """One column of the tile where the stratum holds several classes, and so is shuffled over the batches."""
    lhs, rhs, places, batches = work
    numbers, height = block.numbers, tile.shape[0]
    n_batches, grid, shift = numbers[at.BATCHES], numbers[at.BATCH_GRID], numbers[at.BATCH_SHIFT]
    t0, t1, _, _ = philox(
        u32(j), u32(numbers[at.NUMBER]), u32(numbers[at.EPOCH]), u32(STRATUM_TWEAK),
        u32(numbers[at.SEED_LOW]), u32(numbers[at.SEED_HIGH]),
    )  # fmt: skip
    if 8 * height < n_batches:  # a few batches of many: ask each for its ticket
        for b in range(height):
            inside = _permute(first + b, n_batches, grid, shift, block.keys[1], t0, t1)
            _tickets(j * n_batches + inside, i64(1), low, high, block, work)
            tile[b, column] = places[0]
        return
    for start in range(0, n_batches, _CHUNK):  # all tickets: ask each for its batch
        size = min(_CHUNK, n_batches - start)
        _unpermute_run(start, size, n_batches, grid, shift, block.keys[1], t0, t1, lhs, rhs, batches)
        _tickets(j * n_batches + start, size, low, high, block, work)
        for q in range(size):
            b = u32(batches[q] - first)
            if b < u32(height):
                tile[b, column] = places[q]


@_kernel
def _order_columns(out, start, stop, block):
    """The columns [start, stop) of `order_block`'s `out`."""
    work = np.empty(_CHUNK, u32), np.empty(_CHUNK, u32), np.empty(_CHUNK, i64), np.empty(_CHUNK, i32)
    height = out.shape[0]
    tile = np.empty((height, _TILE), i64)
    first, column, n_batches = block.numbers[at.FIRST], block.numbers[at.COLUMN], block.numbers[at.BATCHES]
    cumulative = block.draws[at.CUMULATIVE]
    for left in range(start, stop, _TILE):
        n_columns = min(_TILE, stop - left)
        for i in range(n_columns):
            j = i64(block.strata[column + left + i])
            low = _last_class(cumulative, j * n_batches, i64(0), cumulative.size - 1)
            high = _last_class(cumulative, j * n_batches + n_batches - 1, low, cumulative.size - 1)
            if low < high:
                _mixed_stratum(j, first, low, high, block, work, tile, i)
                continue
            for done in range(0, height, _CHUNK):
                size = min(_CHUNK, height - done)
                _tickets(j * n_batches + first + done, size, low, high, block, work)
                for q in range(size):  # loops: assigning slices costs numba seconds to compile
                    tile[done + q, i] = work[2][q]
        for b in range(height):
            for i in range(n_columns):
                out[b, left + i] = tile[b, i]


def order_block(out: torch.Tensor, block: at.Block) -> None:
    """Places of a rectangle of a block: some of its batches, some of the positions in each batch.

    Args:
        out: int64 `[batches, columns]`, CPU. Filled with the places of the batches `[first, first + batches)` of
            the block, in each the positions `[column, column + columns)`; `first` and `column` are among its numbers.
        block: The block, as CPU tensors.
    """
    arrays = at.Block(*(table.numpy() for table in block))
    arrays = arrays._replace(keys=arrays.keys.view(u32))
    places = out.numpy()
    shared_out(
        lambda start, stop: _order_columns(places, start, stop, arrays),
        out.shape[1],
        least=max(_TILE, 20_000 // max(1, out.shape[0])),
    )


@_kernel
def drawn(x, cumulative_quotas, out):
    """Of the first `x` draws of an epoch, those of each class: int64 `[n_classes]`, into `out`.

    `docs/order.md` section 3: the list of classes is halved again and again, depth first.
    """
    lows, highs, shares = np.empty(64, i64), np.empty(64, i64), np.empty(64, i64)
    lows[0], highs[0], shares[0] = 0, cumulative_quotas.size - 1, x
    depth = 1
    while depth > 0:
        depth -= 1
        low, high, share = lows[depth], highs[depth], shares[depth]
        if high - low == 1:
            out[low] = share
            continue
        middle = (low + high) // 2
        total = cumulative_quotas[high] - cumulative_quotas[low]
        left = _multiply_divide(share, cumulative_quotas[middle] - cumulative_quotas[low], total)
        lows[depth], highs[depth], shares[depth] = middle, high, share - left
        lows[depth + 1], highs[depth + 1], shares[depth + 1] = low, middle, left
        depth += 2


@_jit
def _multiply_divide(x, y, z):
    """`x * y // z` for 0 <= x, y <= z <= 2^52, exactly, though the product needs 104 bits.

    The quotient of doubles is off by a few at most. The remainder it leaves is small, so it survives the
    wrapping of 64 bits and says by how much.
    """
    if z == 0:
        return i64(0)
    quotient = i64(np.float64(x) * np.float64(y) / np.float64(z))
    rest = x * y - quotient * z
    while rest < 0:
        quotient, rest = quotient - 1, rest + z
    while rest >= z:
        quotient, rest = quotient + 1, rest - z
    return quotient
