"""From a position in a block to a place in the class-sorted arena: what a block is, and the bodies that ask it.

`docs/order.md` section 4 is the contract. `fastbalance.order` fills a `Block`; every interpretation reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

# Lines of `Block.classes`: rows of the class, its first place, sides of its grid, its reciprocal.
ROWS, START, GRID, SHIFT, MAGIC = range(5)
# Lines of `Block.draws`: first ticket of the class in the block, and that ticket's offset and pass.
CUMULATIVE, OFFSET, PASS = range(3)


class Block(NamedTuple):
    """All that a kernel must know of one block. Arrays live where the kernel runs."""

    classes: Any  # int64 [5, n_classes], fixed for a data set
    draws: Any  # int64 [3, n_classes]
    strata: Any  # int32 [rows of a batch]: the stratum of each place in a batch
    keys: Any  # words as int32 [2, 24]: round keys of slots, and of strata
    n_batches: Any
    grid: Any  # sides of the grid of [0, n_batches)
    shift: Any
    number: Any  # of the block in its epoch
    epoch: Any
    seed0: Any  # low and high word of the seed
    seed1: Any


# Up to here a class has the reciprocal `floor((2^32 - 1) / n)`. Above, it is 0: a block is shorter than 2^31 rows, so
# its draws of the class wrap at most once.
MAGIC_ROWS = 1 << 31


def make(jit: Callable, u32: Callable, u64: Callable, where: Callable, mulhi: Callable):
    """Build `divide` and `last_class` for one interpretation; arguments as in `bijection.make`."""
    unit = u64(1)

    @jit
    def divide(x, n, reciprocal):
        """`divmod(x, n)` for x < 2^32, or for x < 2n where the reciprocal is 0.

        With m = floor((2^32-1)/n): m*n >= 2^32 - n, so x*m/2^32 > x/n - 1, and the quotient is at most
        one too small. (A 64-bit division costs more than the whole bijection.)
        """
        quotient = u64(mulhi(u32(x), u32(reciprocal)))
        rest = x - quotient * n
        over = rest >= n
        return where(over, quotient + unit, quotient), where(over, rest - n, rest)

    @jit
    def last_class(cumulative, ticket, low, high):
        """The last class in [low, high] whose first ticket is <= ticket."""
        while low < high:
            middle = (low + high + 1) >> 1
            if cumulative[middle] <= ticket:
                low = middle
            else:
                high = middle - 1
        return low

    return SimpleNamespace(divide=divide, last_class=last_class)
