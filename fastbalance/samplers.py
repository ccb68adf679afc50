"""Samplers for a `torch.utils.data.DataLoader` over data of the user's own: the same order, as row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Sampler

from . import balance as _balance
from .errors import LabelError, explain
from .kernels import cpu_rows
from .order import EpochOrder
from .plan import Tail
from .run import Run
from .split import pieces, rank_places


class _Balanced(Run):
    """What both samplers share: labels -> classes -> batches of row numbers.

    A state counts what was yielded, and a DataLoader's workers fetch ahead of what training has seen.
    """

    def __init__(
        self,
        labels: Sequence[Any] | np.ndarray | torch.Tensor,
        batch_size: int,
        *,
        balance: str | _balance.Balance = "uniform",
        epoch_rows: int | Literal["over", "under"] | None = None,
        seed: int | None = 0,
        rank: int | None = None,
        world_size: int | None = None,
        mesh: Any = None,
        tail: Tail = "keep",
    ) -> None:
        super().__init__(batch_size, balance, epoch_rows, tail, seed, rank, world_size, mesh)
        values = _label_values(labels)
        self._classes, class_ids = np.unique(values, return_inverse=True)
        self._class_counts = np.bincount(class_ids)
        if len(self.classes) < 2:
            raise LabelError(
                explain(
                    "labels",
                    got=f"one class only, {self.classes[0]!r}",
                    allowed="two classes or more: one has nothing to balance",
                )
            )
        starts = np.cumsum(self.class_counts) - self.class_counts
        dtype = np.uint32 if len(values) <= 1 << 32 else np.uint64
        self._class_rows = np.empty(len(values), dtype)
        self._class_rows[cpu_rows.number_rows(class_ids, starts)] = np.arange(len(values), dtype=dtype)
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

    def _batches(self) -> Iterator[list[int]]:
        epoch, batch = self._start()
        order = EpochOrder(self._class_rows, self.plan, self.seed, epoch)
        for block, first, n_batches in pieces(self.plan, batch, self.plan.n_batches):
            places = order.places(first, n_batches, *rank_places(block.batch_rows, *self._ranks))
            for rows in order.rows(places).numpy():
                self._cursor.yielding(epoch, batch, self.plan.n_batches)
                yield rows.tolist()
                batch += 1


class BalancedBatchSampler(_Balanced, Sampler[list[int]]):
    """Balanced batches of row numbers: `DataLoader(data, batch_sampler=BalancedBatchSampler(labels, 256))`.

    Every batch has each class's share within 2 rows. It has no limit of 2^24 rows, stores 4 bytes a row, and shares its
    batches out over ranks, which `WeightedRandomSampler` does not know.

    Args:
        labels: The class of each row: array, tensor or sequence of integers, bools or strings, `[n_rows]`.
        batch_size: Rows for each rank and batch.
        balance, epoch_rows, seed, rank, world_size, mesh, tail: As for `BalancedLoader`.

    Raises:
        LabelError: Labels that are empty, not one-dimensional, of a float type, missing, or all equal.
        PlanError, ArgumentError: As for `make_plan`.
    """

    def __len__(self) -> int:
        return self.plan.n_batches

    def __iter__(self) -> Iterator[list[int]]:
        return self._batches()


class BalancedSampler(_Balanced, Sampler[int]):
    """Balanced row numbers, one by one: `DataLoader(data, batch_size=256, sampler=BalancedSampler(labels))`.

    A sampler is not told the batch size, so batches are balanced on average only. Where every batch should be, take
    `BalancedBatchSampler`. Arguments and errors are the same, without `batch_size`.
    """

    def __init__(self, labels: Sequence[Any] | np.ndarray | torch.Tensor, **options: Any) -> None:
        super().__init__(labels, 1, **options)

    def __len__(self) -> int:
        """Rows of this rank in an epoch."""
        return self.plan.n_batches

    def __iter__(self) -> Iterator[int]:
        return (row for (row,) in self._batches())


def _label_values(labels: Any) -> np.ndarray:
    """The labels as an array of integers, bools, strings or dates.

    Raises:
        LabelError: Labels that are not one such value for each row, all of one kind.
    """
    if not isinstance(labels, torch.Tensor):
        values, problem = _as_array(labels)
    elif labels.dtype.is_floating_point:  # said before numpy is asked, which has no bfloat16
        values, problem = np.empty(0), str(labels.dtype).removeprefix("torch.")
    else:
        values, problem = labels.detach().cpu().numpy(), None
    problem = problem or _problem_of(values)
    if problem is not None:
        raise LabelError(
            explain(
                "labels",
                got=problem,
                allowed="integers, bools or strings, one for each row",
                fix="Map them to class numbers first; a float label needs bins.",
            )
        )
    return values


def _as_array(labels: Any) -> tuple[np.ndarray, str | None]:
    """Labels as an array, and what is wrong with them. Python objects must all be of one type."""
    array = np.asarray(labels) if hasattr(labels, "__array__") else None
    if array is not None and array.dtype.kind not in "OT":
        return array, None
    items = list(labels) if array is None else array.tolist()
    kinds = sorted({type(item).__name__ for item in items})
    if kinds == ["str"]:
        return np.array(items, np.str_), None
    if len(kinds) > 1 and not all(isinstance(item, (int, np.integer)) for item in items):
        return np.empty(0), f"objects of type {', '.join(kinds)}"
    try:
        return np.array(items), None
    except ValueError as error:
        return np.empty(0), str(error)


def _problem_of(values: np.ndarray) -> str | None:
    if values.ndim != 1 or values.size == 0:
        return f"shape {values.shape}"
    if values.dtype.kind == "f":
        return f"{values.dtype}"
    if values.dtype.kind == "M" and np.isnat(values).any():
        return "NaT"
    if values.dtype.kind not in "biuUSM":
        return f"objects of type {', '.join(sorted({type(value).__name__ for value in values.tolist()}))}"
    return None
