"""Epochs of data larger than memory: which windows lie where, read ahead by plan, and the places of batches in them.

block --windows--> segments --rings, homes--> where in the arena each segment's rows begin
                   windows not there yet --> reads, in threads: groups -> records -> arena
the block's reads are waited for, the next block's are begun, the kernels give the places
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
import torch

from .arena import Arena, Wanted, put_group
from .dataset import Dataset
from .kernels.dispatch import kernels_for
from .records import RecordLayout
from .residency import StreamPlan
from .split import BlockRange, block_of, lanes_of
from .stats import ReadMeter
from .windows import GroupOrder, LaneOrder, Segments

_LABEL_SHIFT = 40
_BLOCKS_AHEAD = 4  # that reading begins for at once; few classes may fill no ring in many blocks


class _Window(NamedTuple):
    """Rows of one class and lane that are in the arena, or on their way."""

    place: int
    """Of the first row."""
    reads: list[Future]
    held: list[Any]
    """What its ragged columns lie in."""


class _Load(NamedTuple):
    """Rows of one class and lane in a window, to be read."""

    lane: int
    class_id: int
    rows: int
    skipped: int
    """Rows of the class in the window that come first and belong to earlier lanes."""
    window: _Window


class _Ring:
    """Room for the windows of a class of one lane, taken and given back in the order in which they are drawn."""

    def __init__(self, first_place: int, capacity: int) -> None:
        self._first_place, self._capacity = first_place, capacity
        self._live: deque[tuple[int, int, int]] = deque()  # (turn, start, end), counted without wrapping

    @property
    def last_turn(self) -> int:
        """The window taken last; -1: there is none."""
        return self._live[-1][0] if self._live else -1

    def take(self, turn: int, rows: int) -> int | None:
        """The place of a window's first row; None: it does not fit. Windows lie in one piece."""
        start = self._live[-1][2] if self._live else 0
        if start % self._capacity + rows > self._capacity:
            start += self._capacity - start % self._capacity
        if rows > self._capacity or (self._live and start + rows - self._live[0][1] > self._capacity):
            return None
        self._live.append((turn, start, start + rows))
        return self._first_place + start % self._capacity

    def give_back_before(self, turn: int) -> list[tuple[int, int]]:
        """Free the windows that are drawn before `turn`; their turns and rows."""
        freed = []
        while self._live and self._live[0][0] < turn:
            its_turn, start, end = self._live.popleft()
            freed.append((its_turn, end - start))
        return freed


