"""Saved indexes: they come back as they were, and never belong to other data or survive damage unnoticed."""

import datetime
import os
import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastbalance import index as index_module
from fastbalance.errors import IndexFileError
from fastbalance.index import load_index, save_index
from fastbalance.labels import scan_labels
from fastbalance.source import open_source

FIX = "Build the index again"
FIX_DATA = f"{FIX}, or bring the data back to what was indexed"


def write(path, values, rows_per_group=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"y": values, "z": [i % 2 for i in range(len(values))]}), path, row_group_size=rows_per_group
    )


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    for name, values in (("a", "xxy"), ("b/c", "zxüyy"), ("d", "x")):
        write(folder / f"{name}.parquet", list(values))
    return folder


@pytest.fixture
def saved(data, tmp_path):
    """The path of an index of `data`."""
    path = tmp_path / "y.index"
    source = open_source(data)
    save_index(path, source, scan_labels(source, "y"))
    return path


def assert_same(one, two):
    assert one.classes == two.classes
    assert one.label == two.label
    for name in ("group_ptr", "group_classes", "group_counts", "class_counts"):
        first, second = getattr(one, name), getattr(two, name)
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "values",
    [
        [True, False, True],
        ["", "ü", "blake2b:"],
        [b"\x00", b"", b"\xff"],
        [datetime.date(2024, 1, 1), datetime.date(1960, 1, 1)],
        [datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc), datetime.datetime(2025, 1, 1)],
        [Decimal("1.50"), Decimal("-2.25")],
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array(["a", "b"], pa.string_view()),
        pa.array([2**64 - 1, 0], pa.uint64()),
    ],
)
def test_round_trip(tmp_path, values):
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.schema({"y": pa.array(values).type})) as writer:
        writer.write_table(pa.table({"y": values}), max_chunksize=2)
    source = open_source(tmp_path / "a.arrow")
    scan = scan_labels(source, "y")
    save_index(tmp_path / "i", source, scan)
    loaded = load_index(tmp_path / "i", source, "y")
    assert_same(loaded, scan)
    assert loaded.values.schema == scan.values.schema


def test_round_trip_of_several_labels_after_a_move(data, tmp_path, monkeypatch):
    source = open_source(data)
    scan = scan_labels(source, ["z", "y"])
    save_index(str(tmp_path / "i"), source, scan)
    shutil.copytree(data, tmp_path / "copy")
    shutil.rmtree(data)
    assert_same(load_index(tmp_path / "i", open_source(tmp_path / "copy"), ["z", "y"]), scan)
    monkeypatch.chdir(tmp_path / "copy")
    assert_same(load_index("../i", open_source("."), ["z", "y"]), scan)
    assert_same(load_index("../i", open_source("**/*.parquet"), ("z", "y")), scan)


