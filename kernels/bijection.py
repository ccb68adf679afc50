"""The keyed bijection of [0, n): one body for every interpretation.

A mixed-radix Feistel network with almost no cycle walking, no division and 32-bit multiplies only; for
n <= 16 an exact unranking of one 64-bit word. `docs/order.md` section 2 is the contract.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

TINY_ROWS = 16  # up to here every one of the n! orders comes from one 64-bit word, exactly
SMALL_ROWS = 4096  # below here the halves are so short that 8 rounds can fail the battery (at n = 32)
SMALL_ROUNDS, LARGE_ROUNDS = 12, 8
N_KEYS = 2 * SMALL_ROUNDS


def grid(n: int) -> tuple[int, int]:
    """Sides `(a, r)` of the grid that covers [0, n): a values on the left, 2^r on the right.

    `a` is even, or every permutation would be.
    """
    r = n.bit_length() // 2
    return 2 * ((n + (2 << r) - 1) >> (r + 1)), r


def make(jit: Callable, u32: Callable, u64: Callable, where: Callable, mulhi: Callable):
    """Build the bijection for one interpretation.

    Args:
        jit: Decorator that compiles a function, or the identity.
        u32: Truncates to a word. Every step is wrapped in it: numba promotes uint32 * uint32 to uint64.
        u64: Widens to 64 bits.
        where: `where(condition, x, y)`, element by element.
        mulhi: High word of the product of two words.

    Returns:
        A namespace of `left`, `right`, `unleft` (single rounds), `rounds`, `feistel` and `unrank`.
    """
    one, sixteen, spread = u32(1), u32(16), u32(0x21F0AAAD)
    digit_bits, digit_mask, word_bits = u64(4), u64(15), u64(32)
    zero, unit = u64(0), u64(1)
    below_32 = u32(31)

    @jit
    def smaller(x, y):
        return where(x < y, x, y)  # in this form LLVM sees an unsigned minimum, and vectorises

    @jit
    def mix(v, k0, k1):
        g = u32(u32((k0 | one) * v) + k1)
        g = u32(g ^ (g >> sixteen))
        return u32(g * spread)

    @jit
    def left(lhs, rhs, a, k0, k1):
        """An even round: adds to the left half, modulo a."""
        total = u32(lhs + mulhi(mix(rhs, k0, k1), a))
        return smaller(total, u32(total - a))  # total < 2a: the one that did not wrap below 0

    @jit
    def unleft(lhs, rhs, a, k0, k1):
        """The inverse of `left`."""
        rest = u32(lhs - mulhi(mix(rhs, k0, k1), a))
        return smaller(rest, u32(rest + a))

    @jit
    def right(lhs, rhs, down, k0, k1):
        """An odd round, its own inverse: XORs the top bits of a mixed left half into the right half."""
        return u32(rhs ^ (mix(lhs, k0, k1) >> u32(down & below_32)))

    @jit
    def rounds(x, a, r, keys, t0, t1, first, end):
        """The rounds [first, end) of the network, both even, at one value of its grid."""
        down = u32(word_bits - u64(r))
        mask = u32((unit << u64(r)) - unit)
        a = u32(a)
        lhs, rhs = u32(u64(x) >> u64(r)), u32(u32(x) & mask)
        for i in range(2 * first, 2 * end, 4):
            # Unsigned: a signed index costs four GPU instructions, for the case that it is negative.
            i0, i1, i2, i3 = u64(i), u64(i + 1), u64(i + 2), u64(i + 3)
            lhs = left(lhs, rhs, a, u32(keys[i0] ^ t0), u32(keys[i1] + t1))
            rhs = right(lhs, rhs, down, u32(keys[i2] ^ t0), u32(keys[i3] + t1))
        return (u64(lhs) << u64(r)) | u64(rhs)

    @jit
    def feistel(x, n, a, r, keys, t0, t1, n_rounds):
        """For fixed n, keys and tweak: a bijection of [0, n), n >= 17. `a, r = grid(n)`."""
        y = x
        outside = y >= zero  # everything takes the first step
        while outside:
            y = where(outside, rounds(y, a, r, keys, t0, t1, 0, n_rounds), y)
            outside = y >= n
        return y

    @jit
    def unrank(x, n, t0, t1):
        """Place `x` of the order of [0, n), n <= 16, that the word `t1 * 2^32 + t0` stands for.

        Digit i of the word in the mixed radix n, n-1, .. picks among the values still free; a value's
        rank among the free ones becomes the value by stepping over the earlier picks, last one first.
        """
        hi, lo = u64(t1), u64(t0)
        digits = zero
        picked = zero
        for index in range(TINY_ROWS):
            i = u64(index)  # comparing it with a uint64 unwrapped would go through float64
            radix = where(n > i, n - i, unit)
            low = lo * radix
            high = hi * radix + (low >> word_bits)
            digit = high >> word_bits
            hi, lo = u64(u32(high)), u64(u32(low))
            digits = digits | (digit << (digit_bits * i))
            picked = where(x == i, digit, picked)
        for index in range(TINY_ROWS):
            i = u64(TINY_ROWS - 1 - index)
            digit = (digits >> (digit_bits * i)) & digit_mask
            picked = where((i < x) & (digit <= picked), picked + unit, picked)
        return picked

    return SimpleNamespace(left=left, unleft=unleft, right=right, rounds=rounds, feistel=feistel, unrank=unrank)