class Stream:
    """The windows of the lanes that a rank serves, and the places of batches in them.

    Blocks are asked for in order; after a jump nothing that was read ahead is kept, but for the kept classes. Reads run
    in threads; an error in one is raised where its block is asked for.

    Args:
        reads: Counts what is read.
        rank, world_size: Lanes `rank, rank + world_size, ..` are served, side by side in a batch.
    """

    def __init__(
        self,
        plan: StreamPlan,
        data: Dataset,
        layout: RecordLayout,
        seed: int,
        device: torch.device,
        rank: int,
        world_size: int,
        reads: ReadMeter,
    ) -> None:
        self.plan, self.data, self.seed = plan, data, seed
        self._device, self._kernels = device, kernels_for(device)
        self._groups = GroupOrder(seed, len(data.groups), plan.window_groups)
        lanes = lanes_of(plan, rank, world_size, plan.lanes)
        self._lanes = {lane: LaneOrder(plan, data, self._groups, seed, lane, device) for lane in lanes}
        self._homes, self._rings, n_rows = self._lay_out()
        self.arena = Arena(layout, n_rows, device)
        self._columns = list(dict.fromkeys([*layout.columns, *data.label]))
        self._group_bytes = data.source.group_bytes(self._columns)
        self._reads = reads
        self._windows: dict[tuple[int, int, int], _Window] = {}  # by lane, class and turn
        # Kept classes that are all there, or under way; and those that are there.
        self._requested, self._filled = ({lane: np.zeros(plan.n_classes, bool) for lane in lanes} for _ in range(2))
        self._here: tuple[int, int] | None = None  # epoch and block served last, and the one after it
        self._after: tuple[int, int] | None = None
        self._ahead = (0, 0)  # epoch and batch of the first block whose reads have not all begun
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: list[Future] = []
        self._process = os.getpid()

    def places(self, epoch: int, batch: int, n_batches: int) -> torch.Tensor:
        """Places in the arena of the rows of consecutive batches of one block, int64 `[n_batches, rows of the rank]`.

        They hold until another block is asked for.

        Raises:
            SourceError, ColumnError: Of a read.
        """
        block = block_of(self.plan, batch)
        if (epoch, block.number) not in (self._here, self._after) or os.getpid() != self._process:
            self.forget()
        try:
            served = self._served(epoch, batch)
            if (epoch, block.number) != self._here:
                self.arena.rest()
                self._give_back(served)
                self._request(served)
                after = self._block_after(epoch, batch)
                self._request_ahead(after)
                self._here, self._after = (epoch, block.number), (after[0], block_of(self.plan, after[1]).number)
            parts = []
            for lane, (lane_block, segments) in served.items():
                starts = self._wait(lane, segments)
                first = batch - lane_block.first_batch
                parts.append(self._order(lane, epoch, lane_block, segments, starts, first, n_batches))
        except BaseException:
            self.forget()
            raise
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def seeds(self, epoch: int, batch: int, n_batches: int) -> torch.Tensor:
        """The seeds of the draws at those places, int64 `[n_batches, rows of the rank]`; reads nothing."""
        orders = [order for order in self._lanes.values() if order.batch_rows(epoch, batch)]
        return torch.cat([order.seeds(epoch, batch, n_batches) for order in orders], dim=1)

    def count_classes(self, epoch: int, batch: int, n_batches: int) -> np.ndarray:
        """Rows of each class in consecutive batches of one block, int64 `[n_classes]`; reads nothing."""
        counts = np.zeros(self.plan.n_classes, np.int64)
        for lane, (block, segments) in self._served(epoch, batch).items():
            labels = segments.class_ids << _LABEL_SHIFT  # in place of places: windows are shorter than 2^40 rows
            first = batch - block.first_batch
            found = self._order(lane, epoch, block, segments, labels, first, n_batches) >> _LABEL_SHIFT
            counts += np.bincount(found.cpu().numpy().reshape(-1), minlength=len(counts))
        return counts

    def forget(self) -> None:
        """Stop reading, and drop all windows but those of kept classes. Nothing is written to the arena afterwards."""
        if os.getpid() != self._process:  # the parent's threads are not here, and what they were to read never comes
            self._pool, self._process = None, os.getpid()
        else:
            for read in self._under_way:
                read.cancel()
            wait([read for read in self._under_way if not read.cancelled()])
        kept = self.plan.kept
        self._windows = {
            key: window for key, window in self._windows.items() if kept[key[1]] and all(map(_succeeded, window.reads))
        }
        for flags in (*self._requested.values(), *self._filled.values()):
            flags[:] = False
        self._homes, self._rings, _ = self._lay_out()
        visits = ((self._lanes[lane].visit(c, 0), turn) for lane, c, turn in self._windows)
        self._reads.took_all(sum(int(visit.rows[np.searchsorted(visit.windows, turn)]) for visit, turn in visits))
        self._under_way.clear()
        self._here = self._after = None
        self._ahead = (0, 0)

    def close(self) -> None:
        """Stop the threads."""
        self.forget()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _lay_out(self) -> tuple[dict[int, np.ndarray], dict[tuple[int, int], _Ring], int]:
        """Where the classes lie in the arena: the first places of kept ones, int64 `[n_classes]` for each lane; the
        rings of the others; and the rows of all.
        """
        plan, end = self.plan, 0
        homes, rings = {}, {}
        for lane, order in self._lanes.items():
            rows = np.where(plan.kept & (plan.quotas > 0), order.n_kept, 0)
            homes[lane] = end + np.cumsum(rows) - rows
            end += int(rows.sum())
            for c in np.flatnonzero(~plan.kept & (plan.quotas > 0)).tolist():
                rings[lane, c] = _Ring(end, int(plan.ring_rows[c]))
                end += int(plan.ring_rows[c])
        return homes, rings, end

    def _served(self, epoch: int, batch: int) -> dict[int, tuple[BlockRange, Segments]]:
        """Block and segments of each lane that has rows in a batch."""
        orders = {lane: order for lane, order in self._lanes.items() if order.batch_rows(epoch, batch)}
        blocks = {lane: order.range(epoch, batch) for lane, order in orders.items()}
        return {lane: (block, orders[lane].segments(epoch, block)) for lane, block in blocks.items()}

    def _order(
        self,
        lane: int,
        epoch: int,
        block: BlockRange,
        segments: Segments,
        starts: np.ndarray,
        first: int,
        n_batches: int,
    ) -> torch.Tensor:
        out = torch.empty((n_batches, block.batch_rows), dtype=torch.int64, device=self._device)
        self._kernels.order_block(out, self._lanes[lane].block(epoch, block, segments, starts, first))
        return out

    def _give_back(self, served: Mapping[int, tuple[BlockRange, Segments]]) -> None:
        """Free the windows that are drawn before the block at hand."""
        for lane, (_, segments) in served.items():
            streamed = np.flatnonzero(~self.plan.kept[segments.class_ids])
            classes, first = np.unique(segments.class_ids[streamed], return_index=True)
            for c, turn in zip(classes.tolist(), segments.turns[streamed[first]].tolist(), strict=True):
                for freed, rows in self._rings[lane, c].give_back_before(turn):
                    del self._windows[lane, c, freed]
                    self._reads.took(-rows)

    def _block_after(self, epoch: int, batch: int) -> tuple[int, int]:
        """Epoch and first batch of the block after a batch's."""
        end = block_of(self.plan, batch).end_batch
        return (epoch, end) if end < self.plan.n_batches else (epoch + 1, 0)

    def _request_ahead(self, after: tuple[int, int]) -> None:
        """Begin to read the next blocks as far as the rings have room, so that threads that are done go on."""
        self._ahead = max(self._ahead, after)
        for _ in range(_BLOCKS_AHEAD):
            if not self._request(self._served(*self._ahead), ahead=True):
                return
            self._ahead = self._block_after(*self._ahead)

    def _request(self, served: Mapping[int, tuple[BlockRange, Segments]], ahead: bool = False) -> bool:
        """Begin to read what is not there yet; whether there was room for all of it."""
        loads: dict[tuple[int, int], list[_Load]] = defaultdict(list)  # by pass and window
        full = set()  # rings; they take windows in the order in which these are drawn, and so no later one
        for lane, (_, segments) in served.items():
            requested = self._requested[lane]
            for k in np.flatnonzero((segments.windows >= 0) | ~requested[segments.class_ids]).tolist():
                c, turn, window = (int(line[k]) for line in (segments.class_ids, segments.passes, segments.windows))
                if window >= 0:
                    if (lane, c) not in full and not self._load(lane, c, turn, window, loads):
                        assert ahead, "a ring holds two blocks"
                        full.add((lane, c))
                    continue
                requested[c] = True
                for window in self._lanes[lane].visit(c, 0).windows.tolist():
                    self._load(lane, c, 0, window, loads)
        for (turn, window), wanted in loads.items():
            self._take_along(turn, window, loads)
            self._read_window(turn, window, wanted)
        return not full

    def _load(self, lane: int, c: int, turn: int, window: int, loads: dict[tuple[int, int], list[_Load]]) -> bool:
        """Take room for a window of a class, unless it has some already; whether there is any."""
        key = lane, c, turn * self._groups.n_windows + window
        if key in self._windows:
            return True
        visit = self._lanes[lane].visit(c, turn)
        k = int(np.searchsorted(visit.windows, window))
        rows = int(visit.rows[k])
        place: int | None
        if self.plan.kept[c]:
            place = int(self._homes[lane][c] + visit.ends[k] - rows)
        else:
            place = self._rings[lane, c].take(key[2], rows)
        if place is None:
            return False
        self._windows[key] = _Window(place, [], [])
        self._reads.took(rows)
        loads[turn, window].append(_Load(lane, c, rows, int(visit.skipped[k]), self._windows[key]))
        return True

    def _take_along(self, turn: int, window: int, loads: dict[tuple[int, int], list[_Load]]) -> None:
        """Of a window that is read anyway, load the classes that need it next: of kept ones all that were not read."""
        for lane, order in self._lanes.items():
            for c in np.flatnonzero(self.plan.quotas > 0).tolist():
                if self.plan.kept[c] and turn > 0:
                    continue
                visit = order.visit(c, turn)
                k = int(np.searchsorted(visit.windows, window))
                if k == len(visit.windows) or visit.windows[k] != window:
                    continue
                if not self.plan.kept[c]:
                    pass_before = turn - 1 if k == 0 else turn
                    earlier = order.visit(c, pass_before).windows if pass_before >= 0 else visit.windows[:0]
                    last = self._rings[lane, c].last_turn
                    if not len(earlier) or last != pass_before * self._groups.n_windows + earlier[k - 1]:
                        continue
                self._load(lane, c, turn, window, loads)

    def _read_window(self, turn: int, window: int, loads: Sequence[_Load]) -> None:
        """Hand the groups of a window to the threads."""
        groups = self._groups.groups(turn, window)
        wanted: dict[int, list[tuple[Wanted, list[_Window]]]] = defaultdict(list)
        for lane in self._lanes:
            mine = [load for load in loads if load.lane == lane]
            for group, rows in self._wanted(groups, mine):
                wanted[group].append((rows, [load.window for load in mine]))
        reads = [
            self._executor.submit(self._read, turn, run, [wanted[group] for group in run])
            for run in self.data.source.runs(sorted(wanted), self.plan.run_rows)
        ]
        for load in loads:
            load.window.reads.extend(reads)
        self._under_way = [read for read in self._under_way if not read.done()] + reads

    def _wanted(self, groups: np.ndarray, loads: Sequence[_Load]) -> Iterator[tuple[int, Wanted]]:
        """What the loads of one lane want of each group: rows are numbered in visiting order."""
        if not loads:
            return
        load_of = np.full(self.plan.n_classes, -1)
        load_of[[load.class_id for load in loads]] = np.arange(len(loads))
        places, rows, skipped = (
            np.array(line) for line in zip(*((x.window.place, x.rows, x.skipped) for x in loads), strict=True)
        )
        seen = np.zeros(len(loads), np.int64)
        for group in groups.tolist():
            classes, counts = self.data.group_class_counts(group)
            loaded = load_of[classes] >= 0
            classes, counts, at = classes[loaded], counts[loaded], load_of[classes][loaded]
            before = seen[at] - skipped[at]
            seen[at] += counts
            low, high = np.clip(-before, 0, counts), np.clip(rows[at] - before, 0, counts)
            some = high > low
            if some.any():
                first = places[at] + before
                yield group, Wanted(*(line[some] for line in (classes, counts, first, low, high)))

    def _read(self, turn: int, run: Sequence[int], wanted: Sequence[Sequence[tuple[Wanted, list[_Window]]]]) -> None:
        """Read groups and put their rows where they are wanted. Runs in a thread."""
        if not threading.main_thread().is_alive():  # the interpreter ends, and waits for its threads
            return
        table = self.data.source.read_groups(run, self._columns)
        start = 0
        for group, rows in zip(run, wanted, strict=True):
            end = start + int(self.data.groups.n_rows[group])
            part = table.slice(start, end - start)
            held = put_group(self.arena, self.data, group, part, [each for each, _ in rows])
            for arrays, (_, windows) in zip(held, rows, strict=True):
                for window in windows if arrays else ():
                    window.held.append(arrays)
            start = end
        self._reads.read(turn, run, self._group_bytes)

    def _wait(self, lane: int, segments: Segments) -> np.ndarray:
        """Wait until a block's rows are there; where each segment's begin, int64 `[n_segments]`."""
        places = self._homes[lane][segments.class_ids] + segments.starts
        started_s, late, filled = time.perf_counter(), 0, self._filled[lane]
        open_segments = np.flatnonzero((segments.windows >= 0) | ~filled[segments.class_ids]).tolist()
        for k in open_segments:
            c, turn, window = (int(line[k]) for line in (segments.class_ids, segments.turns, segments.windows))
            turns = [turn] if window >= 0 else self._lanes[lane].visit(c, 0).windows.tolist()
            found = [self._windows[lane, c, each] for each in turns]
            late += any(not read.done() for each in found for read in each.reads)
            for each in found:
                while each.reads:
                    each.reads[-1].result()
                    each.reads.pop()
            if not self.plan.kept[c]:
                places[k] = found[0].place
            elif window < 0:
                filled[c] = True
        self._reads.waited(len(places), late, time.perf_counter() - started_s)
        return places

    @property
    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.plan.threads, thread_name_prefix="fastbalance-read")
        return self._pool


def _succeeded(read: Future) -> bool:
    return read.done() and not read.cancelled() and read.exception() is None
