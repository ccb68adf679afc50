"""The order of a streamed epoch: which rows of which windows a block draws. Pure; reads nothing.

A pass of a class visits the groups in an order that all classes share, and takes windows of `window_groups` consecutive
ones; inside a window its rows of the class are shuffled. `docs/order.md` section 6 is the contract.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from .dataset import Dataset
from .kernels import cpu, dispatch, locate
from .kernels.philox import GROUP_ROUND_KEYS, GROUP_TWEAK, LANE_SEED
from .order import block_numbers, class_table, round_keys, strata
from .residency import StreamPlan
from .rowrandom import draw_seeds
from .split import BlockRange, Dealer, block_of

_CACHED_PASSES = 4  # of groups: the pass at hand and the next one, of classes at two rates
_CACHED_VISITS = 4096  # of a class in a pass, a lane


class Visit(NamedTuple):
    """A class's rows in one pass of a lane, window by window; windows without rows are left out. int64 `[n]` each."""

    windows: np.ndarray
    """Their numbers, ascending."""
    ends: np.ndarray
    """Rows up to the end of the window."""
    rows: np.ndarray
    """Rows in the window."""
    skipped: np.ndarray
    """Rows of the class in the window that come first and belong to earlier lanes."""


class Segments(NamedTuple):
    """Draws of a block, cut where class, pass or window changes: sorted by class, then by draw. int64 `[n]` each."""

    class_ids: np.ndarray
    draws: np.ndarray
    """How many."""
    rows: np.ndarray
    """Rows of the class in the window, or of the class where it is kept whole."""
    offsets: np.ndarray
    """Of the first draw."""
    turns: np.ndarray
    """What keys the shuffle, beside the class."""
    passes: np.ndarray
    windows: np.ndarray
    """Number of the window in its pass; -1: the rows are those of a kept class, in memory since its first pass."""
    starts: np.ndarray
    """Rows of the lane's class before the window, in its pass; 0 for a kept class as a whole."""
    skipped: np.ndarray
    """See `Visit`."""


