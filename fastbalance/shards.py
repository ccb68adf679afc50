"""A file, or a table in memory, as a shard: groups of rows that can be read. The only file that knows file formats.

The groups of a shard (Parquet row groups, Arrow IPC record batches, slices of a table) are the unit of reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from .errors import SourceError, explain
from .retries import READ_ERRORS, GaveUpError, is_denied, is_local, mend, patiently

FORMATS = "Parquet, Arrow IPC files, Arrow IPC streams"
_TAIL_BYTES = 2**16  # most Parquet footers fit: one request gives the magic bytes and the footer
_SAMPLED_GROUPS = 64
_MAPPED = pafs.LocalFileSystem(use_mmap=True)


class Shard:
    """One file, or one table in memory; safe to read from several threads at once.

    Every read opens a handle of its own, so no file descriptor is held between reads. Opening a local file
    takes 0.07 ms; reading 65,536 rows of one bool column 0.3 ms, of 32 float columns 9 ms.

    Attributes:
        name: The path, or what stands for one ("<table>").
        schema: Arrow schema, without metadata.
        group_rows: int64 [n_groups], CPU. Rows of each group; 0 is possible.
        is_local: Whether no network lies between; errors that pass are waited out where one does.
    """

    is_local = True

    def __init__(self, name: str, schema: pa.Schema, group_rows: Sequence[int]) -> None:
        self.name = name
        self.schema = schema.remove_metadata()
        self.group_rows = np.array(group_rows, np.int64)

    def read(self, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Read whole groups: their rows in the order of `groups`, the columns in the order of `columns`.

        Args:
            groups: Numbers within the shard, at least one.
            columns: Names, at least one: without a column an Arrow table has no rows.

        Raises:
            SourceError: A group cannot be read, the file has changed since it was opened, or its store did not answer
                in several tries.
        """
        part = f"groups {list(groups)}"
        try:
            if self.is_local:
                table = self._read(list(groups), list(columns))
            else:
                table = patiently(f"{self.name}, {part}", self._read, list(groups), list(columns))
            table = table.select(columns).replace_schema_metadata()
            table.validate()
        except READ_ERRORS as error:
            store_at_fault = not self.is_local and (isinstance(error, GaveUpError) or is_denied(error))
            for group in groups if len(groups) > 1 and not store_at_fault else ():
                self.read([group], columns)  # one by one, so that the message names it
            raise self._unreadable(part, error) from error
        if len(table) != self.group_rows[list(groups)].sum():
            raise self._changed(f"{len(table)} rows in groups {list(groups)}")
        return table

    def group_bytes(self, columns: Sequence[str]) -> np.ndarray:
        """Bytes that reading `columns` moves, int64 [n_groups]: the rows at the size of the first group's."""
        if not len(self.group_rows):
            return self.group_rows
        sample = int(np.argmax(self.group_rows > 0))
        row_bytes = self.read([sample], columns).nbytes / max(1, self.group_rows[sample])
        return np.ceil(self.group_rows * row_bytes).astype(np.int64)

    def fingerprint(self) -> str | None:
        """A string that changes when the file does; None for a table in memory."""
        return None

    def _read(self, groups: list[int], columns: list[str]) -> pa.Table:
        raise NotImplementedError

    def _unreadable(self, part: str, error: Exception) -> SourceError:
        fix = "The file may be damaged: write or copy it again"
        fix = fix if self.is_local else mend(error, fix)
        return SourceError(explain(f"{self.name}, {part}", got=error, allowed=FORMATS, fix=fix))

    def _changed(self, got: str) -> SourceError:
        fix = "Open the data again, and do not write to files that are being read"
        return SourceError(explain(self.name, got=got, allowed="the file as it was when opened", fix=fix))


class MemoryShard(Shard):
    """Record batches that are in memory, or mapped from an Arrow IPC stream."""

    def __init__(self, name: str, batches: list[pa.RecordBatch], schema: pa.Schema, mark: str | None = None):
        super().__init__(name, schema, [len(batch) for batch in batches])
        self._batches = batches
        self._mark = mark

    def fingerprint(self) -> str | None:
        return self._mark

    def _read(self, groups: list[int], columns: list[str]) -> pa.Table:
        return pa.Table.from_batches([self._batches[group].select(columns) for group in groups])


