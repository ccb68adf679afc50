"""Data sets against plain Python: counts, slots, rows by class, fingerprints."""

import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbalance.dataset import Dataset
from fastbalance.errors import IndexFileError, LabelError, SourceError
from fastbalance.source import MAX_GROUP_ROWS


def dataset_of(groups):
    """A data set with one in-memory group per list of labels."""
    batches = [pa.record_batch({"y": pa.array(group, pa.int64())}) for group in groups if group]
    return Dataset.open(pa.Table.from_batches(batches), "y")


groups_of_labels = st.lists(st.lists(st.integers(-2, 300), max_size=8), min_size=1, max_size=8).filter(
    lambda groups: len({label for group in groups for label in group}) > 1
)


@settings(max_examples=150, deadline=None)
@given(groups_of_labels)
def test_slots_and_rows_are_those_of_counting(groups):
    data = dataset_of(groups)
    labels = [label for group in groups for label in group]
    classes = sorted(set(labels))
    assert data.classes == classes
    assert data.n_classes == len(classes)
    assert data.n_rows == len(labels)
    assert data.class_counts.tolist() == [labels.count(label) for label in classes]
    by_class = [[row for row, label in enumerate(labels) if label == value] for value in classes]
    rows = data.class_rows()
    assert rows.dtype == np.uint32
    assert rows.tolist() == [row for part in by_class for row in part]
    seen = [0] * len(classes)
    for number, group in enumerate(group for group in groups if group):
        ids = sorted({classes.index(label) for label in group})
        for found in (data.group_class_counts(number), data.first_slots(number)):
            assert found[0].dtype == np.int32
            assert found[1].dtype == np.int64
            assert found[0].tolist() == ids
        assert data.group_class_counts(number)[1].tolist() == [group.count(classes[c]) for c in ids]
        assert data.first_slots(number)[1].tolist() == [seen[c] for c in ids]
        for label in group:
            seen[classes.index(label)] += 1


def test_many_classes_and_several_groups():
    labels = np.random.default_rng(0).integers(0, 100_000, MAX_GROUP_ROWS + 1000)
    data = Dataset.open({"y": labels}, "y")
    assert len(data.groups) == 2
    np.testing.assert_array_equal(data.class_rows(), np.argsort(labels, kind="stable"))


def test_class_rows_are_read_once():
    data = dataset_of([[1, 2], [1]])
    assert data.class_rows() is data.class_rows()


def write(folder, labels, rows_per_group=4):
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(labels):
        table = pa.table({"y": part, "x": range(len(part))})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=rows_per_group)
    return folder


def test_open_with_an_index_equals_a_scan(tmp_path):
    folder = write(tmp_path / "data", [["a", "b", "b"], ["c", "a"]])
    scanned = Dataset.open(folder, "y")
    scanned.save_index(tmp_path / "y.index")
    loaded = Dataset.open(str(folder), "y", index=tmp_path / "y.index")
    assert loaded.classes == scanned.classes == ["a", "b", "c"]
    assert loaded.fingerprint == scanned.fingerprint
    assert loaded.class_rows().tolist() == scanned.class_rows().tolist() == [0, 4, 1, 2, 3]
    assert loaded.schema.names == ["y", "x"]
    assert loaded.encoder.encode(loaded.source.read_group(1, ["y"])).tolist() == [2, 0]
    with pytest.raises(IndexFileError, match="To make one: Dataset"):
        Dataset.open(folder, "y", index=tmp_path / "none")


def test_labels_that_changed_behind_an_index(tmp_path, monkeypatch):
    folder = write(tmp_path / "data", [["a", "b", "b"], ["b", "a"]])
    Dataset.open(folder, "y").save_index(tmp_path / "y.index")
    write(folder, [["a", "b", "b"], ["a", "a"]])
    monkeypatch.setattr("fastbalance.index._check_shards", lambda *_: None)
    data = Dataset.open(folder, "y", index=tmp_path / "y.index")
    fix = "Open the data again, and build its index again"
    want = f"{folder}/1.parquet: got other labels; allowed: those of the scan. {fix}."
    with pytest.raises(SourceError, match=f"^{re.escape(want)}$"):
        data.class_rows()


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    labels = [["a", "b", "b"], ["c", "a"]]
    folder = write(tmp_path / "data", labels)
    mark = Dataset.open(folder, "y").fingerprint
    assert re.fullmatch("[0-9a-f]{32}", mark)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert Dataset.open(tmp_path / "copy", "y").fingerprint == mark
    tables = pa.Table.from_batches([pa.record_batch({"y": part}) for part in labels])
    assert Dataset.open(tables, "y").fingerprint == mark
    others = [
        Dataset.open(folder, "x"),
        Dataset.open(folder, ["y", "x"]),
        Dataset.open(tables.rename_columns(["z"]), "z"),
        dataset_of([[1, 2, 2], [3, 1]]),
        dataset_of([[1, 2, 2], [1, 3, 3]]),
        dataset_of([[1, 2, 2, 3], [1]]),
        Dataset.open(write(tmp_path / "other", [["a", "b", "b"], ["d", "a"]]), "y"),
    ]
    assert len({mark, *(other.fingerprint for other in others)}) == 8


@pytest.mark.parametrize(
    "kind", [pa.timestamp("ns"), pa.date64(), pa.time32("s"), pa.time64("ns"), pa.date32()], ids=str
)
def test_fingerprints_of_times(kind):
    one_day = 86_400_000 if pa.types.is_date64(kind) else 1
    times = pa.array([0, one_day], pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)
    marks = [Dataset.open({"y": times.take(pa.array(rows))}, "y").fingerprint for rows in ([0, 1, 1], [0, 0, 1])]
    assert marks[0] != marks[1]
    assert marks[0] == Dataset.open({"y": times.take(pa.array([1, 0, 1]))}, "y").fingerprint


def test_repr():
    data = dataset_of([[1, 1000] + [1] * 1500])
    assert repr(data) == "Dataset(1,502 rows, 1 shards, 1 groups, label='y', classes {1: 1,501, 1000: 1})"
    assert repr(dataset_of([range(20)])).endswith("7: 1, and 12 more})")


def test_arguments_reach_the_scan():
    calls = []
    Dataset.open({"y": [1, 2]}, "y", progress=lambda *state: calls.append(state))
    assert calls == [(1, 1)]
    with pytest.raises(LabelError, match="max_classes=2"):
        Dataset.open({"y": [1, 2, 3]}, "y", max_classes=2)
