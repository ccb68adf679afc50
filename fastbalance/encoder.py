"""Label values -> class ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import SourceError, explain

TABLE_SPAN = 2**16  # integers in a range up to this are counted and looked up in a table, not hashed
# Temporary arrays of megabytes cost more in page faults than the work on them, so rows are encoded in blocks:
# 2^20 rows of (bool, int8) take 7 ms instead of 15.
_ENCODE_ROWS = 2**18


class Encoder:
    """Label values -> class ids.

    Column by column: the value's rank in its column, and then the rank of (id so far, that rank) among the
    pairs that occur. So no intermediate number exceeds n_classes squared, however many columns there are.
    """

    def __init__(self, values: pa.Table) -> None:
        """Take the distinct label values, ascending, one row per class (`LabelScan.values`)."""
        self.label = tuple(values.column_names)
        # A look-up of values in an Arrow set hashes the whole set first, so blocks grow with the classes.
        self._block_rows = max(_ENCODE_ROWS, 8 * len(values))
        self._steps: list[tuple[_Ranks, int, _Ranks]] = []
        ids = np.zeros(len(values), np.int64)
        for column in values.columns:
            distinct = pc.unique(column)
            ranks = _Ranks(distinct.take(pc.sort_indices(distinct)))
            seen, pair_ids = np.unique(ids * len(distinct) + ranks(column), return_inverse=True)
            self._steps.append((ranks, len(distinct), _Ranks(pa.array(seen))))
            ids = pair_ids

    def encode(self, table: pa.Table) -> np.ndarray:
        """Class ids of the rows of a table that has the label columns, int32 [n_rows].

        Raises:
            SourceError: A value is none of the classes.
        """
        ids = np.empty(len(table), np.int32)
        for start in range(0, len(table), self._block_rows):
            block = table.slice(start, self._block_rows)
            ids[start : start + len(block)] = self._encode_block(block)
        return ids

    def _encode_block(self, table: pa.Table) -> np.ndarray:
        ids: np.ndarray | None = None
        for name, (ranks, radix, pairs) in zip(self.label, self._steps, strict=True):
            codes = ranks(table.column(name))
            self._check(codes, table)
            if ids is None:
                ids = codes  # of the first column every rank occurs, so ranks are ids: no second look-up
                continue
            ids = pairs(pa.chunked_array([ids.astype(np.int64) * radix + codes]))
            self._check(ids, table)
        assert ids is not None, "there is at least one label column"
        return ids

    def _check(self, ids: np.ndarray, table: pa.Table) -> None:
        if ids.size and ids.min() < 0:
            row = table.select(self.label).slice(int(np.argmin(ids)), 1).to_pylist()[0]
            fix = "A shard has changed since: scan the labels again"
            got = f"the value {shown(row)}"
            raise SourceError(explain(subject_of(self.label), got=got, allowed="what the scan saw", fix=fix))


class _Ranks:
    """Ranks of values among sorted distinct ones; -1 for others and nulls."""

    def __init__(self, values: pa.Array) -> None:
        self._values = values
        numbers = numbers_of(values)
        self._table: np.ndarray | None = None
        if numbers is not None and len(numbers) and int(numbers[-1]) - int(numbers[0]) < TABLE_SPAN:
            self._first = numbers[:1]
            self._table = np.full(int(numbers[-1]) - int(numbers[0]) + 1, -1, np.int32)
            self._table[offsets_from(numbers, self._first)] = np.arange(len(numbers), dtype=np.int32)

    def __call__(self, column: pa.ChunkedArray) -> np.ndarray:
        """Ranks of the values of a column, int32 [n_rows]."""
        parts = [self._chunk(chunk) for chunk in column.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.int32), *parts])

    def _chunk(self, chunk: pa.Array) -> np.ndarray:
        if pa.types.is_dictionary(chunk.type):
            ranks = np.append(self._chunk(chunk.dictionary), np.int32(-1))
            return ranks[chunk.indices.fill_null(len(ranks) - 1).to_numpy()]
        numbers = numbers_of(chunk)
        if self._table is None or numbers is None:
            found = pc.index_in(chunk.cast(self._values.type), value_set=self._values)
            return found.fill_null(-1).to_numpy()
        offsets = offsets_from(numbers, self._first)
        if offsets.size and offsets.max() >= len(self._table):
            return np.append(self._table, np.int32(-1))[np.minimum(offsets, len(self._table)).astype(np.int64)]
        # As uint64 they would be copied to int64 first: 2.0 ms instead of 0.8 for 2^20 rows.
        return self._table.take(offsets.view(np.int64) if offsets.itemsize == 8 else offsets)


def numbers_of(chunk: pa.Array) -> np.ndarray | None:
    """Integers behind bools, integers, dates and times; None for other types, and where there are nulls."""
    kind = chunk.type
    if chunk.null_count:
        return None
    if pa.types.is_boolean(kind):
        return chunk.cast(pa.uint8()).to_numpy()
    if pa.types.is_temporal(kind):
        return chunk.view(pa.int32() if kind.bit_width == 32 else pa.int64()).to_numpy()
    return chunk.to_numpy() if pa.types.is_integer(kind) else None


def offsets_from(numbers: np.ndarray, first: np.ndarray) -> np.ndarray:
    """`numbers - first` as unsigned integers of that width: exact, where signed ones could overflow."""
    unsigned = f"u{numbers.itemsize}"
    return numbers.view(unsigned) - first.view(unsigned)


def subject_of(names: Sequence[str]) -> str:
    return f"label column{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"


def shown(row: dict[str, Any]) -> str:
    return repr(next(iter(row.values())) if len(row) == 1 else tuple(row.values()))
