"""Labels of rows, given or found in a data set -> classes, and the class id of each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from .errors import LabelError, explain

LABELS = "integers, bools or strings, one for each row"
LABEL = "the name of a column, or a function of the data set that returns the label of each row"


def row_classes(data: Any, label: str | Callable[[Any], Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distinct labels in ascending order, `[n_classes]`, and the class id of each row, int64 `[n_rows]`.

    Args:
        data: The label of each row; with `label`, the data set that has them.
        label: A column, or a function of the data set. No row is decoded.

    Raises:
        LabelError: `label` finds no labels, or they do not make at least two classes.
    """
    subject = f"label {label!r}" if isinstance(label, str) else "labels" if label is None else "label"
    values, problem = _as_array(_labels_of(data, label))
    problem = problem or _problem_of(values)
    if problem is not None:
        fix = "Map them to class numbers first; a float label needs bins."
        if " null" in problem:
            fix = "Drop these rows, or give them a label of their own."
        raise LabelError(explain(subject, got=problem, allowed=LABELS, fix=fix))
    if callable(label):
        _check_length(data, len(values))
    classes, class_ids = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        got, allowed = f"one class only, {classes.tolist()[0]!r}", "two classes or more: one has nothing to balance"
        raise LabelError(explain(subject, got=got, allowed=allowed))
    return classes, class_ids


def _labels_of(data: Any, label: str | Callable[[Any], Any] | None) -> Any:
    """The label of each row, as the data set has them.

    Raises:
        LabelError: A data set without `label`, or a column that is not there.
    """
    names = _column_names(data)
    if label is None:
        if names is None and not isinstance(data, Dataset):
            return _unwrapped(data)
        fix = 'Say where its labels are: label="y", or label=lambda data: data.targets.'
        allowed = "the label of each row, or a data set with label="
        raise LabelError(explain("labels", got=f"a data set ({_kind(data)}) without label=", allowed=allowed, fix=fix))
    if isinstance(label, str):
        return _column(data, label, names)
    if not callable(label):
        raise LabelError(explain("label", got=repr(label), allowed=LABEL))
    return _unwrapped(label(data))


def _check_length(data: Any, n_labels: int) -> None:
    """A subset is a data set around a longer one: its rows would get the labels of others."""
    if hasattr(data, "__len__") and not isinstance(data, Mapping) and len(data) != n_labels:
        got = f"{n_labels:,} labels for a data set ({_kind(data)}) of {len(data):,} rows"
        fix = "Of a Subset: label=lambda data: [data.dataset.targets[row] for row in data.indices]."
        raise LabelError(explain("label", got=got, allowed="one for each row", fix=fix))


def _column_names(data: Any) -> list[str] | None:
    """Of a dict, table, data frame or Hugging Face data set; None for everything else."""
    if isinstance(data, Mapping):
        return list(data)
    if isinstance(data, Dataset) or not hasattr(data, "__len__"):  # what has no length has no row numbers
        return None
    names = getattr(data, "column_names", getattr(data, "columns", None))
    return None if names is None else list(names)


def _column(data: Any, label: str, names: list[str] | None) -> Any:
    if names is None:
        fix = f"Give a function, as in label=lambda data: data.{label if label.isidentifier() else 'targets'}."
        allowed = "the name of a column of a dict, pyarrow.Table, pandas.DataFrame or datasets.Dataset"
        raise LabelError(
            explain("label", got=f"{label!r} for {_kind(data)}, which has no columns", allowed=allowed, fix=fix)
        )
    if names.count(label) != 1:
        got = f"{names.count(label) or 'no'} column{'s' * (label in names)} {label!r}"
        raise LabelError(explain("label", got=got, allowed=f"one of {names}"))
    if hasattr(data, "with_format"):  # Hugging Face: as Arrow, past what the user's own format or transform does
        return data.with_format("arrow")[label]
    return data[label]


def _unwrapped(labels: Any) -> Any:
    """A Hugging Face column as Arrow: 10^6 rows take 0.03 s instead of 10 s one by one. Others as they are.

    What a transform makes of a column is asked for row by row: it may be something else.
    """
    if type(labels).__module__.partition(".")[0] != "datasets" or type(labels).__name__ != "Column":
        return labels
    source = labels.source
    plain = hasattr(source, "with_format") and source.format["type"] != "custom"
    return source.with_format("arrow")[labels.column_name] if plain else labels


def _as_array(labels: Any) -> tuple[np.ndarray, str | None]:
    """Labels as an array, and what is wrong with them. Python objects must all be of one type."""
    if isinstance(labels, torch.Tensor):
        if labels.dtype.is_floating_point:  # said before numpy is asked, which has no bfloat16
            return np.empty(0), str(labels.dtype).removeprefix("torch.")
        return labels.detach().cpu().numpy(), None
    if isinstance(labels, str | bytes) or not (isinstance(labels, Iterable) or hasattr(labels, "__getitem__")):
        return np.empty(0), f"one {_kind(labels)}"
    problem = _nulls(labels)
    array = np.asarray(labels) if hasattr(labels, "__array__") and problem is None else None
    if problem is not None or (array is not None and array.dtype.kind not in "OT"):
        return np.empty(0) if array is None else array, problem
    items = list(labels) if array is None else array.tolist()
    kinds = sorted({_kind(item) for item in items})
    if kinds == ["str"]:
        return np.array(items, np.str_), None
    if "NoneType" in kinds:
        return np.empty(0), _counted(np.array([item is None for item in items]))
    if len(kinds) > 1 and not all(isinstance(item, (int, np.integer)) for item in items):
        return np.empty(0), f"objects of type {', '.join(kinds)}"
    try:
        return np.array(items), None
    except ValueError as error:
        return np.empty(0), str(error)


def _nulls(labels: Any) -> str | None:
    """Nulls of Arrow and pandas, counted before numpy makes floats of integers that have some."""
    if isinstance(labels, pa.Array | pa.ChunkedArray):
        return _counted(labels.is_null().to_numpy(zero_copy_only=False)) if labels.null_count else None
    if type(labels).__module__.partition(".")[0] != "pandas" or not hasattr(labels, "isna"):
        return None
    missing = np.asarray(labels.isna())
    return _counted(missing) if missing.ndim == 1 and missing.any() else None


def _counted(missing: np.ndarray) -> str:
    n_missing = int(missing.sum())
    return f"{n_missing:,} null{'s' * (n_missing > 1)} in {len(missing):,} rows, first in row {missing.argmax():,}"


def _problem_of(values: np.ndarray) -> str | None:
    if values.ndim != 1 or values.size == 0:
        return f"shape {values.shape}"
    if values.dtype.kind == "f":
        return f"{values.dtype}"
    if values.dtype.kind == "M" and np.isnat(values).any():
        return "NaT"
    if values.dtype.kind not in "biuUSM":
        return f"objects of type {', '.join(sorted({_kind(value) for value in values.tolist()}))}"
    return None


def _kind(value: Any) -> str:
    return type(value).__name__
