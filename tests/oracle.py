"""The order in plain Python integers: docs/order.md, section by section, and nothing else.

The oracle shares no code with the kernels and is written to be read beside the page, not to be fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import gcd

WORD, BLOCK_ROWS = 2**32, 2**20
SLOT_KEYS, STRATUM_KEYS, SLOT_TWEAK, STRATUM_TWEAK = 1, 2, 3, 4  # the purposes


def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Four words from four counter words and two key words. Source: Salmon et al., SC11, section 4.3."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        hi0, lo0 = divmod(0xD2511F53 * c0, WORD)
        hi1, lo1 = divmod(0xCD9E8D57 * c2, WORD)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return c0, c1, c2, c3


def tweak(x0: int, x1: int, x2: int, purpose: int, seed: int) -> tuple[int, int]:
    """Section 1: `t0, t1`, the first two words of a counter."""
    return philox4x32_10((x0, x1, x2, purpose), (seed % WORD, seed // WORD))[:2]


@lru_cache
def round_keys(seed: int, purpose: int) -> tuple[int, ...]:
    """Section 1: the 24 round keys of the slots or of the strata."""
    key = (seed % WORD, seed // WORD)
    return tuple(word for q in range(6) for word in philox4x32_10((q, 0, 0, purpose), key))


def bijection(x: int, n: int, keys: Sequence[int], t0: int, t1: int, *, forward: bool = True) -> int:
    """Section 2: for fixed `n`, keys and tweak a bijection of [0, n); backward, its inverse."""
    if n <= 16:
        return _unrank(n, t0, t1)[x] if forward else _unrank(n, t0, t1).index(x)
    r = n.bit_length() // 2
    a = 2 * ((n + 2 ** (r + 1) - 1) >> (r + 1))
    rounds = range(12 if n < 4096 else 8)
    while True:
        left, right = x >> r, x % 2**r
        for i in rounds if forward else reversed(rounds):
            g = ((keys[2 * i] ^ t0 | 1) * (left if i % 2 else right) + keys[2 * i + 1] + t1) % WORD
            g = (g ^ g >> 16) * 0x21F0AAAD % WORD
            if i % 2:
                right ^= g >> (32 - r)
            else:
                left = (left + (g * a >> 32) * (1 if forward else -1)) % a
        x = left * 2**r + right
        if x < n:
            return x


def _unrank(n: int, t0: int, t1: int) -> list[int]:
    w, free, images = t1 * WORD + t0, list(range(n)), []
    for i in range(n):
        d, w = divmod(w * (n - i), 2**64)
        images.append(free.pop(d))
    return images


@lru_cache(maxsize=4096)
def drawn(x: int, quotas: tuple[int, ...]) -> tuple[int, ...]:
    """Section 3: how the first `x` draws of an epoch are split over the classes."""
    if len(quotas) == 1:
        return (x,)
    mid = len(quotas) // 2
    left = x * sum(quotas[:mid]) // sum(quotas) if sum(quotas) else 0
    return drawn(left, quotas[:mid]) + drawn(x - left, quotas[mid:])


def blocks(batch_rows: int, epoch_rows: int, block_rows: int = BLOCK_ROWS) -> list[tuple[int, int, int]]:
    """Section 4: (first position, batches, rows of a batch) of every block, the tail batch included."""
    full, tail = divmod(epoch_rows, batch_rows)
    m = max(1, block_rows // batch_rows)
    cut = [(b * batch_rows, min(m, full - b), batch_rows) for b in range(0, full, m)]
    return cut + ([(full * batch_rows, 1, tail)] if tail else [])


def place_at(
    position: int, class_counts: Sequence[int], quotas: Sequence[int], batch_rows: int, epoch_rows: int,
    seed: int, epoch: int, block_rows: int = BLOCK_ROWS,
) -> int:  # fmt: skip
    """Section 4: the place, in the rows sorted by class, of one position of an epoch."""
    layout = enumerate(blocks(batch_rows, epoch_rows, block_rows))
    block, (x, m, rows) = max(entry for entry in layout if entry[1][0] <= position)
    before, after = drawn(x, tuple(quotas)), drawn(x + m * rows, tuple(quotas))
    quota_m = [end - start for start, end in zip(before, after, strict=True)]
    cumulative = [0, *accumulate(quota_m)]

    b, i = divmod(position - x, rows)
    j = (i * golden(rows)) % rows

    def class_of(ticket: int) -> int:
        return max(c for c, quota in enumerate(quota_m) if cumulative[c] <= ticket and quota > 0)

    inside = b
    if class_of(j * m) != class_of(j * m + m - 1):
        mixed = tweak(j, block, epoch, STRATUM_TWEAK, seed)
        inside = bijection(b, m, round_keys(seed, STRATUM_KEYS), *mixed)
    t = j * m + inside
    c = class_of(t)
    d = epoch * quotas[c] + before[c] + t - cumulative[c]
    pass_number, offset = divmod(d, class_counts[c])
    mixed = tweak(c, pass_number % WORD, pass_number // WORD, SLOT_TWEAK, seed)
    return sum(class_counts[:c]) + bijection(offset, class_counts[c], round_keys(seed, SLOT_KEYS), *mixed)


def places(class_counts, quotas, batch_rows, epoch_rows, seed, epoch, block_rows=BLOCK_ROWS) -> list[int]:
    """The places of a whole epoch, in order; the arguments are those of `place_at`."""
    plan = (class_counts, quotas, batch_rows, epoch_rows, seed, epoch, block_rows)
    return [place_at(position, *plan) for position in range(epoch_rows)]


@lru_cache
def golden(b: int) -> int:
    """Section 5: the multiplier that spreads the strata over the places of a batch of `b` rows."""
    if b <= 2:
        return b - 1
    centre = round(b * 0.6180339887498949)
    near = [g for g in range(max(1, centre - 64), min(b, centre + 65)) if gcd(g, b) == 1]
    return min(near, key=lambda g: (_largest_quotient(b, g), abs(g - centre), g))


def _largest_quotient(b: int, g: int) -> int:
    return max(b // g, _largest_quotient(g, b % g)) if g else 0
