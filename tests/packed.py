"""Rows to pack into records: items of awkward widths, and awkward numbers of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

DTYPES = {1: np.uint8, 2: np.uint16, 4: np.float32, 8: np.int64}


class Packed(NamedTuple):
    """`n` rows of columns: the bytes of a value, and how many values make an item."""

    n: int
    columns: tuple[tuple[int, int], ...]

    def by(self, pack: Callable[..., None]) -> torch.Tensor:
        """The records, uint8 `[n + 3, record_bytes]`, after `pack`; 0xAB where no row went. Every fifth is left out."""
        random = np.random.default_rng(self.n)
        items, offsets, end = [], [], 0
        for size, count in self.columns:
            offsets.append(-(-end // size) * size)
            end = offsets[-1] + size * count
            values = random.integers(0, 256, self.n * size * count, np.uint8).view(DTYPES[size])
            items.append(values if count == 1 else values.reshape(self.n, count))
        records = torch.full((self.n + 3, -(-end // 16) * 16), 0xAB, dtype=torch.uint8)
        places = random.permutation(self.n + 3)[: self.n]
        places[::5] = -1
        pack(records, places, items, offsets)
        return records


# Items of 1, 2, 3, 4, 5, 8, 12, 16, 20 and 128 bytes, with gaps between them and behind them.
ALL = ((1, 1), (2, 1), (1, 3), (4, 1), (1, 5), (8, 1), (4, 3), (8, 2), (4, 5), (1, 128))
# What allows words of 2, 4 and 8 bytes.
EVEN, FOURS, EIGHTS = ((2, 1), (2, 3), (8, 1)), ((4, 1), (4, 3), (8, 2), (4, 5)), ((8, 1), (8, 16))
PACKED = [Packed(n, ALL) for n in (0, 1, 31, 257)]
PACKED += [Packed(n, columns) for n in (1, 31, 257) for columns in (EVEN, FOURS, EIGHTS, ((1, 1),), ((4, 0), (4, 1)))]