class _IpcShard(Shard):
    """An Arrow IPC file, mapped where the file system is local."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, mark: str) -> None:
        self._filesystem, self._path, self._mark = filesystem, path, mark
        self.is_local = is_local(filesystem)
        with filesystem.open_input_file(path) as file:
            schema = pa.ipc.open_file(file).schema
            reader = pa.ipc.open_file(file, options=_only(_narrowest(schema)))
            rows = [reader.get_batch(group).num_rows for group in range(reader.num_record_batches)]
        super().__init__(path, schema, rows)

    def fingerprint(self) -> str:
        return self._mark

    def _read(self, groups: list[int], columns: list[str]) -> pa.Table:
        # Leaving columns out copies the others (33 ns a row of 33 columns), unless all of them stay in the map (6 ns).
        fields = None if self._is_mapped else [self.schema.get_field_index(name) for name in columns]
        with self._filesystem.open_input_file(self._path) as file:
            reader = pa.ipc.open_file(file, options=_only(fields))
            if reader.num_record_batches != len(self.group_rows):
                raise self._changed(f"{reader.num_record_batches} record batches")
            return pa.Table.from_batches([reader.get_batch(group) for group in groups])

    @cached_property
    def _is_mapped(self) -> bool:
        """Whether batches can be used where they lie in a local file: they are not compressed."""
        if not self.is_local:
            return False
        with self._filesystem.open_input_file(self._path) as file:
            batch = pa.ipc.open_file(file).get_batch(int(np.argmax(self.group_rows > 0)))
        buffers = [buffer for column in batch.columns for buffer in column.buffers() if buffer is not None]
        return not any(buffer.is_mutable for buffer in buffers)  # what was decompressed is


class _ParquetShard(Shard):
    """A Parquet file; its footer is parsed once and kept."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, size: int, footer: bytes) -> None:
        self._filesystem, self._path, self._size = filesystem, path, size
        self.is_local = is_local(filesystem)
        self._metadata = pq.read_metadata(pa.BufferReader(footer))
        self._mark = f"parquet {size} {blake2b(footer, digest_size=16).hexdigest()}"
        rows = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        super().__init__(path, self._metadata.schema.to_arrow_schema(), rows)

    def fingerprint(self) -> str:
        return self._mark

    def group_bytes(self, columns: Sequence[str]) -> np.ndarray:
        """Compressed bytes of the column chunks of `columns`, int64 [n_groups]; of more groups than a sample has,
        estimated by rows: the footer of a large file is slow to walk over.
        """
        ends = np.cumsum([_leaf_columns(field.type) for field in self.schema])
        wanted = [self.schema.get_field_index(name) for name in columns]
        leaves = [leaf for i in wanted for leaf in range(ends[i - 1] if i else 0, ends[i])]
        rows = self.group_rows
        full = np.flatnonzero(rows)
        if not len(full):
            return rows
        sampled = full[np.unique(np.linspace(0, len(full) - 1, _SAMPLED_GROUPS, dtype=np.int64))]
        groups = [self._metadata.row_group(group) for group in sampled.tolist()]
        sizes = [sum(group.column(leaf).total_compressed_size for leaf in leaves) for group in groups]
        row_bytes = np.interp(np.arange(len(rows)), sampled, np.array(sizes) / rows[sampled])
        return np.rint(rows * row_bytes).astype(np.int64)

    def _read(self, groups: list[int], columns: list[str]) -> pa.Table:
        with self._filesystem.open_input_file(self._path) as file:
            if file.size() != self._size:
                raise self._changed(f"{file.size()} bytes instead of {self._size}")
            options = {"pre_buffer": True, "page_checksum_verification": True}
            with pq.ParquetFile(file, metadata=self._metadata, **options) as parquet:
                # A name with dots may match a nested column too; `Shard.read` selects the one that was meant.
                return parquet.read_row_groups(groups, columns=columns, use_threads=False)


def open_shard(filesystem: pafs.FileSystem, path: str) -> Shard:
    """Open one file by its magic bytes: Parquet and Arrow IPC files end with theirs, streams have none."""
    local = is_local(filesystem)
    try:
        return _open(filesystem, path) if local else patiently(path, _open, filesystem, path)
    except READ_ERRORS as error:
        fix = "Is it a data file? It may be missing, truncated or damaged: write or copy it again"
        fix = fix if local else mend(error, fix)
        raise SourceError(explain(path, got=error, allowed=FORMATS, fix=fix)) from error


def _open(filesystem: pafs.FileSystem, path: str) -> Shard:
    with filesystem.open_input_file(path) as file:
        size = file.size()
        tail = file.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
        if size > 12 and tail.endswith(b"PAR1"):
            footer_bytes = 8 + int.from_bytes(tail[-8:-4], "little")
            if footer_bytes > len(tail):
                tail = file.read_at(footer_bytes, max(0, size - footer_bytes))
            return _ParquetShard(filesystem, path, size, tail[-footer_bytes:])
        is_file = tail.endswith(b"ARROW1")
        head = tail[:6] if size <= _TAIL_BYTES or is_file else file.read_at(6, 0)
    if head.startswith((b"PAR1", b"ARROW1")) and not is_file:
        raise pa.ArrowInvalid("the beginning of a Parquet or Arrow file, but not its end: it is truncated")
    mark = f"arrow {size} {filesystem.get_file_info(path).mtime_ns}"
    filesystem = _MAPPED if isinstance(filesystem, pafs.LocalFileSystem) else filesystem
    if is_file:
        return _IpcShard(filesystem, path, mark)
    with filesystem.open_input_file(path) as file:
        # A stream is read piece by piece: from afar better at once, as it is kept in memory anyway.
        stream = pa.ipc.open_stream(file if is_local(filesystem) else file.read_buffer())
        return MemoryShard(path, list(stream), stream.schema, mark)


def _only(fields: list[int] | None) -> pa.ipc.IpcReadOptions:
    return pa.ipc.IpcReadOptions(included_fields=fields or [])


def _narrowest(schema: pa.Schema) -> list[int]:
    """The column that costs least to read, for counting rows: compressed batches decompress what is read."""
    widths = [getattr(kind, "bit_width", 2**31) if pa.types.is_primitive(kind) else 2**31 for kind in schema.types]
    return [int(np.argmin(widths))] if widths else []


def _leaf_columns(kind: pa.DataType) -> int:
    """How many Parquet columns a column of this Arrow type becomes."""
    if isinstance(kind, pa.BaseExtensionType):
        return _leaf_columns(kind.storage_type)
    return sum(_leaf_columns(kind.field(i).type) for i in range(kind.num_fields)) or 1
