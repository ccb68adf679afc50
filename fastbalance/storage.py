"""Files that `reshard` writes: whole or not there; their formats; and what columns are in its temporary files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .engines import Engine, map_tasks
from .errors import ArgumentError, SourceError, explain
from .source import Source

Format = Literal["parquet", "ipc"]
_PLAIN = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}  # Arrow cannot take from views
_FLOATS = ("FLOAT", "DOUBLE")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the path in errors of the file system.

    Raises:
        ArgumentError: Nothing can be written there, as when the disk is full.
    """
    try:
        yield
    except OSError as error:
        allowed = "a directory that can be written to, on a disk with room for the data twice"
        fix = "Mend that and run it again: what is finished is kept"
        raise ArgumentError(explain(f"destination, {path}", got=error, allowed=allowed, fix=fix)) from error


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[str]:
    """The name of a file to write, which becomes `path` when it is whole.

    Args:
        durable: Flush it to the disk first.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with writing(path):
            yield str(temporary)
            if durable:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writer(format: Format, schema: pa.Schema, path: Any) -> Iterator[Callable[[pa.Table], None]]:
    """A function that writes a table as one group."""
    if format == "ipc":
        with pa.ipc.new_file(path, schema) as ipc:
            yield lambda table: ipc.write_batch(table.to_batches()[0])
        return
    with pq.ParquetWriter(path, schema, **_parquet_options(schema)) as parquet:
        yield lambda table: parquet.write_table(table, row_group_size=len(table))


def _parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Statistics are pyarrow's default. Page checksums: reads verify them.

    No dictionaries for floats: they seldom repeat, and a group of 2^17 float32 is still a dictionary to the writer.
    500,000 rows of 32 such columns: 0.4 s and 67 MB instead of 3.4 s and 100 MB, and read twice as fast.
    """
    leaves = _parquet_schema(schema)
    coded = [leaf.path for leaf in map(leaves.column, range(len(leaves))) if leaf.physical_type not in _FLOATS]
    return {"use_dictionary": coded or False, "write_page_checksum": True}


def _parquet_schema(schema: pa.Schema) -> pq.ParquetSchema:
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    return pq.ParquetFile(sink).schema


def check_columns(schema: pa.Schema, format: Format) -> None:
    """Find out early what could not be written late.

    Raises:
        SourceError: A column has a type that cannot be rewritten.
    """
    for field in schema:
        kind = field.type
        try:
            if any(map(_has_dictionary, _children(kind))):
                raise pa.ArrowNotImplementedError(f"{kind}: a dictionary inside another type")
            if pa.types.is_dictionary(kind):
                pc.index_in(pa.array([], kind.value_type), pa.array([], kind.value_type))
            column = stored(pa.chunked_array([], kind), None)
            column.take(pa.array([], pa.int64()))
            if format == "parquet":
                _parquet_schema(pa.schema([field]))
        except pa.ArrowException as error:
            got = str(error).partition("\n")[0]
            fix = "Cast it to a plain type, or leave it out"
            allowed = f"types that Arrow can take rows of, and {format} can hold"
            raise SourceError(explain(f"column {field.name!r}", got=got, allowed=allowed, fix=fix)) from error


def _children(kind: pa.DataType) -> list[pa.DataType]:
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return [kind.field(i).type for i in range(kind.num_fields)] if not pa.types.is_dictionary(kind) else []


def _has_dictionary(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) or any(map(_has_dictionary, _children(kind)))


def collect_dictionaries(source: Source, engine: Engine, workers: int | None) -> dict[str, pa.Array]:
    """The values of each dictionary column, of all groups, in the order of their first appearance.

    Raises:
        SourceError: There are more of them than the type of their indices can number.
    """
    names = [field.name for field in source.schema if pa.types.is_dictionary(field.type)]
    if not names:
        return {}
    found: dict[str, pa.Array] = {}
    runs = source.runs(range(len(source.groups)))
    for values in map_tasks(_read_dictionaries, (source, names), runs, engine, workers):
        for name, new in values.items():
            found[name] = pc.unique(pa.concat_arrays([found[name], new])) if name in found else new
    for name, distinct in found.items():
        kind = source.schema.field(name).type.index_type
        most = 2 ** (kind.bit_width - (not pa.types.is_unsigned_integer(kind)))
        if len(distinct) > most:
            fix = "Cast the column to its plain values, or to a dictionary with wider indices"
            got = f"{len(distinct):,} values in the dictionaries of all shards"
            raise SourceError(explain(f"column {name!r}", got=got, allowed=f"{most:,}, as {kind} can number", fix=fix))
    return found


def _read_dictionaries(shared: tuple[Source, list[str]], run: range) -> dict[str, pa.Array]:
    source, names = shared
    table = source.read_groups(run, names)
    return {
        field.name: pc.unique(
            pa.concat_arrays([pa.array([], field.type.value_type), *(chunk.dictionary for chunk in column.chunks)])
        )
        for field, column in zip(table.schema, table.columns, strict=True)
    }


def stored(column: pa.ChunkedArray, dictionary: pa.Array | None) -> pa.ChunkedArray:
    """A column as temporary files hold it: views as what Arrow can take from, dictionaries as indices."""
    if dictionary is None:
        return column.cast(_PLAIN[column.type]) if column.type in _PLAIN else column
    codes = [pc.index_in(chunk.dictionary, dictionary).take(chunk.indices) for chunk in column.chunks]
    return pa.chunked_array(codes, pa.int32())


def restored(array: pa.Array, field: pa.Field, dictionaries: Mapping[str, pa.Array], format: Format) -> pa.Array:
    """The inverse of `stored`."""
    kind, dictionary = field.type, dictionaries.get(field.name)
    if dictionary is None:
        return array.cast(kind) if kind in _PLAIN else array
    if format == "parquet":  # it would write values that the group does not have
        encoded = dictionary.take(array).dictionary_encode()
        array, dictionary = encoded.indices, encoded.dictionary
    return pa.DictionaryArray.from_arrays(array.cast(kind.index_type), dictionary, ordered=kind.ordered)
