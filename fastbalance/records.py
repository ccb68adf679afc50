"""Row records: where each column lies in them, and how Arrow columns become their parts.

A record is one row: its columns side by side, each aligned, padded to a multiple of 16 bytes. Gathering a row is
one contiguous copy, and a batch's columns are views of the gathered records.

    record   | x: float32 [3]       | pad | y: int64 | class_id: int64 | pad to 16 |
    offset   0                      12    16         24                32
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from .checks import names_of
from .columns import ARROW_TYPES, TORCH_TYPES, check_fill, decoded, element_type, to_numpy
from .errors import ArgumentError, ColumnError, explain
from .ragged import RaggedField, is_bytes, ragged_type

EXTRAS = ("class_id", "row", "weight", "seed")
_OF_DRAWS = ("seed",)  # not of rows: records do not have them
_RECORD_ALIGN = 16  # bytes of the widest load that a GPU thread has


@dataclass(frozen=True)
class Field:
    """One tensor of a batch, and where it lies in a record."""

    name: str
    columns: tuple[str, ...]
    """Columns of the data that it is made of; empty for an extra."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Shape of one row: () for a scalar, [n] for columns side by side or a list column."""
    offset: int
    """Of its first byte in the record."""
    decode: Callable[[Any], Any] | None = None
    """Makes the tensor of a row of a value of the column; None: the column's values are numbers."""

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class RecordLayout:
    """How a row becomes a record, and records become the tensors of a batch."""

    fields: tuple[Field, ...]
    record_bytes: int
    fill_null: Mapping[str, Any]
    ragged: tuple[RaggedField, ...] = ()
    """Columns whose rows differ in length: they do not lie in the record."""

    @property
    def columns(self) -> list[str]:
        """Columns that must be read."""
        columns = [*(name for field in self.fields for name in field.columns), *(field.column for field in self.ragged)]
        return list(dict.fromkeys(columns))

    @property
    def extras(self) -> list[str]:
        """Fields that the data does not have."""
        return [field.name for field in self.fields if not field.columns]

    @property
    def is_costly(self) -> bool:
        """Whether a row that is not wanted had better not be made into a record."""
        return bool(self.ragged) or any(field.decode for field in self.fields)

    def views(self, records: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors of a batch: views of its records, uint8 `[n, record_bytes]`; no copies."""
        batch = {}
        for field in self.fields:
            if not field.n_bytes:  # a list column of length 0
                batch[field.name] = records.new_empty((len(records), *field.shape), dtype=field.dtype)
                continue
            column = records[:, field.offset : field.offset + field.n_bytes].view(field.dtype)
            batch[field.name] = column.view(len(records), *field.shape) if field.shape else column.squeeze(1)
        return batch

    def arrays(
        self, table: pa.Table, extras: Mapping[str, np.ndarray], where: str
    ) -> tuple[list[np.ndarray], list[int]]:
        """The parts of the records of a table: contiguous arrays of n items, and their offsets.

        Raises:
            ColumnError: Nulls without a fill value, or a value that the wanted dtype cannot hold.
        """
        arrays, offsets = [], []
        for field in self.fields:
            if not field.columns:
                arrays.append(extras[field.name])
                offsets.append(field.offset)
            offset = field.offset
            for name in field.columns:
                if field.decode is not None:
                    arrays.append(decoded(table.column(name), name, field.decode, field.dtype, field.shape, where))
                    offsets.append(offset)
                    continue
                column = to_numpy(table.column(name), name, field.dtype, self.fill_null.get(name), where)
                arrays.append(column)
                offsets.append(offset)
                offset += column.nbytes // max(1, len(table))
        return arrays, offsets


def make_layout(
    schema: pa.Schema,
    columns: Sequence[str] | Mapping[str, str | Sequence[str]] | None,
    extras: Sequence[str] = (),
    dtypes: Mapping[str, torch.dtype] | None = None,
    fill_null: Mapping[str, Any] | None = None,
    decode: Mapping[str, tuple[Callable[[Any], Any], torch.Tensor]] | None = None,
) -> RecordLayout:
    """Lay out the wanted columns in a record.

    Args:
        schema: Columns of the data.
        columns: Names; or a mapping from a tensor's name to one column, or to several that lie side by side. None:
            every column that can be a tensor.
        extras: int64 fields that the arena fills: "class_id", "row", and "weight" (a class id, to look it up by);
            others get no field.
        dtypes: Types that tensors are converted to while loading, by the tensor's name.
        fill_null: Values to put for nulls, by the column's name.
        decode: By the column's name, what makes a tensor of a value, and what came of the first row: its type and shape
            are those of all rows.

    Raises:
        ColumnError: A column is missing, of a type that no tensor has, or of another type than those beside it.
        ArgumentError: A name that is no tensor, or used twice.
    """
    dtypes, fill_null = _checked_mapping("dtypes", dtypes), _checked_mapping("fill_null", fill_null)
    wanted = _wanted(schema, columns, decode or {})
    _check_names(wanted, extras, dtypes, fill_null)
    fields, ragged, offset = [], [], 0
    for name, parts in wanted.items():
        if len(parts) == 1 and parts[0] in (decode or {}):
            function, example = (decode or {})[parts[0]]
            offset = _align(offset, min(example.dtype.itemsize, _RECORD_ALIGN))
            fields.append(Field(name, parts, example.dtype, tuple(example.shape), offset, function))
            offset += fields[-1].n_bytes
            continue
        kind = ragged_type(schema.field(parts[0]).type) if len(parts) == 1 and parts[0] in schema.names else None
        if kind is not None:
            ragged.append(RaggedField(name, parts[0], kind, is_bytes=is_bytes(schema.field(parts[0]).type)))
            continue
        matrix = isinstance(columns, Mapping) and not isinstance(columns[name], str)
        dtype, shape = _tensor_type(schema, name, parts, dtypes.get(name), matrix)
        for part in parts:
            if part in fill_null:
                check_fill(part, fill_null[part], dtype)
        offset = _align(offset, min(dtype.itemsize, _RECORD_ALIGN))
        fields.append(Field(name, parts, dtype, shape, offset))
        offset += fields[-1].n_bytes
    for name in extras:
        if name in _OF_DRAWS:
            continue
        offset = _align(offset, 8)
        fields.append(Field(name, (), torch.int64, (), offset))
        offset += 8
    record_bytes = max(_RECORD_ALIGN, _align(offset, _RECORD_ALIGN))
    return RecordLayout(tuple(fields), record_bytes, fill_null, tuple(ragged))


def _align(offset: int, to: int) -> int:
    return -(-offset // to) * to


def _wanted(schema: pa.Schema, columns: Any, decode: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    if columns is None:
        fixed = {field.name for field in schema if element_type(field.type)[0] in TORCH_TYPES}
        names = [name for name in schema.names if name in fixed or name in decode]
        return {name: (name,) for name in names}
    if isinstance(columns, str):
        raise ArgumentError(
            explain(
                "columns",
                got=repr(columns),
                allowed=f"a list, as [{columns!r}], or a mapping, as {{'x': [{columns!r}]}}",
            )
        )
    if not isinstance(columns, Mapping):
        return {name: (name,) for name in names_of("columns", columns, "names of columns, or a mapping")}
    return {
        name: names_of(f"columns[{name!r}]", parts, "the name of a column, or a list of names")
        for name, parts in columns.items()
    }


def _checked_mapping(argument: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ArgumentError(explain(argument, got=repr(value), allowed="a mapping from names to values, or None"))
    return dict(value or {})


def _check_names(wanted: Mapping, extras: Sequence[str], dtypes: Mapping, fill_null: Mapping) -> None:
    if not wanted and not extras:
        raise ArgumentError(explain("columns", got="none", allowed="at least one column or extra"))
    empty = [name for name, parts in wanted.items() if not parts]
    if empty:
        raise ArgumentError(explain(f"columns[{empty[0]!r}]", got="an empty list", allowed="at least one column"))
    clash = [name for name in extras if name in wanted]
    if clash:
        raise ArgumentError(
            explain(
                "columns",
                got=f"a tensor named {clash[0]!r}",
                allowed="names other than the extras'",
                fix="Rename it, or leave the extra out.",
            )
        )
    columns = {part for parts in wanted.values() for part in parts}
    for argument, names, known in (("dtypes", dtypes, set(wanted)), ("fill_null", fill_null, columns)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ArgumentError(explain(argument, got=repr(unknown[0]), allowed=f"one of {sorted(known)}"))


def _tensor_type(
    schema: pa.Schema, name: str, parts: tuple[str, ...], dtype: torch.dtype | None, matrix: bool
) -> tuple[torch.dtype, tuple[int, ...]]:
    found = []
    for part in parts:
        if part not in schema.names:
            raise ColumnError(
                explain(f"columns[{name!r}]", got=repr(part), allowed=f"a column of the data: {schema.names}")
            )
        kind, shape = element_type(schema.field(part).type)
        if kind not in TORCH_TYPES:
            raise ColumnError(
                explain(
                    f"column {part!r}",
                    got=f"type {schema.field(part).type}",
                    allowed="numbers, bools, fixed-size lists of them; alone also strings, binary, lists of numbers",
                    fix="Leave it out with columns=[...], give a function in decode, or convert it before.",
                )
            )
        found.append((part, TORCH_TYPES[kind], shape))
    if dtype is not None and dtype not in ARROW_TYPES:
        raise ArgumentError(explain(f"dtypes[{name!r}]", got=dtype, allowed=", ".join(map(str, ARROW_TYPES))))
    types = {kind for _, kind, _ in found}
    if dtype is None and len(types) > 1:
        listed = ", ".join(f"{part} {kind}" for part, kind, _ in found)
        raise ColumnError(
            explain(
                f"columns[{name!r}]",
                got=f"columns of different types: {listed}",
                allowed="one type for all columns of a tensor",
                fix=f"Convert them while loading: dtypes={{{name!r}: torch.float32}}.",
            )
        )
    width = sum(math.prod(shape) for _, _, shape in found)
    return dtype or types.pop(), (width,) if matrix else found[0][2]