def test_one_file(tmp_path):
    write(tmp_path / "a.parquet", ["x", "y"])
    source = open_source(tmp_path / "a.parquet")
    scan = scan_labels(source, "y")
    save_index(tmp_path / "i", source, scan)
    os.rename(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert message(tmp_path / "i", tmp_path / "b.parquet").startswith(
        f"{tmp_path}/i, shard 'a.parquet': got no such shard"
    )
    os.rename(tmp_path / "b.parquet", tmp_path / "a.parquet")
    assert_same(load_index(tmp_path / "i", open_source(tmp_path), "y"), scan)


def test_it_is_an_arrow_file_and_the_same_every_time(saved, data, tmp_path):
    with pa.ipc.open_file(saved) as reader:
        assert reader.schema.metadata[b"fastbalance_index"] == b"1"
        assert reader.get_batch(0).column("shard_names").to_pylist() == [["a.parquet", "b/c.parquet", "d.parquet"]]
    source = open_source(data)
    save_index(tmp_path / "again", source, scan_labels(source, "y"))
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def message(path, source, label="y"):
    opened = open_source(source)
    with pytest.raises(IndexFileError) as caught:
        load_index(path, opened, label)
    return str(caught.value)


def test_every_flipped_byte_is_noticed(saved, data, tmp_path):
    content, damaged = saved.read_bytes(), tmp_path / "damaged"
    source = open_source(data)
    for place in range(0, len(content), 97):
        wrong = bytearray(content)
        wrong[place] ^= 0x41
        damaged.write_bytes(wrong)
        with pytest.raises(IndexFileError, match="damaged"):
            load_index(damaged, source, "y")


def test_both_copies_of_the_digest_are_checked(saved, data, tmp_path):
    content = saved.read_bytes()
    digest = index_module._DIGEST.findall(content)
    assert len(digest) == 2
    for place in (content.index(digest[0]), content.rindex(digest[0])):
        for offset in (0, 8, 71):
            wrong = bytearray(content)
            wrong[place + offset] ^= 1
            (tmp_path / "damaged").write_bytes(wrong)
            assert "damaged" in message(tmp_path / "damaged", data)


def test_truncated_and_foreign_files(saved, data, tmp_path):
    content, path = saved.read_bytes(), tmp_path / "other"
    checksum = "got a checksum that does not match: the file is damaged or truncated"
    checksum += "; allowed: the file as it was written"
    foreign = "got another kind of file, or a damaged one; allowed: an index of fastbalance"
    for part, want in (
        (content[:-1], checksum),
        (content[: len(content) // 2], checksum),
        (content + b"\0", checksum),
        (content[:20], foreign),
        (b"", foreign),
        ((data / "a.parquet").read_bytes(), foreign),
    ):
        path.write_bytes(part)
        assert message(path, data) == f"{path}: {want}. {FIX}."


def test_another_version(saved, data, monkeypatch, tmp_path):
    monkeypatch.setattr(index_module, "VERSION", b"2")
    assert message(saved, data) == f"{saved}: got format version 1; allowed: version 2. {FIX}."


def test_another_label(saved, data):
    assert message(saved, data, "z") == f"{saved}: got an index of the label ['y']; allowed: label ['z']. {FIX}."
    assert "allowed: label ['y', 'z']" in message(saved, data, ["y", "z"])


def test_a_missing_index_says_how_to_make_one(data, tmp_path):
    text = message(tmp_path / "no", data)
    assert text.startswith(f"index '{tmp_path}/no': got [Errno 2] No such file or directory")
    assert text.endswith("allowed: a file. To make one: Dataset.open(source, label).save_index(path).")


def test_shards_that_went_came_or_changed(saved, data, tmp_path):
    kept = tmp_path / "kept.parquet"
    shutil.move(data / "d.parquet", kept)
    want = f"{saved}, shard 'd.parquet': got no such shard; allowed: every shard that was indexed. {FIX_DATA}."
    assert message(saved, data) == want
    write(data / "d.parquet", ["y"])
    as_indexed = "allowed: the shards as they were indexed, in that order"
    assert (
        message(saved, data)
        == f"{saved}, shard 'd.parquet': got a shard that has changed since; {as_indexed}. {FIX_DATA}."
    )
    shutil.move(kept, data / "d.parquet")
    order = [data / name for name in ("a.parquet", "d.parquet", "b/c.parquet")]
    assert message(saved, order) == (
        f"{saved}, shard 'b/c.parquet': got another shard at its place; {as_indexed}. {FIX_DATA}."
    )
    write(data / "b" / "new.parquet", ["y"])
    assert message(saved, data) == (
        f"{saved}, shard 'b/new.parquet': got a new shard; allowed: only shards that were indexed. {FIX_DATA}."
    )


def test_memory_has_no_index(tmp_path):
    source = open_source({"y": [1, 2]})
    with pytest.raises(IndexFileError) as caught:
        save_index(tmp_path / "i", source, scan_labels(source, "y"))
    fix = "Write the data to Parquet first; scanning a table in memory again is cheap"
    assert str(caught.value) == f"source: got a table in memory; allowed: files. {fix}."
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved, data, monkeypatch, where, error):
    before = saved.read_bytes()
    source = open_source(data / "a.parquet")
    scan = scan_labels(source, "y")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(IndexFileError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        save_index(saved, source, scan)
    if isinstance(error, OSError):
        want = "got disk full; allowed: a path in a directory that can be written to."
        assert str(caught.value) == f"index {str(saved)!r}: {want}"
        assert caught.value.__cause__ is error
    assert saved.read_bytes() == before
    assert sorted(os.listdir(saved.parent)) == ["data", saved.name]


def test_a_directory_that_is_not_there(data, tmp_path):
    source = open_source(data)
    with pytest.raises(IndexFileError, match=r"No such file or directory.*allowed: a path in a directory"):
        save_index(Path(tmp_path / "no" / "i"), source, scan_labels(source, "y"))
