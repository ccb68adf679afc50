"""Columns that are rewritten: types and nulls stay, dictionaries are united, what cannot be is refused early."""

import datetime
import decimal
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastbalance.errors import SourceError
from fastbalance.resharding import reshard
from fastbalance.source import open_source
from tests.regrouped import read


def every_type(n):
    def some(values):
        return [None if i % 5 == 3 else values[i % len(values)] for i in range(n)]

    moment = datetime.datetime(2024, 2, 29, 1, 2, 3)
    return {
        "string": pa.array(some(["", "ü", "long " * 9])),
        "view": pa.array(some(["", "long enough not to be inlined", "b"]), pa.string_view()),
        "bytes": pa.array(some([b"", b"\0\1"]), pa.large_binary()),
        "bool": pa.array(some([True, False, True])),
        "int": pa.array(some([1, -1]), pa.int16()),
        "half": pa.array(some([np.float16(1.5)]), pa.float16()),
        "decimal": pa.array(some([decimal.Decimal("1.50")])),
        "date": pa.array(some([moment.date()])),
        "zone": pa.array(some([moment]), pa.timestamp("us", "Europe/Berlin")),
        "duration": pa.array(some([3, 4]), pa.duration("ms")),
        "list": pa.array(some([[], [1, None], [2, 3, 4]]), pa.list_(pa.int32())),
        "struct": pa.array(some([{"a": 1, "b": ["x"]}, {"a": None, "b": []}])),
        "map": pa.array(some([[("k", 1)], []]), pa.map_(pa.string(), pa.int64())),
        "matrix": pa.array(some([[1.0, 2.0]]), pa.list_(pa.float32(), 2)),
        "null": pa.nulls(n),
    }


@pytest.mark.parametrize("format", ["parquet", "ipc"])
def test_types_and_nulls_are_kept(format, tmp_path):
    n = 300
    fields = {"id": pa.array(range(n)), "y": pa.array([i % 3 == 0 for i in range(n)]), **every_type(n)}
    schema = pa.schema([pa.field(k, v.type, nullable=k not in ("id", "y")) for k, v in fields.items()])
    table = pa.table(list(fields.values()), schema=schema)
    with pa.ipc.new_file(tmp_path / "in.arrow", schema) as writer:
        writer.write_table(table, max_chunksize=70)
    out = reshard(tmp_path / "in.arrow", tmp_path / "out", "y", format=format, group_rows=30, shard_bytes="9KiB")
    source = open_source(out)
    assert source.schema.equals(schema)
    assert len(source.shards) > 2
    rows = [row for group in read(out) for row in group.to_pylist()]
    assert sorted(rows, key=lambda row: row["id"]) == table.to_pylist()


@pytest.mark.parametrize("format", ["parquet", "ipc"])
def test_dictionaries_become_their_union(format, tmp_path):
    (tmp_path / "data").mkdir()
    want = {}
    for shard, words in enumerate((["a", "b"], ["c", None, "b"], ["d", "a"])):
        values = [words[i % len(words)] for i in range(50)]
        ids = range(50 * shard, 50 * shard + 50)
        column = pa.array(values).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))
        table = pa.table({"id": ids, "y": pa.array([str(i % 2) for i in ids]).dictionary_encode(), "word": column})
        with pa.ipc.new_file(tmp_path / "data" / f"{shard}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
        want |= dict(zip(ids, values, strict=True))
    out = reshard(tmp_path / "data", tmp_path / "out", "y", format=format, group_rows=20, shard_bytes="600B")
    found = pa.concat_tables(read(out))
    assert found.schema.field("word").type == pa.dictionary(pa.int8(), pa.string())
    assert dict(zip(found["id"].to_pylist(), found["word"].to_pylist(), strict=True)) == want
    if format == "ipc":
        assert {tuple(chunk.dictionary.to_pylist()) for chunk in found["word"].chunks} == {("a", "b", "c", "d")}


def test_too_many_values_for_a_dictionary(tmp_path):
    (tmp_path / "data").mkdir()
    for shard in range(2):
        words = pa.array([f"{shard} {i}" for i in range(100)]).dictionary_encode()
        table = pa.table({"y": [0, 1] * 50, "word": words.cast(pa.dictionary(pa.int8(), pa.string()))})
        pq.write_table(table, tmp_path / "data" / f"{shard}.parquet")
    with pytest.raises(SourceError) as caught:
        reshard(tmp_path / "data", tmp_path / "out", "y")
    assert str(caught.value).startswith(
        "column 'word': got 200 values in the dictionaries of all shards; allowed: 128, as int8 can number."
    )


@pytest.mark.parametrize(
    ("column", "format", "got"),
    [
        (pa.array([(1, 2, 3)] * 2, pa.month_day_nano_interval()), "parquet", "Unhandled type"),
        (pa.RunEndEncodedArray.from_arrays([2], ["a"]), "ipc", "'array_take' has no kernel"),
        (pa.array([["a"]] * 2, pa.list_(pa.dictionary(pa.int8(), pa.string()))), "ipc", "inside another type"),
    ],
)
def test_types_that_cannot_be_rewritten(column, format, got, tmp_path):
    with pytest.raises(SourceError) as caught:
        reshard(pa.table({"y": [0, 1], "c": column}), tmp_path / "out", "y", format=format)
    assert str(caught.value).startswith("column 'c': got ")
    assert got in str(caught.value)
    assert f"allowed: types that Arrow can take rows of, and {format} can hold. Cast it" in str(caught.value)
    assert os.listdir(tmp_path) == []
