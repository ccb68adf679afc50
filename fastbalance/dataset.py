"""A source, its classes, and where their rows are: what plans and orders are made from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from .encoder import Encoder
from .engines import ScanEngine
from .errors import SourceError, explain
from .index import load_index, save_index
from .labels import LabelScan, scan_labels
from .source import Groups, Source, open_source

_SHOWN_CLASSES = 8


class Dataset:
    """Rows of classes.

    Attributes:
        source: The data.
        encoder: Maps label values to class ids.

    >>> data = Dataset.open({"x": [0.5, 1.5, 2.5], "y": ["no", "yes", "no"]}, label="y")
    >>> data.classes, data.class_counts.tolist(), data.class_rows().tolist()
    (['no', 'yes'], [2, 1], [0, 2, 1])
    """

    def __init__(self, source: Source, scan: LabelScan) -> None:
        self.source = source
        self.encoder = Encoder(scan.values)
        self._scan = scan

    @classmethod
    def open(
        cls,
        source: Any,
        label: str | Sequence[str],
        index: str | os.PathLike[str] | None = None,
        filesystem: Any = None,
        max_classes: int = 2**20,
        progress: Callable[[int, int], None] | None = None,
        engine: ScanEngine = "local",
    ) -> Dataset:
        """Open data, and scan its labels or load the scan that was saved.

        Args:
            source: Where the rows are (see `open_source`).
            label: A column, or several: then every distinct tuple of values is a class.
            index: Path of a file that `save_index` wrote; None: scan.
            filesystem: Where paths lie: a pyarrow or fsspec file system; None: local, or what the URI says.
            max_classes: Most classes that a scan accepts.
            progress: Called by a scan as `progress(groups_done, n_groups)` after each group.
            engine: Where groups are scanned: threads of this process; "ray"; or "ranks": every rank of
                torch.distributed's process group scans a part, and all must call.

        Raises:
            ArgumentError: An engine that there is not, or no process group.
            SourceError: The data cannot be found, opened or read.
            LabelError: The label columns cannot define classes.
            IndexFileError: The index is missing or damaged, or belongs to other data or another label.
        """
        opened = open_source(source, filesystem)
        if index is not None:
            return cls(opened, load_index(index, opened, label))
        return cls(opened, scan_labels(opened, label, max_classes, progress, engine))

    @property
    def schema(self) -> pa.Schema:
        """Columns of the data."""
        return self.source.schema

    @property
    def groups(self) -> Groups:
        """Groups of the data."""
        return self.source.groups

    @property
    def n_rows(self) -> int:
        """Rows of the data."""
        return self.source.n_rows

    @property
    def label(self) -> tuple[str, ...]:
        """Names of the label columns."""
        return self._scan.label

    @property
    def classes(self) -> list[Any]:
        """The label value of each class id, ascending; tuples where there are several label columns."""
        return self._scan.classes

    @property
    def class_counts(self) -> np.ndarray:
        """Rows of each class, int64 [n_classes], CPU."""
        return self._scan.class_counts

    @property
    def n_classes(self) -> int:
        """How many classes there are, at least 2."""
        return len(self._scan.class_counts)

    def group_class_counts(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes of a group: ids, int32 [n], ascending, and their rows in it, int64 [n], each >= 1."""
        entries = self._entries(group)
        return self._scan.group_classes[entries], self._scan.group_counts[entries]

    def first_slots(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes of a group: ids, int32 [n], ascending, and the slots of their first rows, int64 [n]."""
        entries = self._entries(group)
        return self._scan.group_classes[entries], self._first_slots[entries]

    def entries_by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The classes of all groups, sorted by class, then by group.

        Returns:
            Class ids, int32; groups, int64; rows of that class in that group, int64; `[n_entries]` each. The arrays are
            shared: do not write to them.
        """
        return self._entries_by_class

    @cached_property
    def _entries_by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        by_class, scan = self._by_class, self._scan
        groups = np.repeat(np.arange(len(self.groups)), np.diff(scan.group_ptr))
        return scan.group_classes[by_class], groups[by_class], scan.group_counts[by_class]

    def class_rows(self) -> np.ndarray:
        """Rows sorted by class, then by number; uint32 [n_rows], or uint64 above 2^32 rows.

        The array is shared: do not write to it.

        The first call reads the labels once more.

        Raises:
            SourceError: A group cannot be read, or its labels have changed since the scan.
        """
        return self._class_rows

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of label names, classes and their rows in each group, wherever the files lie."""
        digest = blake2b(repr((self.label, self._portable_values())).encode(), digest_size=16)
        for array in (self._scan.group_ptr, self._scan.group_classes, self._scan.group_counts):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()

    def save_index(self, path: str | os.PathLike[str]) -> None:
        """Save the scan to a local file, for `Dataset.open(..., index=path)`.

        Raises:
            IndexFileError: The source is in memory, or the file cannot be written.
        """
        save_index(path, self.source, self._scan)

    def __repr__(self) -> str:
        shown = zip(self.classes[:_SHOWN_CLASSES], self.class_counts.tolist(), strict=False)
        classes = ", ".join(f"{value!r}: {rows:,}" for value, rows in shown)
        more = f", and {self.n_classes - _SHOWN_CLASSES:,} more" if self.n_classes > _SHOWN_CLASSES else ""
        shards = f"{len(self.source.shards):,} shards, {len(self.groups):,} groups"
        label = ", ".join(self.label)
        return f"Dataset({self.n_rows:,} rows, {shards}, label={label!r}, classes {{{classes}{more}}})"

    def _entries(self, group: int) -> slice:
        return slice(*self._scan.group_ptr[group : group + 2].tolist())

    @cached_property
    def _by_class(self) -> np.ndarray:
        # numpy sorts 8 and 16 bit integers by counting.
        return np.argsort(self._scan.group_classes.astype(np.min_scalar_type(self.n_classes - 1)), kind="stable")

    @cached_property
    def _first_slots(self) -> np.ndarray:
        """The slot where each entry of the scan begins, int64 [n_entries]."""
        by_class = self._by_class
        counts = self._scan.group_counts[by_class]
        before_class = np.cumsum(self.class_counts) - self.class_counts
        slots = np.empty_like(counts)
        slots[by_class] = np.cumsum(counts) - counts - before_class[self._scan.group_classes[by_class]]
        return slots

    @cached_property
    def _class_rows(self) -> np.ndarray:
        rows = np.empty(self.n_rows, np.uint32 if self.n_rows <= 2**32 else np.uint64)
        before_class = np.cumsum(self.class_counts) - self.class_counts
        # numpy sorts 8 and 16 bit integers by counting.
        dtype = np.min_scalar_type(self.n_classes - 1)

        def place(group: int, table: pa.Table) -> None:
            ids = self.encoder.encode(table).astype(dtype)
            order = np.argsort(ids, kind="stable")
            classes, counts = self.group_class_counts(group)
            if not np.array_equal(ids[order], np.repeat(classes, counts)):
                shard = self.source.shards[self.groups.shard[group]].name
                fix = "Open the data again, and build its index again"
                raise SourceError(explain(shard, got="other labels", allowed="those of the scan", fix=fix))
            ends = np.cumsum(counts)
            starts = before_class[classes] + self.first_slots(group)[1] - (ends - counts)
            first_row = self.groups.first_row[group].astype(rows.dtype)
            rows[np.repeat(starts, counts) + np.arange(len(ids))] = order.astype(rows.dtype) + first_row

        for _ in self.source.scan(self.label, place):
            pass
        return rows

    def _portable_values(self) -> list[list[Any]]:
        """Class values whose repr depends on no library: times as integers."""
        columns = self._scan.values.columns
        plain = [
            column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
            if pa.types.is_temporal(column.type)
            else column
            for column in columns
        ]
        return [column.to_pylist() for column in plain]
