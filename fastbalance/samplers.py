"""Samplers for a `torch.utils.data.DataLoader` over data of the user's own: the same order, as row numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from torch.utils.data import Sampler

from . import balance as _balance
from .checks import whole
from .kernels import cpu_rows
from .order import EpochOrder
from .plan import Tail
from .row_labels import row_classes
from .run import Run
from .split import pieces, rank_places


@dataclass
class _Iteration:
    """Where an iteration began, and how many batches it has handed out."""

    epoch: int
    first_batch: int
    n_batches: int = 0


class _Balanced(Run):
    """What both samplers share: labels -> classes -> batches of row numbers."""

    def __init__(
        self,
        labels: Any,
        batch_size: int,
        *,
        label: str | Callable[[Any], Any] | None = None,
        balance: str | _balance.Balance = "uniform",
        epoch_rows: int | Literal["over", "under"] | None = None,
        seed: int | None = 0,
        rank: int | None = None,
        world_size: int | None = None,
        mesh: Any = None,
        tail: Tail = "keep",
    ) -> None:
        super().__init__(batch_size, balance, epoch_rows, tail, seed, rank, world_size, mesh)
        self._iteration: _Iteration | None = None
        self._classes, class_ids = row_classes(labels, label)
        self._class_counts = np.bincount(class_ids)
        starts = np.cumsum(self.class_counts) - self.class_counts
        n_rows = len(class_ids)
        dtype = np.uint32 if n_rows <= 1 << 32 else np.uint64
        self._class_rows = np.empty(n_rows, dtype)
        self._class_rows[cpu_rows.number_rows(class_ids, starts)] = np.arange(n_rows, dtype=dtype)
        self._check_plan()

    @property
    def classes(self) -> list[Any]:
        """The label value of each class id."""
        return self._classes.tolist()

    @property
    def class_counts(self) -> np.ndarray:
        """Rows of each class, int64 `[n_classes]`."""
        return self._class_counts

    @cached_property
    def _fingerprint(self) -> str:
        return blake2b(self._class_rows.tobytes(), digest_size=16).hexdigest()

    def state_dict(self, seen: int | None = None) -> dict[str, Any]:
        """Where the run is: small, JSON, good for any number of ranks.

        Args:
            seen: How much of the iteration begun last has been trained on: batches, of a `BalancedSampler` rows of
                this rank. They count from where that iteration began, after a resume from inside the epoch. 0 is that
                place; all of them, the start of the next epoch. None: all that was yielded, which includes what the
                workers of a `DataLoader` were asked for ahead.

        Raises:
            ArgumentError: `seen` is negative, or more than that iteration has yielded.
        """
        state = super().state_dict()
        if seen is None:
            return state
        last = self._iteration or _Iteration(*self._cursor.start())
        seen = whole("seen", seen, 0, last.n_batches + 1, note=": no more than the iteration begun last has yielded")
        finished, batch = divmod(last.first_batch + seen, self.plan.n_batches)
        return state | {"epoch": last.epoch + finished, "batch": batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._iteration = None

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; a position loaded for this same epoch is kept."""
        super().set_epoch(epoch)
        if self._iteration and self._iteration.epoch != epoch:  # trainers may name the one that has begun
            self._iteration = None

    def _begin(self) -> Iterator[list[int]]:
        """An iteration. Until it begins, with its first batch, `seen=0` is where it will."""
        self._iteration = None
        return self._batches()

    def _batches(self) -> Iterator[list[int]]:
        epoch, batch = self._start()
        iteration = _Iteration(epoch, batch)
        order = EpochOrder(self._class_rows, self.plan, self.seed, epoch)
        for block, first, n_batches in pieces(self.plan, batch, self.plan.n_batches):
            places = order.places(first, n_batches, *rank_places(block.batch_rows, *self._ranks))
            for rows in order.rows(places).numpy():
                self._cursor.yielding(epoch, batch, self.plan.n_batches)
                if iteration.n_batches == 0 or self._iteration is None:  # None: another was made, but has not begun
                    self._iteration = iteration
                iteration.n_batches += 1
                yield rows.tolist()
                batch += 1


class BalancedBatchSampler(_Balanced, Sampler[list[int]]):
    """Balanced batches of row numbers: `DataLoader(data, batch_sampler=BalancedBatchSampler(labels, 256))`.

    Every batch has each class's share within 2 rows. It has no limit of 2^24 rows, stores 4 bytes a row, and shares its
    batches out over ranks, which `WeightedRandomSampler` does not know.

    Args:
        labels: The class of each row, `[n_rows]`: integers, bools or strings as array, tensor, sequence, Arrow array,
            pandas or Hugging Face column. With `label`, the data set itself.
        batch_size: Rows for each rank and batch.
        label: Where a data set has its labels: a column of a dict, `pa.Table`, `pandas.DataFrame`, `datasets.Dataset`;
            or a function that is given the data set and returns them all, as `lambda data: data.targets`.
        balance, epoch_rows, seed, rank, world_size, mesh, tail: As for `BalancedLoader`.

    Workers of a `DataLoader` fetch ahead, and what they were asked for counts as yielded. So count the batches of the
    loop, and save `state_dict(seen=n)` with the model: the state after the n-th batch was trained on. Batches must come
    in order, as they do unless a `DataLoader` is told `in_order=False`.

    >>> from torch.utils.data import DataLoader
    >>> sampler = BalancedBatchSampler([0, 0, 1, 0, 1, 0], 2)
    >>> for n, batch in enumerate(DataLoader(range(6), batch_sampler=sampler), start=1):
    ...     state = sampler.state_dict(seen=n)
    >>> state["epoch"], state["batch"]
    (1, 0)

    Raises:
        LabelError: Labels that are empty, not one-dimensional, of a float type, null, or all equal; a `label` that
            finds none, or not one for each row.
        PlanError, ArgumentError: As for `make_plan`.
    """

    def __len__(self) -> int:
        return self.plan.n_batches

    def __iter__(self) -> Iterator[list[int]]:
        return self._begin()


class BalancedSampler(_Balanced, Sampler[int]):
    """Balanced row numbers, one by one: `DataLoader(data, batch_size=256, sampler=BalancedSampler(labels))`.

    A sampler is not told the batch size, so batches are balanced on average only. Where every batch should be, take
    `BalancedBatchSampler`. Arguments and errors are the same, without `batch_size`. `state_dict(seen=n)` counts rows.
    """

    def __init__(self, labels: Any, **options: Any) -> None:
        super().__init__(labels, 1, **options)

    def __len__(self) -> int:
        """Rows of this rank in an epoch."""
        return self.plan.n_batches

    def __iter__(self) -> Iterator[int]:
        return (row for (row,) in self._begin())
