"""Keys: Philox4x32-10, one body for every interpretation.

Source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC11); the published
known-answer vectors of Random123 are in the tests. `docs/order.md` section 1 says what is keyed by what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# The last counter word: what the words are for. No two uses share a counter.
SLOT_ROUND_KEYS, STRATUM_ROUND_KEYS, SLOT_TWEAK, STRATUM_TWEAK = 1, 2, 3, 4
GROUP_ROUND_KEYS, GROUP_TWEAK, LANE_SEED = 5, 6, 7
RESHARD_ROUND_KEYS, RESHARD_TWEAK = 8, 9
DRAW_SEED, DRAW_WORDS = 10, 11


def make(jit: Callable, u32: Callable, u64: Callable) -> tuple[Any, Any]:
    """Build `(mulhi, philox)` for one interpretation.

    Args:
        jit: Decorator that compiles a function, or the identity.
        u32: Truncates to a word (an unsigned 32-bit integer).
        u64: Widens to 64 bits.
    """
    mul0, mul1 = u32(0xD2511F53), u32(0xCD9E8D57)
    weyl0, weyl1 = u32(0x9E3779B9), u32(0xBB67AE85)
    word_bits = u64(32)

    @jit
    def mulhi(a, b):
        """High word of the product of two words."""
        return u32((u64(a) * u64(b)) >> word_bits)

    @jit
    def philox(x0, x1, x2, x3, k0, k1):
        """The four words of counter `(x0, x1, x2, x3)` under the key `(k0, k1)`."""
        for _ in range(10):
            y0 = u32(mulhi(mul1, x2) ^ x1 ^ k0)
            y2 = u32(mulhi(mul0, x0) ^ x3 ^ k1)
            x1, x3 = u32(mul1 * x2), u32(mul0 * x0)
            x0, x2 = y0, y2
            k0, k1 = u32(k0 + weyl0), u32(k1 + weyl1)
        return x0, x1, x2, x3

    return mulhi, philox
