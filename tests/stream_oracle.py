"""The order of a stream in plain Python integers: docs/order.md, section 6, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from . import oracle

GROUP_KEYS, GROUP_TWEAK, LANE_SEED = 5, 6, 7


class Streamed(NamedTuple):
    """A data set as the class of every row, group by group; and how it is streamed."""

    groups: Sequence[Sequence[int]]
    quotas: Sequence[int]
    batch_rows: int
    seed: int
    block_batches: int
    lanes: int
    window_groups: int
    kept: Sequence[bool]
    split_rows: int

    @property
    def n_classes(self) -> int:
        return len(self.quotas)

    @property
    def n_windows(self) -> int:
        return -(-len(self.groups) // self.window_groups)


def dealt(s: Streamed, counts: Sequence[int], lane: int, turn: int) -> list[int]:
    starts = [0, *accumulate(counts)]
    return [sum((t + turn) % s.lanes == lane for t in range(a, b)) for a, b in pairwise(starts)]


def visiting(s: Streamed, turn: int, c: int) -> list[tuple[int, int]]:
    """(window, global row) of the rows of a class, in visiting order."""
    keys, n = oracle.round_keys(s.seed, GROUP_KEYS), len(s.groups)
    mixed = oracle.tweak(turn % oracle.WORD, turn // oracle.WORD, 0, GROUP_TWEAK, s.seed)
    first_rows = [0, *accumulate(len(group) for group in s.groups)]
    at = {oracle.bijection(g, n, keys, *mixed): g for g in range(n)}
    return [
        (v // s.window_groups, first_rows[at[v]] + k)
        for v in range(n)
        for k, found in enumerate(s.groups[at[v]])
        if found == c
    ]


def row_of_draw(s: Streamed, lane: int, lane_seed: int, c: int, d: int) -> tuple[int, tuple[int, int, int]]:
    """The global row of a class's draw in a lane, and the segment that it belongs to."""
    counts = [sum(list(group).count(k) for group in s.groups) for k in range(s.n_classes)]
    n, turn = counts[c], 0

    def part(turn: int) -> tuple[int, int]:
        if not s.kept[c]:
            first = sum(dealt(s, counts, earlier, turn)[c] for earlier in range(lane))
            return first, first + dealt(s, counts, lane, turn)[c]
        return (n * lane // s.lanes, n * (lane + 1) // s.lanes) if n >= s.split_rows * s.lanes else (0, n)

    while d >= part(turn)[1] - part(turn)[0]:
        d, turn = d - (part(turn)[1] - part(turn)[0]), turn + 1
    offset, (first, end) = d, part(turn)
    keys = oracle.round_keys(lane_seed, oracle.SLOT_KEYS)

    def shuffled(x: int, size: int, number: int) -> int:
        mixed = oracle.tweak(c, number % oracle.WORD, number // oracle.WORD, oracle.SLOT_TWEAK, lane_seed)
        return oracle.bijection(x, size, keys, *mixed)

    if s.kept[c] and turn > 0:
        rows = visiting(s, 0, c)[first:end]
        return rows[shuffled(offset, len(rows), s.n_windows + turn)][1], (c, -1, -1)
    rows = visiting(s, turn, c)[first:end]
    window = rows[offset][0]
    mine = [k for k, (w, _) in enumerate(rows) if w == window]
    place = mine[0] + shuffled(offset - mine[0], len(mine), turn * s.n_windows + window)
    return rows[place][1], (c, turn, window)


def lane_batches(s: Streamed, lane: int, epoch: int) -> list[list[int]]:
    """Global rows of every batch of a lane's epoch."""
    low, high, *_ = oracle.philox4x32_10((lane, s.lanes, 0, LANE_SEED), (s.seed % oracle.WORD, s.seed // oracle.WORD))
    lane_seed = low + high * oracle.WORD
    quotas = tuple(dealt(s, s.quotas, lane, epoch))
    earlier = [sum(column) for column in zip(*(dealt(s, s.quotas, lane, e) for e in range(epoch)), strict=True)]
    before_epoch = earlier or [0] * s.n_classes
    size = s.batch_rows // s.lanes
    batches = []
    for number, (x, m, rows) in enumerate(oracle.blocks(size, sum(quotas), s.block_batches * size)):
        before, after = oracle.drawn(x, quotas), oracle.drawn(x + m * rows, quotas)
        drawn = [
            row_of_draw(s, lane, lane_seed, c, before_epoch[c] + d)
            for c in range(s.n_classes)
            for d in range(before[c], after[c])
        ]  # by ticket
        block = [[0] * rows for _ in range(m)]
        for i in range(rows):
            j = (i * oracle.golden(rows)) % rows
            mixed = drawn[j * m][1] != drawn[j * m + m - 1][1]
            tweaks = oracle.tweak(j, number, epoch, oracle.STRATUM_TWEAK, lane_seed)
            keys = oracle.round_keys(lane_seed, oracle.STRATUM_KEYS)
            for b in range(m):
                block[b][i] = drawn[j * m + (oracle.bijection(b, m, keys, *tweaks) if mixed else b)][0]
        batches += block
    return batches


def batches(s: Streamed, epoch: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Global rows of every batch of a rank: its lanes' batches side by side."""
    lanes = [lane_batches(s, lane, epoch) for lane in range(rank, s.lanes, world_size)]
    n_batches = max(map(len, lanes))
    return [[row for lane in lanes if b < len(lane) for row in lane[b]] for b in range(n_batches)]
