"""Sources: whatever holds the rows, they come back as they were, in order, and failures name their place."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbalance import paths
from fastbalance import shards as shards_module
from fastbalance import source as source_module
from fastbalance.errors import SourceError
from fastbalance.source import open_source


def make_table(n_rows=10, start=0):
    rows = range(start, start + n_rows)
    return pa.table(
        {
            "x": pa.array([float(row) for row in rows], pa.float32()),
            "y": pa.array([["no", "yes"][row % 2] for row in rows]).dictionary_encode(),
            "z": pa.array([None if row % 3 == 0 else "ü" * (row % 5) for row in rows], pa.string()),
        }
    )


def write(path, table, kind="parquet", group_rows=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=group_rows)
        return path
    make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    options = pa.ipc.IpcWriteOptions(compression="lz4" if kind == "lz4" else None)
    with make(path, table.schema, options=options) as writer:
        writer.write_table(table.unify_dictionaries(), max_chunksize=group_rows)
    return path


def all_rows(source, columns=None):
    columns = source.schema.names if columns is None else columns
    return [row for group in range(len(source.groups)) for row in source.read_group(group, columns).to_pylist()]


KINDS = ["parquet", "file", "lz4", "stream"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_their_rows_in_shard_order(tmp_path, kind):
    table = make_table(10)
    write(tmp_path / "b.arrow", table.slice(7, 3), kind)
    write(tmp_path / "a.arrow", table.slice(0, 7), kind)
    source = open_source(tmp_path)
    assert [os.path.basename(shard.name) for shard in source.shards] == ["a.arrow", "b.arrow"]
    assert source.groups.n_rows.tolist() == [3, 3, 1, 3]
    assert source.groups.first_row.tolist() == [0, 3, 6, 7]
    assert source.groups.shard.tolist() == [0, 0, 0, 1]
    assert source.groups.index.tolist() == [0, 1, 2, 0]
    assert source.n_rows == 10
    assert all_rows(source) == table.to_pylist()
    assert source.read_groups([2, 0], ["z", "x"]).to_pylist() == [
        {"z": row["z"], "x": row["x"]} for row in table.select(["z", "x"]).take([6, 0, 1, 2]).to_pylist()
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 20))
def test_runs_and_scan_visit_every_group_once(sizes, shards, max_rows):
    sizes = [*sizes, 1]
    batch = make_table(6).to_batches()[0]
    batches = [batch.slice(0, size) for size in sizes]
    memory = [shards_module.MemoryShard(str(i), batches, batch.schema) for i in range(shards)]
    source = source_module._join(memory)
    runs = source.runs(range(len(source.groups)), max_rows)
    assert [group for run in runs for group in run] == list(range(len(source.groups)))
    for run in runs:
        assert len(set(source.groups.shard[list(run)])) == 1
        assert len(run) == 1 or source.groups.n_rows[list(run)].sum() <= max_rows
    seen = list(source.scan(["x"], lambda group, table: (group, table.num_rows)))
    assert seen == [(group, rows) for group, rows in enumerate(source.groups.n_rows.tolist())]


def test_empty_groups_are_kept(tmp_path):
    table = make_table(3).select(["x", "z"])
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        for size in (0, 2, 0, 1, 0):
            writer.write_batch(table.to_batches()[0].slice(0, size))
    with pq.ParquetWriter(tmp_path / "b.parquet", table.schema) as writer:
        for size in (0, 3):
            writer.write_table(table.slice(0, size))
    source = open_source(tmp_path)
    assert source.groups.n_rows.tolist()[:5] == [0, 2, 0, 1, 0]
    assert source.n_rows == 6
    assert all_rows(source, ["x"]) == [{"x": float(x)} for x in (0, 1, 0, 0, 1, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_threads_may_read_one_shard_at_once(tmp_path, kind):
    table = make_table(300)
    source = open_source(write(tmp_path / "a.arrow", table, kind, 7))
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda g: source.read_group(g, ["z", "y"]), [*range(len(source.groups))] * 5))
    assert [row for part in parts for row in part.to_pylist()] == table.select(["z", "y"]).to_pylist() * 5


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_no_descriptor_stays_open(tmp_path):
    for i, kind in enumerate(KINDS * 5):
        write(tmp_path / f"{i}.arrow", make_table(5), kind)
    before = len(os.listdir("/proc/self/fd"))
    source = open_source(tmp_path)
    rows = all_rows(source)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(rows) == 100


def test_names_with_dots_and_nested_columns_are_not_confused(tmp_path):
    nested = pa.array([{"b": i, "c": -i} for i in range(4)])
    table = pa.table(
        {"a": nested, "a.b": [0.5, 1.5, 2.5, 3.5], "l": pa.array([[i, i] for i in range(4)]), "n": range(4)}
    )
    source = open_source(write(tmp_path / "a.parquet", table))
    for columns in (["a.b"], ["a"], ["a.b", "a"], ["n", "l"]):
        assert source.read_group(0, columns).to_pylist() == table.slice(0, 3).select(columns).to_pylist()
    parquet = pq.read_metadata(tmp_path / "a.parquet")
    leaves = {"a": [0, 1], "a.b": [2], "l": [3], "n": [4]}
    for column, ids in leaves.items():
        want = [sum(parquet.row_group(g).column(i).total_compressed_size for i in ids) for g in range(2)]
        assert source.shards[0].group_bytes([column]).tolist() == want
    assert source.shards[0].group_bytes(["a", "n"]).tolist() == [
        sum(parquet.row_group(g).column(i).total_compressed_size for i in (0, 1, 4)) for g in range(2)
    ]


def test_group_bytes_of_many_groups_are_estimated_and_of_none_are_none(tmp_path):
    table = pa.table({"x": np.random.default_rng(0).random(2000)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    pq.ParquetWriter(tmp_path / "b.parquet", table.schema).close()  # no group at all
    source = open_source(tmp_path)
    parquet = pq.read_metadata(tmp_path / "a.parquet")
    want = [parquet.row_group(g).column(0).total_compressed_size for g in range(200)]
    np.testing.assert_allclose(source.group_bytes(["x"]), want, rtol=0.05)


def test_group_bytes_of_other_shards_are_estimated_by_rows(tmp_path):
    table = pa.table({"x": np.arange(10, dtype=np.float64), "s": [""] * 10})
    source = open_source(write(tmp_path / "a.arrow", table, "file", 4))
    assert source.shards[0].group_bytes(["x"]).tolist() == [32, 32, 16]


def test_projection_of_ipc_reads_only_those_columns(tmp_path):
    table = pa.table({"x": np.zeros(10000), "y": np.ones(10000)})
    source = open_source(write(tmp_path / "a.arrow", table, "lz4", 10000))
    before = pa.total_allocated_bytes()
    kept = source.read_group(0, ["y"])
    assert pa.total_allocated_bytes() - before < 100_000
    assert kept.column("y").to_pylist() == [1.0] * 10000


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["a.parquet", "d/b.parquet", "d/e/c.pq"]),
        ("*", ["a.parquet", "d/b.parquet", "d/e/c.pq", "notes.txt"]),
        ("*.parquet", ["a.parquet"]),
        ("?.par[qx]uet", ["a.parquet"]),
        ("**/*.parquet", ["a.parquet", "d/b.parquet"]),
        ("**/*.p*", ["a.parquet", "d/b.parquet", "d/e/c.pq"]),
        ("d/*", ["d/b.parquet", "d/e/c.pq"]),
        ("*/e", ["d/e/c.pq"]),
    ],
)
def test_globs_and_directories(tmp_path, monkeypatch, pattern, found):
    for name in ("a.parquet", "d/b.parquet", "d/e/c.pq", "_x.parquet", ".h/a.parquet", "_tmp/a.parquet"):
        write(tmp_path / name, make_table(3))
    (tmp_path / "notes.txt").write_text("no data")
    monkeypatch.chdir(tmp_path)
    files = paths.list_files(pattern or ".", None)
    where = paths.list_files(str(tmp_path / pattern), None)
    assert [path for _, path in files] == found
    assert [path for _, path in where] == [str(tmp_path / name) for name in found]


def test_paths_with_glob_characters_lists_and_uris(tmp_path):
    odd = write(tmp_path / "a[1]*.parquet", make_table(2))
    other = write(tmp_path / "o.parquet", make_table(3, 2))
    assert len(open_source(odd).shards) == 1
    assert open_source([other, str(odd)]).groups.n_rows.tolist() == [3, 2]
    assert open_source(f"file://{tmp_path}/o.parquet").n_rows == 3
    assert open_source(f"file://{tmp_path}/[no]*.parquet").n_rows == 3
    assert open_source(f"file://{tmp_path}/").n_rows == 5


def test_other_file_systems(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    table = make_table(7)
    for name, kind in (("a.parquet", "parquet"), ("b.arrow", "file"), ("c.arrows", "stream")):
        memory.pipe(f"/bucket/{name}", write(tmp_path / name, table, kind).read_bytes())
    assert all_rows(open_source("/bucket", filesystem=memory)) == table.to_pylist() * 3
    below = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    assert all_rows(open_source("*.*", filesystem=below)) == table.to_pylist() * 3


def test_tables_are_sliced_without_copying(monkeypatch):
    monkeypatch.setattr(source_module, "MAX_GROUP_ROWS", 4)
    table = pa.table({"x": np.arange(11)}).slice(1)
    source = open_source(table)
    assert source.groups.n_rows.tolist() == [4, 4, 2]
    assert [row["x"] for row in all_rows(source)] == list(range(1, 11))
    chunk = source.read_group(1, ["x"]).column("x").chunk(0)
    assert chunk.buffers()[1].address == table.column("x").chunk(0).buffers()[1].address
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    assert all_rows(open_source(chunked)) == table.to_pylist()
    assert all_rows(open_source(table.to_batches()[0])) == table.to_pylist()
    assert open_source(source) is source
    assert source.shards[0].fingerprint() is None


def test_dict_of_arrays_shares_memory():
    image = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    flag = torch.tensor([[True, False]] * 4)
    weight = torch.arange(4.0, requires_grad=True)
    source = open_source({"image": image, "flag": flag, "w": weight, "y": np.array(["a", "b"] * 2), "l": [1, 2, 3, 4]})
    rows = all_rows(source)
    assert [row["image"] for row in rows] == image.tolist()
    assert [row["flag"] for row in rows] == flag.tolist()
    assert [(row["w"], row["y"], row["l"]) for row in rows] == [
        (0, "a", 1),
        (1, "b", 2),
        (2, "a", 3),
        (3, "b", 4),
    ]
    values = source.read_group(0, ["image"]).column("image").chunk(0).flatten().flatten()
    assert values.buffers()[1].address == image.__array_interface__["data"][0]
    turned = open_source({"x": image[:, 0].T})
    assert [row["x"] for row in all_rows(turned)] == image[:, 0].T.tolist()


def test_data_frames_and_hugging_face(tmp_path):
    frame = pd.DataFrame({"x": [1.5, 2.5], "y": ["a", "b"]}, index=[7, 9])
    assert all_rows(open_source(frame)) == [{"x": 1.5, "y": "a"}, {"x": 2.5, "y": "b"}]
    data = datasets.Dataset.from_dict({"x": [1, 2, 3], "y": ["a", "b", "a"]})
    assert all_rows(open_source(data)) == data.to_list()
    data.save_to_disk(tmp_path / "hf")
    assert all_rows(open_source(tmp_path / "hf")) == data.to_list()
    loaded = datasets.load_from_disk(tmp_path / "hf")
    assert all_rows(open_source(loaded)) == data.to_list()
    assert all_rows(open_source(loaded.select([2, 0]).flatten_indices())) == [data[2], data[0]]


def message(source, **options):
    with pytest.raises(SourceError) as caught:
        open_source(source, **options)
    return str(caught.value)


def test_messages_about_what_was_passed(tmp_path):
    data = datasets.Dataset.from_dict({"x": [1, 2, 3]})
    text = message(data.shuffle(seed=0))
    assert "shuffled, selected or filtered" in text
    assert "Call .flatten_indices() first" in text
    assert "got datasets.DatasetDict; allowed: datasets.Dataset. Take one split" in message(
        datasets.DatasetDict(a=data)
    )
    assert "got datasets.IterableDataset; allowed: datasets.Dataset" in message(data.to_iterable_dataset())
    assert message(3) == f"source: got int; allowed: {paths.KINDS}."
    assert message([pa.table({})]) == f"source: got Table; allowed: {paths.KINDS}."
    assert message([]) == "source: got an empty list; allowed: each file once."
    path = write(tmp_path / "a.parquet", make_table(2))
    assert message([path, path]) == f"source: got {str(path)!r} twice; allowed: each file once."
    text = message(tmp_path / "no" / "*.parquet")
    assert text.startswith(
        f"source '{tmp_path}/no/*.parquet': got no such file; allowed: a file, a glob, or a directory"
    )
    assert text.endswith("Check the path; names that begin with '.' or '_' are skipped.")
    assert "no such file" in message(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    assert "files ending in .parquet .pq .arrow" in message(tmp_path / "empty")
    assert "source 'nosuch://x/y': got" in message("nosuch://x/y")


def test_messages_about_columns():
    text = message({"x": np.zeros(3), "y": np.zeros(2)})
    assert text == "source: got columns of {'x': 3, 'y': 2} rows; allowed: columns of one length."
    assert "column 'x': got Unsupported numpy type" in message({"x": np.zeros(3, np.complex64)})
    assert "column 'x': got Got unsupported ScalarType BFloat16" in message({"x": torch.zeros(3, dtype=torch.bfloat16)})
    assert "column 'x': got shape (3, 0)" in message({"x": np.zeros((3, 0))})
    assert "column 'x': got meta; allowed: CPU tensors. Call .cpu()" in message({"x": torch.zeros(3, device="meta")})
    assert message({"x": []}) == "<table>: got no rows; allowed: at least one row."
    double = pa.table([pa.array([1]), pa.array([2])], ["x", "x"])
    assert message(double) == "<table>: got columns ['x', 'x']; allowed: names that differ."


def test_schemas_must_agree_but_for_order_and_metadata(tmp_path):
    first = write(tmp_path / "a.parquet", pa.table({"x": [1], "y": [2]}))
    write(tmp_path / "b.parquet", pa.table({"y": [3], "x": [4]}).replace_schema_metadata({"k": "v"}))
    assert all_rows(open_source(tmp_path)) == [{"x": 1, "y": 2}, {"x": 4, "y": 3}]
    fix = "Rewrite the shard with the schema of the first, or open the two kinds apart"
    for table, column, got, allowed in (
        ({"x": [1], "y": ["2"]}, "y", "string", "int64"),
        ({"x": [1]}, "y", "no such column", "int64"),
        ({"x": [1], "y": [2], "z": [3]}, "z", "int64", "no such column"),
    ):
        other = write(tmp_path / "c.parquet", pa.table(table))
        want = f"{other}, column '{column}': got {got}; allowed: {allowed}, as in {first}. {fix}."
        assert message(tmp_path) == want


@pytest.mark.parametrize("kind", KINDS)
def test_files_without_rows(tmp_path, kind):
    paths = [write(tmp_path / f"{name}.arrow", make_table(0), kind) for name in "ab"]
    assert message(paths[0]) == f"{paths[0]}: got no rows; allowed: at least one row."
    assert message(tmp_path) == f"{paths[0]} and 1 more: got no rows; allowed: at least one row."


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused_when_opened(tmp_path, kind, part):
    path = write(tmp_path / "a.arrow", make_table(1000), kind, 100)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    if kind == "stream" and part == 0.999:
        return  # nothing but the mark at its end is missing
    text = message(tmp_path)
    assert text.startswith(f"{path}: got ")
    assert f"allowed: {shards_module.FORMATS}. Is it a data file? It may be missing, truncated or damaged" in text
    if kind != "stream" and part:
        assert "it is truncated" in text


def test_a_file_that_is_no_data(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("hello, this is plain text, long enough to look like something")
    assert message(path).startswith(f"{path}: got ")


def test_a_corrupt_page_names_shard_and_group(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"x": np.random.default_rng(0).random(3000)})
    pq.write_table(table, path, row_group_size=1000, write_page_checksum=True, use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(content)
    source = open_source(path)
    assert source.read_groups([0, 2], ["x"]).num_rows == 2000
    for groups in ([1], [0, 1, 2]):
        with pytest.raises(SourceError, match=re.escape(f"{path}, groups [1]: got ")) as caught:
            source.read_groups(groups, ["x"])
        assert isinstance(caught.value.__cause__, OSError)
        assert str(caught.value).endswith("The file may be damaged: write or copy it again.")


@pytest.mark.parametrize("kind", ["parquet", "file", "lz4"])
def test_a_file_that_goes_or_changes_while_it_is_open(tmp_path, kind):
    path = write(tmp_path / "a.arrow", make_table(10), kind)
    source = open_source(path)
    write(path, make_table(20), kind)
    with pytest.raises(SourceError, match=r"allowed: the file as it was when opened\. Open the data again"):
        source.read_group(0, ["x"])
    write(path, make_table(4), kind, 1)
    with pytest.raises(SourceError):
        source.read_group(0, ["x"])
    path.unlink()
    with pytest.raises(SourceError, match=re.escape(f"{path}, groups [0]: got ")) as caught:
        source.read_group(0, ["x"])
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_fingerprints(tmp_path):
    path = write(tmp_path / "a.parquet", make_table(10))
    copy = tmp_path / "c" / "b.parquet"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(1, 1))
    mark = open_source(path).shards[0].fingerprint()
    assert open_source(copy).shards[0].fingerprint() == mark
    write(copy, make_table(10, 1))
    assert open_source(copy).shards[0].fingerprint() != mark
    for kind in ("file", "stream"):
        arrow = write(tmp_path / "a.arrow", make_table(10), kind)
        mark = open_source(arrow).shards[0].fingerprint()
        assert open_source(arrow).shards[0].fingerprint() == mark
        os.utime(arrow, ns=(1, 1))
        assert open_source(arrow).shards[0].fingerprint() != mark


def test_a_large_footer_is_read_whole(tmp_path):
    table = pa.table({f"column_{i}": [i] for i in range(1500)})
    path = write(tmp_path / "a.parquet", table)
    assert path.stat().st_size > 2**17
    assert all_rows(open_source(path)) == table.to_pylist()
