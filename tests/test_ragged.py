"""Columns of varying length, and values that a function makes into tensors: in memory and streamed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbalance as fb
from fastbalance.errors import ArgumentError, ColumnError
from fastbalance.ragged import RaggedField, RaggedStore

N_ROWS = 1500
TEXTS = [f"Zeile {i} " + "ü" * (i % 9) if i % 11 else "" for i in range(N_ROWS)]
LISTS = [list(range(i, i + i % 5)) for i in range(N_ROWS)]
IMAGES = [bytes([i % 256] * 12) for i in range(N_ROWS)]
COLUMNS: dict[str, tuple[pa.DataType, list]] = {
    "text": (pa.string(), TEXTS),
    "large": (pa.large_string(), TEXTS),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), TEXTS),
    "bytes": (pa.binary(), IMAGES),
    "ints": (pa.list_(pa.int32()), LISTS),
    "floats": (pa.large_list(pa.float64()), [[float(v) for v in row] for row in LISTS]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ragged")
    columns = {name: pa.array(values, kind) for name, (kind, values) in COLUMNS.items()}
    table = pa.table(columns | {"y": np.arange(N_ROWS) % 7 // 6})
    for shard in range(2):
        part = table.slice(shard * N_ROWS // 2, N_ROWS // 2)
        pq.write_table(part, path / f"{shard}.parquet", row_group_size=50)
    return path


def batches(folder: Path, memory: str, **options: Any) -> Iterator[dict[str, Any]]:
    options = {"label": "y", "batch_size": 48, "device": "cpu", "extras": ("row",), "memory": memory} | options
    loader = fb.BalancedLoader(folder, **options)
    assert (type(loader.plan).__name__ == "StreamPlan") == (memory != "1GiB")
    for _ in range(2):
        yield from loader


def row_of(column: fb.Ragged, k: int) -> torch.Tensor:
    return column.values[column.offsets[k] : column.offsets[k + 1]]


@pytest.mark.parametrize("memory", ["1GiB", "600KiB"])
def test_rows_of_every_type_are_those_of_the_data(folder, memory):
    for batch in batches(folder, memory, columns=list(COLUMNS)):
        for name, (_, values) in COLUMNS.items():
            column = batch[name]
            assert column.offsets.dtype == torch.int64
            assert len(column.offsets) == len(batch["row"]) + 1
            assert (column.offsets[0], column.offsets[-1]) == (0, len(column.values))
            for k, row in enumerate(batch["row"].tolist()):
                got, wanted = row_of(column, k), values[row]
                if isinstance(wanted, list):
                    assert got.tolist() == wanted
                else:
                    assert bytes(got.tolist()) == (wanted.encode() if isinstance(wanted, str) else wanted)


def test_they_come_only_where_they_are_named(folder):
    assert set(next(batches(folder, "1GiB"))) == {"y", "row"}


@pytest.mark.parametrize("memory", ["1GiB", "80KiB"])
def test_decoded_values_are_in_the_record(folder, memory):
    threads = set()

    def image(data: bytes) -> torch.Tensor:
        threads.add(threading.current_thread())
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(3, 2, 2).float() / 255

    for batch in batches(folder, memory, columns={"image": "bytes", "y": "y"}, decode={"bytes": image}):
        assert batch["image"].shape == (len(batch["row"]), 3, 2, 2)
        wanted = (batch["row"] % 256).float() / 255
        assert torch.equal(batch["image"], wanted[:, None, None, None].expand(-1, 3, 2, 2))
    assert threads - {threading.main_thread()}, "decoded where it is read"


def test_only_rows_that_are_wanted_are_decoded(folder):
    decoded = []
    options = dict(columns={"n": "text"}, decode={"text": lambda text: decoded.append(text) or len(text)})
    loader = fb.BalancedLoader(folder, "y", 12, memory="20KiB", device="cpu", epoch_rows=24, **options)
    assert not loader.plan.kept.all()
    for _ in loader:
        pass
    loader.close()
    assert len(decoded) < N_ROWS // 2


@pytest.mark.parametrize(
    ("column", "decode", "text"),
    [
        ("text", lambda text: int(text), "decode['text']: got ValueError: "),
        ("ints", lambda row: torch.tensor(row), "decode['ints']: got torch.int64 (1,) for row 1 of group 0 of "),
        (
            "text",
            lambda text: torch.tensor(1.0 if "7" in text else 1),
            "decode['text']: got torch.float32 () for row 7",
        ),
    ],
)
def test_a_function_that_fails_names_column_and_row(folder, column, decode, text):
    with pytest.raises(ColumnError) as caught:
        next(batches(folder, "1GiB", columns=[column], decode={column: decode}))
    assert str(caught.value).startswith(text)


def test_decode_of_no_column(folder):
    with pytest.raises(ArgumentError, match=r"decode: got .* for 'missing'; allowed: functions by column"):
        next(batches(folder, "1GiB", decode={"missing": len}))


def test_nulls_are_refused_or_filled():
    source = {
        "t": pa.array(["a", None, "c", "d"]),
        "l": pa.array([[1], [2, None], [], [3]]),
        "y": np.array([0, 0, 1, 1]),
    }
    options = dict(label="y", batch_size=4, device="cpu", extras=("row",))
    with pytest.raises(ColumnError, match=r"column 't': got 1 nulls in group 0 of <table>.*fill_null=\{'t': value\}"):
        next(iter(fb.BalancedLoader(source, columns=["t"], **options)))
    with pytest.raises(ColumnError, match=r"column 'l': got 1 nulls in group 0 of <table>"):
        next(iter(fb.BalancedLoader(source, columns=["l"], **options)))
    batch = next(iter(fb.BalancedLoader(source, columns=["t"], fill_null={"t": "none"}, **options)))
    assert bytes(row_of(batch["t"], batch["row"].tolist().index(1)).tolist()) == b"none"


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=40), st.data())
def test_gather_gives_any_rows_any_number_of_times(values, data):
    store = RaggedStore([RaggedField("b", "b", torch.uint8, is_bytes=True)], 50)
    places = np.array(data.draw(st.permutations(range(50))))[: len(values)]
    held = store.put(places, pa.table({"b": values}), {}, "here")
    picks = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=60))
    got = store.gather(places[picks])["b"]
    assert [bytes(row_of(got, k).tolist()) for k in range(len(picks))] == [values[pick] for pick in picks]
    parts = got.split(7)
    assert sum(len(part.offsets) - 1 for part in parts) == len(picks)
    assert torch.equal(torch.cat([got.values[:0], *(part.values for part in parts)]), got.values)
    del held
