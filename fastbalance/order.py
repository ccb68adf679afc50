"""EpochOrder: position -> row, a pure function of (seed, epoch). `docs/order.md` is the contract.

This file fills the tables that describe a block; `fastbalance.kernels` computes the places from them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from .checks import whole
from .cursor import MAX_EPOCHS, MAX_SEEDS
from .errors import ArgumentError, explain
from .kernels import dispatch, locate, philox
from .plan import BalancePlan
from .split import BlockRange, block_of, golden, pieces


class HasClassRows(Protocol):
    def class_rows(self) -> np.ndarray: ...


class EpochOrder:
    """The order of one epoch. Slicing gives rows: `order[a:b]` is int64 `[b - a]`, on the device.

    Nothing is stored but O(n_classes) tables; any slice costs the same, wherever it starts.

    Args:
        dataset_or_class_rows: What names the rows: a `Dataset`, or unsigned integers `[n_rows]` sorted by class. None:
            only `places` works.
        plan: The epoch's plan.
        seed: In [0, 2^64).
        epoch: In [0, 2^32).
        device: Where the order is computed, and its tensors lie.

    Raises:
        ArgumentError: Seed or epoch out of range.
    """

    def __init__(
        self,
        dataset_or_class_rows: HasClassRows | np.ndarray | torch.Tensor | None,
        plan: BalancePlan,
        seed: int,
        epoch: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        seed, epoch = whole("seed", seed, 0, MAX_SEEDS), whole("epoch", epoch, 0, MAX_EPOCHS)
        self.plan, self.seed, self.epoch = plan, seed, epoch
        self.device = torch.device(device)
        self._kernels = dispatch.kernels_for(self.device)
        self._drawn_before = plan.drawn_before(epoch)
        counts = plan.class_counts
        self._classes = self._put(class_table(counts, np.cumsum(counts) - counts, np.arange(len(counts))))
        self._keys = round_keys(seed, self.device)
        self._class_rows = _as_class_rows(dataset_or_class_rows, plan, self.device)

    def __len__(self) -> int:
        return self.plan.epoch_rows

    def __getitem__(self, positions: slice) -> torch.Tensor:
        """Rows of a half-open range of positions, int64 `[b - a]`."""
        if not isinstance(positions, slice):
            raise ArgumentError(
                explain(
                    "order[...]",
                    got=repr(positions),
                    allowed="a slice [a:b] of positions",
                    fix="Take order[p : p + 1].",
                )
            )
        start, stop, step = positions.indices(len(self))
        if step != 1:
            raise ArgumentError(explain("order[a:b]", got=f"a step of {step}", allowed="slices without a step"))
        return self.rows(self.positions(start, stop))

    def rows(self, places: torch.Tensor) -> torch.Tensor:
        """The global row numbers of places, int64, of the same shape.

        Raises:
            ArgumentError: The order was made without class_rows.
        """
        if self._class_rows is None:
            raise ArgumentError(
                explain(
                    "EpochOrder",
                    got="no class_rows",
                    allowed="a Dataset or class_rows, to name rows",
                    fix="Or call places().",
                )
            )
        return self._kernels.take(self._class_rows, places.reshape(-1)).view(places.shape)

    def positions(self, start: int, stop: int) -> torch.Tensor:
        """Places of the positions [start, stop), int64 `[stop - start]`."""
        if stop <= start:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        size = self.plan.global_batch_rows
        first, last = start // size, (stop - 1) // size
        parts = [
            self.places(batch, n_batches, 0, block.batch_rows).reshape(-1)
            for block, batch, n_batches in pieces(self.plan, first, last + 1)
        ]
        places = torch.cat(parts) if len(parts) > 1 else parts[0]
        return places[start - first * size : stop - first * size]

    def places(self, batch: int, n_batches: int, start: int, stop: int) -> torch.Tensor:
        """Places of the rows of consecutive batches of one block: class-sorted row numbers.

        Args:
            batch: First batch of the epoch; `[batch, batch + n_batches)` must lie in one block.
            start, stop: Half-open range of places in each batch.

        Returns:
            int64 `[n_batches, stop - start]`, on the device.
        """
        found = block_of(self.plan, batch)
        out = torch.empty((n_batches, stop - start), dtype=torch.int64, device=self.device)
        self._kernels.order_block(out, self._block(found, batch - found.first_batch, start))
        return out

    def _block(self, block: BlockRange, first: int, column: int) -> locate.Block:
        before = self.plan.drawn(block.first_position)
        quotas = self.plan.drawn(block.end_position) - before
        passes, offsets = np.divmod(self._drawn_before + before, self.plan.class_counts)
        draws = np.stack([np.cumsum(quotas) - quotas, offsets, passes])
        numbers = block_numbers(block, self.epoch, self.seed, first, column)
        tables = [self._put(table) for table in (draws, strata(block.batch_rows), numbers)]
        return locate.Block(self._classes, tables[0], tables[1], self._keys, tables[2])

    def _put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def round_keys(seed: int, device: torch.device) -> torch.Tensor:
    """`locate.Block.keys`: words as int32 `[2, 24]`, because torch knows few operations on uint32."""
    keys = [dispatch.round_keys(seed, purpose) for purpose in (philox.SLOT_ROUND_KEYS, philox.STRATUM_ROUND_KEYS)]
    return torch.from_numpy(np.stack(keys).view(np.int32)).to(device)


def block_numbers(block: BlockRange, epoch: int, seed: int, first: int, column: int) -> np.ndarray:
    """`locate.Block.numbers`, int64 `[9]`: to compute the batches of a block from `first` on, from `column` on."""
    size = block.n_batches, *dispatch.grid(block.n_batches)
    return np.array([*size, block.number, epoch, seed & 0xFFFFFFFF, seed >> 32, first, column], np.int64)


def class_table(class_counts: np.ndarray, starts: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """`locate.Block.classes`, int64 `[6, n_classes]`.

    Args:
        class_counts: Rows of each class.
        starts: Place of its first row.
        class_ids: What keys its shuffle.
    """
    _, bits = np.frexp(class_counts.astype(np.float64))  # bit_length: counts stay below 2^52
    shifts = bits.astype(np.int64) // 2
    sides = 2 * ((class_counts + (2 << shifts) - 1) >> (shifts + 1))  # bijection.grid, for all classes at once
    magics = np.where(class_counts <= locate.MAGIC_ROWS, 0xFFFFFFFF // class_counts, 0)
    return np.stack([class_counts, starts, sides, shifts, magics, class_ids])


@lru_cache(maxsize=8)
def strata(batch_rows: int) -> np.ndarray:
    """The stratum of each place in a batch, int32 `[batch_rows]`."""
    return ((np.arange(batch_rows, dtype=np.int64) * golden(batch_rows)) % batch_rows).astype(np.int32)


def _as_class_rows(
    source: HasClassRows | np.ndarray | torch.Tensor | None, plan: BalancePlan, device: torch.device
) -> torch.Tensor | None:
    if source is None:
        return None
    rows = source.class_rows() if hasattr(source, "class_rows") else source
    if len(rows) != plan.n_rows:
        raise ArgumentError(
            explain("class_rows", got=f"{len(rows):,} rows", allowed=f"{plan.n_rows:,}, as many as the plan has")
        )
    tensor = torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
    return tensor.to(device)