class GroupOrder:
    """The order in which every pass visits the groups: a function of (seed, pass).

    Args:
        n_groups: Groups of the data, empty ones included.
        window_groups: Of a window.
    """

    def __init__(self, seed: int, n_groups: int, window_groups: int) -> None:
        self.n_groups, self.window_groups = n_groups, window_groups
        self.n_windows = -(-n_groups // window_groups)
        self._seed, self._keys = seed, dispatch.round_keys(seed, GROUP_ROUND_KEYS)
        self.positions = lru_cache(_CACHED_PASSES)(self._positions)
        self._visited = lru_cache(_CACHED_PASSES)(self._groups)

    def _positions(self, turn: int) -> np.ndarray:
        low, high = np.array([turn & 0xFFFFFFFF]), np.array([turn >> 32])
        (t0, t1), *_ = cpu.tweaks(low, high, np.zeros(1, np.int64), GROUP_TWEAK, self._seed)
        return cpu.bijection(np.arange(self.n_groups), self.n_groups, self._keys, t0, t1)

    def _groups(self, turn: int) -> np.ndarray:
        groups = np.empty(self.n_groups, np.int64)
        groups[self.positions(turn)] = np.arange(self.n_groups)
        return groups

    def groups(self, turn: int, window: int) -> np.ndarray:
        """The groups of a window in visiting order, int64 `[window_groups]`; the last window may be shorter."""
        return self._visited(turn)[window * self.window_groups : (window + 1) * self.window_groups]


class LaneOrder:
    """The order of one lane of a streamed run.

    Args:
        seed: Of the run; the lane derives its own, so that no two lanes shuffle alike.
        device: Where its tables lie.
    """

    def __init__(
        self, plan: StreamPlan, data: Dataset, groups: GroupOrder, seed: int, lane: int, device: torch.device
    ) -> None:
        self.plan, self.lane, self.groups = plan, lane, groups
        self._dealer = Dealer(plan.class_counts, plan.lanes)
        self._first_kept, self._end_kept = plan.kept_rows(lane)
        self.n_kept = self._end_kept - self._first_kept
        low, high, *_ = cpu.words(*(np.array([x]) for x in (lane, plan.lanes, 0)), LANE_SEED, seed)[0].tolist()
        self._seed = low | high << 32
        self._keys = round_keys(self._seed, device)
        self._device = device
        classes, self._groups_of, self._counts = data.entries_by_class()
        self._entries = np.searchsorted(classes, np.arange(plan.n_classes + 1))
        self._plan_of = lru_cache(2)(lambda epoch: plan.lane_plan(lane, epoch))
        self.visit = lru_cache(_CACHED_VISITS)(self._visit)

    def range(self, epoch: int, batch: int) -> BlockRange:
        """The lane's block that holds a batch."""
        return block_of(self._plan_of(epoch), batch)

    def batch_rows(self, epoch: int, batch: int) -> int:
        """Rows of the lane in a batch; 0 is possible in a short last batch."""
        return self.range(epoch, batch).batch_rows if batch < self._plan_of(epoch).n_batches else 0

    def segments(self, epoch: int, block: BlockRange) -> Segments:
        """What a block draws."""
        plan = self._plan_of(epoch)
        before = plan.drawn(block.first_position)
        draws = plan.drawn(block.end_position) - before
        passes, offsets = self._located(self.plan.lane_drawn_before(self.lane, epoch) + before)
        whole = self.plan.kept & (passes > 0) & (draws > 0)
        classes = np.flatnonzero(whole)
        zeros = np.zeros(len(classes), np.int64)
        parts = [
            Segments(
                classes, draws[whole], self.n_kept[whole], offsets[whole], self.groups.n_windows + passes[whole],
                passes[whole], zeros - 1, zeros, zeros,
            )
        ]  # fmt: skip
        for c in np.flatnonzero(~whole & (draws > 0)).tolist():
            parts += self._class_segments(c, int(passes[c]), int(offsets[c]), int(draws[c]))
        joined = Segments(*(np.concatenate(lines) for lines in zip(*parts, strict=True)))
        by_class = np.argsort(joined.class_ids, kind="stable")
        return Segments(*(line[by_class] for line in joined))

    def block(self, epoch: int, block: BlockRange, segments: Segments, places: np.ndarray, first: int) -> locate.Block:
        """What the kernels need.

        Args:
            places: int64 `[len(segments)]`. Where in memory each segment's rows begin.
            first: First batch of the block that is asked for.
        """
        draws = np.stack([np.cumsum(segments.draws) - segments.draws, segments.offsets, segments.turns])
        numbers = block_numbers(block, epoch, self._seed, first, 0)
        tables = class_table(segments.rows, places, segments.class_ids), draws
        put = [torch.from_numpy(table).to(self._device) for table in (*tables, strata(block.batch_rows), numbers)]
        return locate.Block(put[0], put[1], put[2], self._keys, put[3])

    def seeds(self, epoch: int, batch: int, n_batches: int) -> torch.Tensor:
        """The seeds of the draws of consecutive batches of one block, int64 `[n_batches, rows of the lane]`."""
        block = self.range(epoch, batch)
        return draw_seeds(self._seed, epoch, block, batch, n_batches, (0, block.batch_rows), self._device)

    def _class_segments(self, c: int, turn: int, offset: int, draws: int) -> list[Segments]:
        parts = []
        while draws > 0 and not (self.plan.kept[c] and turn > 0):
            visit = self.visit(c, turn)
            end = min(offset + draws, int(visit.ends[-1]) if len(visit.ends) else 0)
            if end == offset:  # a lane may get no row of a small class in a pass
                turn, offset = turn + 1, 0
                continue
            first, last = np.searchsorted(visit.ends, [offset, end - 1], side="right").tolist()
            met = slice(first, last + 1)
            ends, rows, windows = visit.ends[met], visit.rows[met], visit.windows[met]
            starts = ends - rows
            offsets = np.maximum(offset - starts, 0)
            same = np.full(len(windows), 1)
            parts.append(
                Segments(
                    same * c, np.minimum(ends, end) - starts - offsets, rows, offsets,
                    turn * self.groups.n_windows + windows, same * turn, windows, starts, visit.skipped[met],
                )
            )  # fmt: skip
            draws -= end - offset
            turn, offset = turn + 1, 0
        if draws > 0:
            line = (c, draws, self.n_kept[c], offset, self.groups.n_windows + turn, turn, -1, 0, 0)
            parts.append(Segments(*(np.array([value], np.int64) for value in line)))
        return parts

    def _part(self, c: int, turn: int) -> tuple[int, int]:
        """The half-open range of a class's rows, in visiting order, that the lane draws in a pass."""
        if self.plan.kept[c]:
            return int(self._first_kept[c]), int(self._end_kept[c])
        first = int(self._dealer.to_earlier_lanes(self.lane, turn)[c])
        return first, first + int(self._dealer.dealt(self.lane, turn)[c])

    def _located(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pass and offset of a draw of each class, int64 `[n_classes]` each."""
        passes, offsets = np.divmod(draws, np.maximum(self.n_kept, 1))
        low = draws // (self._dealer.counts // self.plan.lanes + 1)
        high = draws * self.plan.lanes // self._dealer.counts + self.plan.lanes
        while (low < high).any():  # the last pass that begins at the draw or before it
            middle = (low + high + 1) // 2
            begins = self._dealer.in_earlier_turns(self.lane, middle) <= draws
            low, high = np.where(begins, middle, low), np.where(begins, high, middle - 1)
        streamed = ~self.plan.kept
        offsets[streamed] = (draws - self._dealer.in_earlier_turns(self.lane, low))[streamed]
        passes[streamed] = low[streamed]
        return passes, offsets

    def _visit(self, c: int, turn: int) -> Visit:
        entries = slice(*self._entries[c : c + 2])
        positions = self.groups.positions(turn)[self._groups_of[entries]]
        in_order = np.argsort(positions)
        windows = positions[in_order] // self.groups.window_groups
        ends = np.cumsum(self._counts[entries][in_order])
        last = np.flatnonzero(np.append(windows[1:] != windows[:-1], True))
        windows, ends = windows[last], ends[last]  # of whole windows, all lanes
        first, end = self._part(c, turn)
        starts = np.concatenate([[0], ends[:-1]])
        rows = np.minimum(ends, end) - np.maximum(starts, first)
        mine = rows > 0
        lane_ends = (np.minimum(ends, end) - first)[mine]
        return Visit(windows[mine], lane_ends, rows[mine], np.maximum(first - starts, 0)[mine])
