"""A saved label scan: one Arrow IPC file with one row, whose checksum covers every byte.

The schema's metadata holds the format version and `blake2b:<64 hex digits>`, the digest of the file with
these digits replaced by zeros. So the file is verified before Arrow parses any of it.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

from .errors import IndexFileError, explain
from .labels import LabelScan
from .source import Source

VERSION = b"1"
_NO_DIGEST = b"blake2b:" + b"0" * 64
_DIGEST = re.compile(rb"blake2b:[0-9a-f]{64}")
_REBUILD = "Build the index again"


def save_index(path: str | os.PathLike[str], source: Source, scan: LabelScan) -> None:
    """Write the index of `source` to a local path; a file that is there is replaced at once or not at all.

    Raises:
        IndexFileError: The source is in memory, or the file cannot be written.
    """
    names, marks = _shard_names(source), [shard.fingerprint() for shard in source.shards]
    if None in marks:
        fix = "Write the data to Parquet first; scanning a table in memory again is cheap"
        raise IndexFileError(explain("source", got="a table in memory", allowed="files", fix=fix))
    row = {
        "classes": pa.StructArray.from_arrays(
            [column.combine_chunks() for column in scan.values.columns], list(scan.label)
        ),
        "class_counts": pa.array(scan.class_counts),
        "group_ptr": pa.array(scan.group_ptr),
        "group_classes": pa.array(scan.group_classes),
        "group_counts": pa.array(scan.group_counts),
        "shard_names": pa.array(names, pa.string()),
        "shard_fingerprints": pa.array(marks, pa.string()),
        "shard_groups": pa.array([len(shard.group_rows) for shard in source.shards], pa.int64()),
        "group_rows": pa.array(source.groups.n_rows),
    }
    _write_atomically(Path(path), _pack(row))


def load_index(path: str | os.PathLike[str], source: Source, label: str | Sequence[str]) -> LabelScan:
    """Read the index of `source` back.

    Raises:
        IndexFileError: The file cannot be read, is no index, is damaged, was made by another version or for
            another label; or a shard is missing, new, changed or in another place.
    """
    row = _unpack(path, _read(path))
    names = [label] if isinstance(label, str) else list(label)
    classes = pa.Table.from_struct_array(row["classes"])
    if classes.column_names != names:
        got, allowed = f"an index of the label {classes.column_names}", f"label {names}"
        raise IndexFileError(explain(str(path), got=got, allowed=allowed, fix=_REBUILD))
    _check_shards(path, row, source)
    arrays = ("group_ptr", "group_classes", "group_counts", "class_counts")
    return LabelScan(values=classes, **{name: row[name].to_numpy() for name in arrays})


def _pack(row: dict[str, pa.Array]) -> bytes:
    """The bytes of the index file, with their digest."""
    lists = [pa.LargeListArray.from_arrays([0, len(array)], array) for array in row.values()]
    metadata = {b"fastbalance_index": VERSION, b"fastbalance_checksum": _NO_DIGEST}
    schema = pa.schema([pa.field(name, array.type) for name, array in zip(row, lists, strict=True)], metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(lists, schema=schema))
    content = sink.getvalue().to_pybytes()
    return content.replace(_NO_DIGEST, _digest(content))


def _digest(content: bytes) -> bytes:
    return b"blake2b:" + blake2b(content, digest_size=32).hexdigest().encode()


def _unpack(path: object, content: bytes) -> dict[str, pa.Array]:
    """The arrays of an index file, after its checksum and version have been checked."""
    found = _DIGEST.search(content)
    if found is None:
        got = "another kind of file, or a damaged one"
        raise IndexFileError(explain(str(path), got=got, allowed="an index of fastbalance", fix=_REBUILD))
    if _digest(content.replace(found[0], _NO_DIGEST)) != found[0]:
        got = "a checksum that does not match: the file is damaged or truncated"
        raise IndexFileError(explain(str(path), got=got, allowed="the file as it was written", fix=_REBUILD))
    with pa.ipc.open_file(pa.BufferReader(content)) as reader:
        version = (reader.schema.metadata or {}).get(b"fastbalance_index")
        if version != VERSION:
            got, allowed = f"format version {_text(version)}", f"version {_text(VERSION)}"
            raise IndexFileError(explain(str(path), got=got, allowed=allowed, fix=_REBUILD))
        batch = reader.get_batch(0)
    return {name: batch.column(name).flatten() for name in batch.schema.names}


def _text(version: bytes | None) -> str:
    return "unknown" if version is None else version.decode()


def _shard_names(source: Source) -> list[str]:
    """Paths of the shards below their common parent: the same wherever the data set lies."""
    paths = [shard.name for shard in source.shards]
    parent = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return [posixpath.relpath(path, parent or ".") for path in paths]


def _check_shards(path: object, row: dict[str, Any], source: Source) -> None:
    """Raise for the first shard that is not as it was indexed."""
    names, saved = _shard_names(source), row["shard_names"].to_pylist()
    fix = f"{_REBUILD}, or bring the data back to what was indexed"
    for name, there, allowed in (
        *((name, name in set(names), "every shard that was indexed") for name in saved),
        *((name, name in set(saved), "only shards that were indexed") for name in names),
    ):
        if not there:
            got = "no such shard" if name in saved else "a new shard"
            raise IndexFileError(explain(f"{path}, shard {name!r}", got=got, allowed=allowed, fix=fix))
    marks, sizes = row["shard_fingerprints"].to_pylist(), row["shard_groups"].to_pylist()
    rows = np.split(row["group_rows"].to_numpy(), np.cumsum(sizes)[:-1])
    for i, shard in enumerate(source.shards):
        got = "another shard at its place" if names[i] != saved[i] else "a shard that has changed since"
        same = names[i] == saved[i] and shard.fingerprint() == marks[i]
        if not same or not np.array_equal(shard.group_rows, rows[i]):
            allowed = "the shards as they were indexed, in that order"
            raise IndexFileError(explain(f"{path}, shard {saved[i]!r}", got=got, allowed=allowed, fix=fix))


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        fix = "To make one: Dataset.open(source, label).save_index(path)"
        raise IndexFileError(explain(f"index {str(path)!r}", got=error, allowed="a file", fix=fix)) from error


def _write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to the disk, rename; nothing is left behind on failure."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, OSError):
            got, allowed = error, "a path in a directory that can be written to"
            raise IndexFileError(explain(f"index {str(path)!r}", got=got, allowed=allowed)) from error
        raise
