"""Columns whose rows differ in length: strings, binary and lists, as (values, offsets).

Their bytes stay where Arrow decoded them, on the host; a table knows for each record's place where its bytes are. A
batch copies them together, and takes them to the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from .columns import TORCH_TYPES
from .errors import ColumnError, explain
from .kernels import cpu_rows


class Ragged(NamedTuple):
    """Rows of different lengths, one after the other: row i is `values[offsets[i] : offsets[i + 1]]`."""

    values: torch.Tensor
    """Elements of all rows; uint8 for strings (UTF-8) and binary."""
    offsets: torch.Tensor
    """int64 `[n + 1]`, from 0."""

    def split(self, rows: int) -> list[Ragged]:
        """Parts of so many rows; the last may have fewer. On the CPU only."""
        offsets = self.offsets
        parts = []
        for start in range(0, len(offsets) - 1, rows):
            mine = offsets[start : start + rows + 1]
            parts.append(Ragged(self.values[mine[0] : mine[-1]], mine - mine[0]))
        return parts

    def to(self, device: torch.device) -> Ragged:
        return Ragged(self.values.to(device, non_blocking=True), self.offsets.to(device, non_blocking=True))


@dataclass(frozen=True)
class RaggedField:
    """A tensor of a batch that is no matrix, and the column that it is made of."""

    name: str
    column: str
    dtype: torch.dtype
    is_bytes: bool
    """Strings and binary, not lists."""


def ragged_type(kind: pa.DataType) -> torch.dtype | None:
    """Type of the elements of a column of strings, binary or lists of numbers; None for other columns."""
    if pa.types.is_dictionary(kind):
        return ragged_type(kind.value_type)
    if is_bytes(kind):
        return torch.uint8
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and kind.value_type != pa.bool_():
        return TORCH_TYPES.get(kind.value_type)
    return None


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds strings or binary, and not lists."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _is_text(kind) or any(
        is_type(kind) for is_type in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


class RaggedStore:
    """Where the bytes of every record's ragged columns are, and a hand on them.

    Args:
        n_rows: Records.
    """

    def __init__(self, fields: Sequence[RaggedField], n_rows: int) -> None:
        self.fields = tuple(fields)
        self._where = np.zeros((len(self.fields), n_rows, 2), np.int64)  # address, bytes

    def put(self, places: np.ndarray, table: pa.Table, fill_null: Any, where: str) -> list[pa.Array]:
        """Note where the rows of a table are. The arrays that are returned must be kept as long as the rows are.

        Args:
            places: int64 `[n]`, one for each row.
            fill_null: Values to put for nulls, by column.
            where: Group and shard, for messages.

        Raises:
            ColumnError: Nulls without a fill value.
        """
        held = []
        for field, known in zip(self.fields, self._where, strict=True):
            array = _compact(table.column(field.column), field, fill_null.get(field.column), where)
            offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, 8 * array.offset)
            values = array.buffers()[2] if field.is_bytes else array.values.buffers()[1]
            size = field.dtype.itemsize
            skip = 0 if field.is_bytes else array.values.offset
            known[places, 0] = (values.address if values else 0) + (offsets[:-1] + skip) * size
            known[places, 1] = np.diff(offsets) * size
            held.append(array)
        return held

    def gather(self, places: np.ndarray) -> dict[str, Ragged]:
        """The rows at places, int64 `[n]`; tensors on the CPU."""
        gathered = {}
        for field, known in zip(self.fields, self._where, strict=True):
            addresses, sizes = known[places].T
            ends = np.concatenate([[0], np.cumsum(sizes)])
            values = torch.empty(int(ends[-1]), dtype=torch.uint8)
            cpu_rows.gather_bytes(values, addresses, ends)
            offsets = torch.from_numpy(ends // field.dtype.itemsize)
            gathered[field.name] = Ragged(values.view(field.dtype), offsets)
        return gathered


def _compact(column: pa.ChunkedArray, field: RaggedField, fill: Any, where: str) -> pa.Array:
    """The column as one array with 64-bit offsets, in memory of its own."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    wide = pa.large_binary() if field.is_bytes else pa.large_list(kind.value_type)
    column = column.cast(pa.large_string()).cast(wide) if _is_text(kind) else column.cast(wide)
    if column.null_count and fill is not None:
        fill = fill.encode() if isinstance(fill, str) else fill
        column = column.fill_null(pa.scalar(fill, wide)) if field.is_bytes else column
    array = pa.concat_arrays(column.chunks or [pa.array([], wide)])  # one chunk alone is not copied:
    array = array.take(pa.array(np.arange(len(array)))) if column.num_chunks == 1 else array
    nulls = array.null_count or (0 if field.is_bytes else array.values.null_count)
    if nulls:
        fix = "Fill them when the data is written, or leave the column out with columns=[...]"
        if field.is_bytes:
            fix = f"Give fill_null={{{field.column!r}: value}}, or leave the column out with columns=[...]"
        raise ColumnError(
            explain(f"column {field.column!r}", got=f"{nulls:,} nulls in {where}", allowed="no nulls", fix=fix)
        )
    return array
