"""What the columns of the user's table are: their numbers, and reasons not to learn from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MANY = 10  # a value that stands for a class must have been seen that often, on average
_NEARLY = 0.9  # between the shares of a class's rows, and of all others, in which a value is missing
_ENOUGH = 100  # rows from which on values that are all different are called row ids


def as_numbers(column: pa.ChunkedArray) -> tuple[str, list[np.ndarray]]:
    """What a column is taken for, and its numbers, each float64 [n_rows]; no numbers where it cannot be used."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return as_numbers(column.cast(kind.value_type))
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        parts: list[Callable[[Any], Any]] = [pc.year, pc.month, pc.day_of_week]
        if pa.types.is_timestamp(kind):
            parts.append(pc.hour)
        return "date", [_floats(part(column)) for part in parts]
    if pa.types.is_time(kind):
        return "time of day", [_floats(pc.hour(column))]
    if (
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
    ):
        return ("bool" if pa.types.is_boolean(kind) else "number"), [_floats(column)]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        codes = column.combine_chunks().cast(pa.large_string()).dictionary_encode().indices
        return "category", [codes.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.float64)]
    if pa.types.is_fixed_size_list(kind) and (
        pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)
    ):
        return "numbers", [_floats(pc.list_element(column, k)) for k in range(kind.list_size)]
    return "unknown", []


def determines(keys: np.ndarray, y: np.ndarray) -> bool:
    """Whether every value of a column comes with one class only, while values come often enough to tell."""
    distinct = np.unique(keys)
    if len(distinct) * _MANY > len(keys):
        return False
    pairs = np.unique(np.stack([keys, y.astype(keys.dtype)]), axis=1)
    return pairs.shape[1] == len(distinct)


def problem(columns: Sequence[np.ndarray], kind: str, y: np.ndarray) -> str | None:
    """Why a column should not be learned from, if there is a reason."""
    if all(_is_constant(values) for values in columns):
        return "it has one value only"
    values = columns[0]
    missing = _missing(values, kind)
    if len(columns) == 1 and determines(np.where(missing, -np.inf, values), y):
        return "each of its values comes with one class only, so it gives the label away (a leak)"
    if missing.any() and determines(missing.astype(np.int64), y):
        return "it is missing exactly where the label has one value, so it gives the label away (a leak)"
    n_distinct = len(np.unique(values[~missing]))
    if kind == "category" and len(values) >= _ENOUGH and n_distinct > 0.9 * (~missing).sum():
        return "nearly every row has a value of its own: a row id or free text"
    whole = kind == "number" and not missing.any() and bool((values == np.round(values)).all())
    if whole and len(values) >= _ENOUGH and n_distinct == len(values):
        return "it is a whole number that no two rows share: a row id"
    return None


def nearly_tells(values: np.ndarray, kind: str, y: np.ndarray, classes: Sequence[str]) -> str | None:
    """Where a value is missing in nearly all rows of a class and hardly any other, or the reverse: that, in words."""
    missing = _missing(values, kind)
    if not missing.any():
        return None
    rows = np.bincount(y)
    found = np.bincount(y, missing, len(rows))
    own, others = found / rows, (found.sum() - found) / (len(y) - rows)
    gap = own - others
    c = int(np.argmax(gap) if gap.max() >= _NEARLY else np.argmin(gap))
    if abs(gap[c]) < _NEARLY:
        return None
    return (
        f"it is missing in {own[c]:.1%} of the rows of {classes[c]} and in {others[c]:.1%} of the others, as what is "
        "known only afterwards is (a leak?)"
    )


def _missing(values: np.ndarray, kind: str) -> np.ndarray:
    return values == -1 if kind == "category" else np.isnan(values)


def _is_constant(values: np.ndarray) -> bool:
    missing = np.isnan(values)
    return bool(missing.all()) or (not missing.any() and bool((values == values[0]).all()))


def _floats(column: Any) -> np.ndarray:
    """float64 [n_rows]; null, NaN and infinite are NaN."""
    values = column.cast(pa.float64()).to_numpy().astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)
