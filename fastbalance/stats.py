"""What a loader has delivered, and how long it was waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LoaderStats:
    """Totals of one rank since the loader was made."""

    rows: int
    """Rows yielded."""
    batches: int
    bytes: int
    """Bytes of the records yielded."""
    load_s: float
    """Seconds spent reading the data into the arena."""
    wait_s: float
    """Seconds spent in `next`, the loading included. On a GPU: until the work was queued."""
    rows_per_s: float
    """Rows yielded per second in `next`, the loading left out."""
    groups_read: int
    """Of a stream, like all that follows but the last."""
    bytes_read: int
    """Bytes of the columns that were read of those groups, as they lie in the files; of shards of many groups and of
    other formats than Parquet estimated by rows.
    """
    bytes_needed: int
    """Of distinct (pass, group) among them: had nothing been read twice."""
    amplification: float
    """Bytes read over bytes needed."""
    window_hits: int
    """Windows that were in memory when their block was asked for."""
    window_misses: int
    """Windows that were waited for."""
    read_wait_s: float
    """Seconds of `wait_s` spent waiting for them."""
    arena_rows: int
    """Rows in the arena that a class or a window has taken."""
    peak_arena_rows: int
    """The most of them at a time."""
    class_rows: dict[Any, int]
    """Rows yielded of each class, by label value."""

    def scalars(self) -> dict[str, float]:
        """All that is one number, by name: what a TensorBoard `SummaryWriter.add_scalar` takes, one by one."""
        return {name: float(value) for name, value in vars(self).items() if name != "class_rows"}


class ReadMeter:
    """Counts what is read and what is waited for. Threads may count at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[int, np.ndarray] = {}  # groups read in each pass
        self.groups = self.bytes = self.needed_bytes = 0
        self.hits = self.misses = 0
        self.wait_s = 0.0
        self.live_rows = self.peak_rows = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def read(self, turn: int, groups: Sequence[int], group_bytes: np.ndarray) -> None:
        """Count groups that were read for a pass.

        Args:
            group_bytes: int64 `[n_groups]`. Bytes that reading each group of the data moves.
        """
        numbers = np.asarray(groups)
        n_bytes = group_bytes[numbers]
        with self._lock:
            seen = self._seen.setdefault(turn, np.zeros(len(group_bytes), bool))
            self.groups += len(numbers)
            self.bytes += int(n_bytes.sum())
            self.needed_bytes += int(n_bytes[~seen[numbers]].sum())
            seen[numbers] = True

    def took(self, rows: int) -> None:
        """Count rows of the arena that are taken, or given back."""
        self.took_all(self.live_rows + rows)

    def took_all(self, rows: int) -> None:
        """Set the rows of the arena that are taken."""
        self.live_rows = rows
        self.peak_rows = max(self.peak_rows, rows)

    def waited(self, segments: int, late: int, seconds: float) -> None:
        """Count the segments of a block, those that were not there yet, and the time until they were."""
        self.hits += segments - late
        self.misses += late
        self.wait_s += seconds


class Meter:
    """Counts what is yielded. Costs nothing per row: which classes they were is computed when it is asked."""

    def __init__(self) -> None:
        self.reads = ReadMeter()
        self.load_s = 0.0
        self._rows = self._batches = self._bytes = 0
        self._wait_s = 0.0
        self._runs: list[tuple[int, int, int]] = []  # (epoch, first batch, end batch), not yet counted
        self._class_counts: np.ndarray | int = 0

    def served(self, epoch: int, batch: int, rows: int, n_bytes: int, wait_s: float) -> None:
        """Count one batch."""
        self._rows += rows
        self._batches += 1
        self._bytes += n_bytes
        self._wait_s += wait_s
        if self._runs and self._runs[-1][0] == epoch and self._runs[-1][2] == batch:
            self._runs[-1] = (epoch, self._runs[-1][1], batch + 1)
        else:
            self._runs.append((epoch, batch, batch + 1))

    def settle(self, count: Callable[[int, int, int], np.ndarray]) -> None:
        """Count the classes of all that was served; `count(epoch, first, end)` gives those of a run of batches."""
        for run in self._runs:
            self._class_counts = self._class_counts + count(*run)
        self._runs.clear()

    def stats(self, count: Callable[[int, int, int], np.ndarray], classes: Sequence[Any]) -> LoaderStats:
        """The totals."""
        self.settle(count)
        counts = np.broadcast_to(self._class_counts, len(classes))
        serving_s = self._wait_s - self.load_s
        return LoaderStats(
            rows=self._rows,
            batches=self._batches,
            bytes=self._bytes,
            load_s=self.load_s,
            wait_s=self._wait_s,
            rows_per_s=self._rows / serving_s if serving_s > 0 else 0.0,
            groups_read=self.reads.groups,
            bytes_read=self.reads.bytes,
            bytes_needed=self.reads.needed_bytes,
            amplification=self.reads.bytes / self.reads.needed_bytes if self.reads.needed_bytes else 1.0,
            window_hits=self.reads.hits,
            window_misses=self.reads.misses,
            read_wait_s=self.reads.wait_s,
            arena_rows=self.reads.live_rows,
            peak_arena_rows=self.reads.peak_rows,
            class_rows={label: int(n) for label, n in zip(classes, counts, strict=True)},
        )
