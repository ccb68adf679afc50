"""What a loader has delivered, and how long it was waited for."""

from __future__ import annotations

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
    class_rows: dict[Any, int]
    """Rows yielded of each class, by label value."""


class Meter:
    """Counts what is yielded. Costs nothing per row: which classes they were is computed when it is asked."""

    def __init__(self) -> None:
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
            class_rows={label: int(n) for label, n in zip(classes, counts, strict=True)},
        )
