"""Data in memory (tables, dicts of arrays or tensors, data frames, Hugging Face data sets) -> an Arrow table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from .errors import SourceError, explain


def as_table(source: Any) -> pa.Table | None:
    """The Arrow table of data in memory; None where `source` is something else."""
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    module = type(source).__module__.partition(".")[0]
    if module == "pandas":
        return pa.Table.from_pandas(source, preserve_index=False)
    if module == "datasets":
        return _hugging_face(source)
    if not isinstance(source, Mapping):
        return None
    columns = {str(name): _column(str(name), values) for name, values in source.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise SourceError(explain("source", got=f"columns of {lengths} rows", allowed="columns of one length"))
    return pa.table(columns)


def _hugging_face(source: Any) -> pa.Table:
    kind = type(source).__name__
    if not hasattr(source, "data") or isinstance(source, Mapping):
        fix = "Take one split of a DatasetDict; save an IterableDataset as Parquet"
        raise SourceError(explain("source", got=f"datasets.{kind}", allowed="datasets.Dataset", fix=fix))
    if source._indices is not None:
        fix = "Call .flatten_indices() first, or pass the data set as it was before"
        got = "a datasets.Dataset that was shuffled, selected or filtered"
        raise SourceError(explain("source", got=got, allowed="rows in the order of the table", fix=fix))
    return source.data.table


def _column(name: str, values: Any) -> Any:
    """One column of a dict as an Arrow array, sharing the memory of numbers."""
    if isinstance(values, torch.Tensor) and values.device.type != "cpu":
        raise SourceError(explain(f"column {name!r}", got=values.device, allowed="CPU tensors", fix="Call .cpu()"))
    try:
        values = values.detach().numpy() if isinstance(values, torch.Tensor) else values
        if not isinstance(values, np.ndarray):
            return values if isinstance(values, pa.ChunkedArray) else pa.array(values)
        if 0 in values.shape[1:] or values.ndim == 0:
            raise pa.ArrowInvalid(f"shape {values.shape}")
        column = pa.array(np.ascontiguousarray(values).reshape(-1))
        for size in values.shape[:0:-1]:
            column = pa.FixedSizeListArray.from_arrays(column, size)
        return column
    except (pa.ArrowException, TypeError) as error:
        fix = "Convert it, say to float32 or int64"
        allowed = "arrays of at least one dimension, of a type that Arrow has"
        raise SourceError(explain(f"column {name!r}", got=error, allowed=allowed, fix=fix)) from error
