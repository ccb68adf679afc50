"""Which batches lie in which block, and which places of a batch a rank serves: the only remainder arithmetic.

Seven batches of B = 6 rows over two ranks, blocks of three batches, and a short last batch (`tail="keep"`):

    batch        0      1      2   |  3      4      5   |   6
    block        0      0      0   |  1      1      1   |   2
    rank 0     [0,3)  [0,3)  [0,3) |[0,3)  [0,3)  [0,3) | [0,1)
    rank 1     [3,6)  [3,6)  [3,6) |[3,6)  [3,6)  [3,6) | [1,3)     three rows are left: ranks get 1 and 2
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import NamedTuple

import numpy as np

from .errors import ArgumentError, LanesError, PlanError, explain
from .plan import BalancePlan


class BlockRange(NamedTuple):
    """The batches `[first_batch, first_batch + n_batches)` of an epoch, planned and computed together."""

    number: int
    first_batch: int
    n_batches: int
    batch_rows: int
    first_position: int

    @property
    def end_batch(self) -> int:
        return self.first_batch + self.n_batches

    @property
    def end_position(self) -> int:
        return self.first_position + self.n_batches * self.batch_rows


def block_of(plan: BalancePlan, batch: int) -> BlockRange:
    """The block that holds a batch of the epoch."""
    rows, size = plan.global_batch_rows, plan.block_batches
    full = plan.epoch_rows // rows
    if batch >= full:  # the short last batch, a block of its own
        return BlockRange(-(-full // size), full, 1, plan.tail_rows, full * rows)
    number = batch // size
    first = number * size
    return BlockRange(number, first, min(size, full - first), rows, first * rows)


def pieces(plan: BalancePlan, first: int, end: int) -> Iterator[tuple[BlockRange, int, int]]:
    """Cut the batches [first, end) of an epoch where blocks end: `(block, first batch, n_batches)` of each piece."""
    while first < end:
        block = block_of(plan, first)
        n_batches = min(end, block.end_batch) - first
        yield block, first, n_batches
        first += n_batches


def rank_places(batch_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """The half-open range of places in a batch that a rank serves.

    Equally long for full batches, which a whole number of ranks shares; in a short last batch they differ by one.
    """
    return batch_rows * rank // world_size, batch_rows * (rank + 1) // world_size


def check_ranks(plan: BalancePlan, rank: int, world_size: int) -> None:
    """Refuse a rank that does not exist, and batches that the ranks cannot share.

    Raises:
        ArgumentError: A rank out of range.
        PlanError: A global batch that `world_size` does not divide, or a short last batch with fewer rows than ranks.
    """
    if not 0 <= rank < world_size:
        raise ArgumentError(
            explain("rank", got=f"rank {rank} of world_size {world_size}", allowed=f"a rank in [0, {world_size})")
        )
    if plan.global_batch_rows % world_size:
        raise PlanError(
            explain(
                "world_size",
                got=f"{world_size} ranks for a global batch of {plan.global_batch_rows} rows",
                allowed="a number of ranks that divides it",
            )
        )
    if 0 < plan.tail_rows < world_size:
        raise PlanError(
            explain(
                "tail",
                got=f'"keep": a last batch of {plan.tail_rows} rows for {world_size} ranks',
                allowed="at least one row for each rank",
                fix='Take tail="drop" or tail="pad", or another batch_size.',
            )
        )


def lanes_of(plan: BalancePlan, rank: int, world_size: int, lanes: int) -> range:
    """The lanes of a stream that a rank serves, side by side in its batches.

    Raises:
        LanesError: A number of lanes that does not divide the global batch, or that the ranks do not share evenly.
    """
    if plan.global_batch_rows % lanes or lanes % world_size:
        raise LanesError(
            explain(
                "lanes",
                got=f"{lanes} lanes for a global batch of {plan.global_batch_rows} rows and {world_size} ranks",
                allowed="a number that divides the batch, and that the ranks divide",
            )
        )
    return range(rank, lanes, world_size)


class Dealer(NamedTuple):
    """Deals each class's rows to lanes: number t, counted over all classes, goes to lane `(t + turn) % lanes`.

    So lanes get equally many rows in a turn, give or take one, and equally many of each class in `lanes` turns: they
    never drift apart. All results are int64 `[n_classes]`.
    """

    counts: np.ndarray
    """int64 `[n_classes]`."""
    lanes: int

    def dealt(self, lane: int, turn: int) -> np.ndarray:
        """What a lane gets."""
        whole, rest, first = self._parts
        return whole + ((lane - turn - first) % self.lanes < rest)

    def to_earlier_lanes(self, lane: int, turn: int) -> np.ndarray:
        """What the lanes before it get."""
        whole, _, first = self._parts
        return whole * lane + self._low(lane - 1 - turn - first) - self._low(-1 - turn - first)

    def in_earlier_turns(self, lane: int, turn: int | np.ndarray) -> np.ndarray:
        """What a lane gets in the turns before."""
        whole, _, first = self._parts
        return whole * turn + self._low(lane - first) - self._low(lane - first - turn)

    @property
    def _parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        whole, rest = np.divmod(self.counts, self.lanes)
        return whole, rest, (np.cumsum(self.counts) - self.counts) % self.lanes

    def _low(self, last: np.ndarray) -> np.ndarray:
        """Of the numbers up to `last`, those whose remainder by the lanes is below the rest; plus some constant."""
        rest = self.counts % self.lanes
        return last // self.lanes * rest + np.minimum(last % self.lanes + 1, rest)


def parts(counts: np.ndarray, part: int, n_parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The half-open ranges of one of n equal parts, though `counts * part` may not fit 64 bits."""
    whole, rest = np.divmod(counts, n_parts)
    return whole * part + rest * part // n_parts, whole * (part + 1) + rest * (part + 1) // n_parts


def golden(rows: int) -> int:
    """The step that visits the strata of a batch of `rows` places: `docs/order.md` section 5.

    A step near rows/1.618 with small partial quotients spreads every run of strata evenly over the places (the
    three-distance theorem); plain rounding can hit a common divisor or a large quotient.
    """
    if rows <= 2:
        return rows - 1
    centre = round(rows * 0.6180339887498949)
    steps = range(max(1, centre - 64), min(rows, centre + 65))
    return min(
        (g for g in steps if gcd(g, rows) == 1),
        key=lambda g: (_largest_quotient(rows, g), abs(g - centre), g),
    )


def _largest_quotient(a: int, b: int) -> int:
    largest = 0
    while b:
        largest = max(largest, a // b)
        a, b = b, a % b
    return largest
