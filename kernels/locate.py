"""From a position in a block to a place in the class-sorted arena: what a block is, and the bodies that ask it.

`docs/order.md` section 4 is the contract. `fastbalance.order` fills a `Block`; every interpretation reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

# Lines of `Block.classes`: rows of the class, its first place, sides of its grid, its reciprocal, its class id.
ROWS, START, GRID, SHIFT, MAGIC, CLASS_ID = range(6)
# Lines of `Block.draws`: first ticket of the class in the block, and that ticket's offset and pass.
CUMULATIVE, OFFSET, PASS = range(3)
# Entries of `Block.numbers`: batches of the block, sides of the grid of [0, batches), number of the block in its epoch,
# the epoch, low and high word of the seed; and the first batch and the first position in a batch that are asked for.
BATCHES, BATCH_GRID, BATCH_SHIFT, NUMBER, EPOCH, SEED_LOW, SEED_HIGH, FIRST, COLUMN = range(9)


class Block(NamedTuple):
    """All that a kernel must know of one block: tensors, where the kernel runs.

    No number is an argument of its own, so that a captured CUDA graph computes another block when it is replayed
    after other tables were copied into these.
    """

    classes: Any  # int64 [6, n_classes], fixed for a data set
    draws: Any  # int64 [3, n_classes]
    strata: Any  # int32 [rows of a batch]: the stratum of each place in a batch
    keys: Any  # words as int32 [2, 24]: round keys of slots, and of strata
    numbers: Any  # int64 [9]


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
            if cumulative[u64(middle)] <= ticket:
                low = middle
            else:
                high = middle - 1
        return low

    return SimpleNamespace(divide=divide, last_class=last_class)
