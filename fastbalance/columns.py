"""Arrow columns -> contiguous numpy arrays of the type that a tensor has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from .errors import ArgumentError, ColumnError, explain

TORCH_TYPES = {
    pa.bool_(): torch.bool,
    pa.int8(): torch.int8,
    pa.int16(): torch.int16,
    pa.int32(): torch.int32,
    pa.int64(): torch.int64,
    pa.uint8(): torch.uint8,
    pa.uint16(): torch.uint16,
    pa.uint32(): torch.uint32,
    pa.uint64(): torch.uint64,
    pa.float16(): torch.float16,
    pa.float32(): torch.float32,
    pa.float64(): torch.float64,
}
ARROW_TYPES = {dtype: kind for kind, dtype in TORCH_TYPES.items()}


def element_type(kind: pa.DataType) -> tuple[pa.DataType, tuple[int, ...]]:
    """Type of a column's elements, and the shape of one row."""
    if isinstance(kind, pa.FixedShapeTensorType):
        order = kind.permutation
        in_order = order is None or list(order) == sorted(order)  # else the values lie in another order than the shape
        return (kind.value_type, tuple(kind.shape)) if in_order else (kind, ())
    shape: tuple[int, ...] = ()
    while pa.types.is_fixed_size_list(kind):
        shape, kind = (*shape, kind.list_size), kind.value_type
    return kind, shape


def check_fill(name: str, value: Any, dtype: torch.dtype) -> None:
    """Refuse a value for nulls that the tensor's type does not hold as it is.

    Raises:
        ArgumentError: It would be null, rounded or out of range.
    """
    try:
        held = pa.scalar(value, ARROW_TYPES[dtype]).as_py()
        number = isinstance(value, (bool, int, float, np.number, np.bool_))
        exact = number and isinstance(held, bool) == isinstance(value, (bool, np.bool_))
        exact = exact and (held == value or dtype.is_floating_point)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        exact = False
    if not exact:
        raise ArgumentError(explain(f"fill_null[{name!r}]", got=repr(value), allowed=f"a value of {dtype}"))


def to_numpy(column: pa.ChunkedArray, name: str, dtype: torch.dtype, fill: Any, where: str) -> np.ndarray:
    """A column as a contiguous array `[n, ...]` of a tensor's type; a view where Arrow's memory serves.

    Args:
        name: Of the column, for messages.
        fill: Value to put for nulls; None: they are refused.
        where: Group and shard, for messages.

    Raises:
        ColumnError: Nulls, or a value that the type cannot hold.
    """
    array = (
        column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
    )
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    n_rows = len(array)
    while pa.types.is_fixed_size_list(array.type):
        if array.null_count:  # flatten() would leave such rows out
            fix = "Leave the column out, or fill its lists when the data is written"
            raise _null_error(name, array.null_count, where, fix)
        array = array.flatten()
    if array.null_count and fill is None:
        fix = f"Give fill_null={{{name!r}: value}}, or leave the column out with columns=[...]"
        raise _null_error(name, array.null_count, where, fix)
    array = _converted(array, dtype, f"column {name!r} ({where})")
    if array.null_count:
        array = array.fill_null(pa.scalar(fill, array.type))
    if dtype == torch.bool:
        array = array.cast(pa.uint8())  # from bits to bytes
    values = array.to_numpy(zero_copy_only=True)
    return values if len(values) == n_rows else values.reshape(n_rows, -1)


def decoded(
    column: pa.ChunkedArray,
    name: str,
    decode: Callable[[Any], Any],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    where: str,
) -> np.ndarray:
    """What a function of the user makes of each value, `[n, width]`, contiguous.

    Raises:
        ColumnError: Nulls; the function fails; or it gives another type or shape than for the first row of the data.
    """
    if column.null_count:
        fix = "Fill them when the data is written, or leave the column out with columns=[...]"
        raise _null_error(name, column.null_count, where, fix)
    rows = np.empty((len(column), math.prod(shape)), torch.empty(0, dtype=dtype).numpy().dtype)
    for k, value in enumerate(column):
        made = decode_one(name, decode, value.as_py(), f"row {k} of {where}")
        if made.dtype != dtype or tuple(made.shape) != shape:
            got = f"{made.dtype} {tuple(made.shape)} for row {k} of {where}"
            allowed = f"{dtype} {shape}, as for the first row of the data"
            raise ColumnError(explain(f"decode[{name!r}]", got=got, allowed=allowed))
        rows[k] = made.numpy().reshape(-1)
    return rows.view(np.uint8) if dtype == torch.bool else rows


def decode_one(name: str, decode: Callable[[Any], Any], value: Any, where: str) -> torch.Tensor:
    """What a function of the user makes of one value, as a contiguous CPU tensor.

    Raises:
        ColumnError: The function fails, or gives no tensor.
    """
    try:
        return torch.as_tensor(decode(value)).cpu().contiguous()
    except Exception as error:
        got, allowed = f"{type(error).__name__}: {error} ({where})", "a function that makes a tensor of every value"
        raise ColumnError(explain(f"decode[{name!r}]", got=got, allowed=allowed)) from error


def _converted(array: pa.Array, dtype: torch.dtype, subject: str) -> pa.Array:
    kind = ARROW_TYPES[dtype]
    if array.type == kind:
        return array
    try:
        # Arrow has no cast between bool and float16.
        plain = {pa.bool_(): pa.uint8(), pa.float16(): pa.float32()}.get(array.type, array.type)
        converted = array.cast(plain).cast(kind)
        if pa.types.is_floating(kind):  # Arrow lets these overflow to infinity
            new = _infinite(converted) > (_infinite(array) if pa.types.is_floating(array.type) else 0)
            if new:
                raise pa.ArrowInvalid("values beyond its range")
    except pa.ArrowInvalid as error:
        fix = "Give another type in dtypes"
        raise ColumnError(explain(subject, got=str(error), allowed=f"values that {dtype} can hold", fix=fix)) from error
    return converted


def _infinite(array: pa.Array) -> int:
    return int(np.isinf(array.to_numpy(zero_copy_only=False).astype(np.float64)).sum())


def _null_error(name: str, nulls: int, where: str, fix: str) -> ColumnError:
    return ColumnError(
        explain(f"column {name!r}", got=f"{nulls:,} nulls in {where}", allowed="no nulls in a tensor", fix=fix)
    )
