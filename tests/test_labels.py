"""Label scans against counting in plain Python, for every label type and awkward cut of the data."""

import datetime
import decimal
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbalance import encoder as encoder_module
from fastbalance import labels as labels_module
from fastbalance.encoder import Encoder
from fastbalance.errors import LabelError, SourceError
from fastbalance.labels import scan_labels
from fastbalance.shards import MemoryShard
from fastbalance.source import _join, open_source

DAY = datetime.date(2024, 1, 1)
TYPES = {
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-128, 127),
    pa.uint8(): st.integers(0, 255),
    pa.int32(): st.integers(-3, 3) | st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-3, 3) | st.sampled_from([-(2**63), 2**63 - 1]),
    pa.uint64(): st.integers(0, 3) | st.sampled_from([2**63, 2**64 - 1]),
    pa.string(): st.text(max_size=2),
    pa.large_string(): st.sampled_from(["", "a", "ä", "日本", "\U0001f600", "z"]),
    pa.string_view(): st.text("abé", max_size=14),
    pa.binary(): st.binary(max_size=2),
    pa.binary_view(): st.binary(max_size=2),
    pa.binary(2): st.binary(min_size=2, max_size=2),
    pa.date32(): st.integers(-3, 3).map(lambda n: DAY + datetime.timedelta(n)),
    pa.date64(): st.integers(-3, 3).map(lambda n: DAY + datetime.timedelta(n)),
    pa.time32("s"): st.integers(0, 5).map(lambda n: datetime.time(n)),
    pa.timestamp("us"): st.integers(0, 5).map(lambda n: datetime.datetime(2024, 1, 1, n)),
    pa.timestamp("s", "UTC"): st.integers(0, 5).map(
        lambda n: datetime.datetime(1960, 1, 1, n, tzinfo=datetime.timezone.utc)
    ),
    pa.decimal128(6, 2): st.integers(-200, 200).map(lambda n: decimal.Decimal(n).scaleb(-2)),
    pa.dictionary(pa.int8(), pa.string()): st.text("ab", max_size=2),
    pa.dictionary(pa.int32(), pa.int64()): st.integers(-5, 5),
}


def source_of(groups, types, shards=1):
    """A source with one in-memory group per list of rows; every group has dictionaries of its own."""
    names = [f"c{i}" for i in range(len(types))]
    batches = []
    for rows in groups:
        columns = []
        for i, kind in enumerate(types):
            values = [None, *(row[i] for row in rows), None]  # so that slices have offsets
            plain = kind.value_type if pa.types.is_dictionary(kind) else kind
            column = pa.array(values, plain)
            column = column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column
            columns.append(column.slice(1, len(rows)))
        batches.append(pa.record_batch(columns, names))
    cuts = np.linspace(0, len(batches), shards + 1).astype(int)
    parts = [batches[a:b] for a, b in pairwise(cuts)]
    return _join([MemoryShard(f"shard {i}", part, batches[0].schema) for i, part in enumerate(parts)]), names


def check(groups, types, shards=1):
    source, names = source_of(groups, types, shards)
    scan = scan_labels(source, names)
    rows = [row for group in groups for row in group]
    want = sorted(set(rows))
    assert scan.classes == (want if len(types) > 1 else [value for (value,) in want])
    assert scan.class_counts.tolist() == [Counter(rows)[value] for value in want]
    assert [a.dtype for a in (scan.group_ptr, scan.group_classes, scan.group_counts)] == [
        "int64",
        "int32",
        "int64",
    ]
    for g, group in enumerate(groups):
        entries = slice(*scan.group_ptr[g : g + 2])
        counts = sorted(Counter(want.index(row) for row in group).items())
        assert scan.group_classes[entries].tolist() == [c for c, _ in counts]
        assert scan.group_counts[entries].tolist() == [n for _, n in counts]
    encoder = Encoder(scan.values)
    for g, group in enumerate(groups):
        ids = encoder.encode(source.read_group(g, names))
        assert ids.dtype == np.int32
        assert ids.tolist() == [want.index(row) for row in group]
    everything = pa.concat_tables([source.read_group(g, names) for g in range(len(groups))])
    assert encoder.encode(everything).tolist() == [want.index(row) for row in rows]


def groups_of(*kinds):
    row = st.tuples(*(TYPES[kind] for kind in kinds))
    groups = st.lists(st.lists(row, max_size=6), min_size=1, max_size=5)
    return groups.filter(lambda groups: len({row for group in groups for row in group}) > 1)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_one_label_column(kind, data):
    check(data.draw(groups_of(kind)), [kind], data.draw(st.integers(1, 3)))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), kinds=st.lists(st.sampled_from(list(TYPES)), min_size=2, max_size=5))
def test_several_label_columns(data, kinds):
    check(data.draw(groups_of(*kinds)), kinds)


def test_the_small_and_the_large_ways_agree(monkeypatch):
    rng = np.random.default_rng(0)
    groups = [
        [(int(a), bool(b)) for a, b in zip(rng.integers(-50, 50, n), rng.random(n) < 0.1, strict=True)]
        for n in (70_000, 1, 0, 500)
    ]
    check(groups, [pa.int16(), pa.bool_()])
    for module in (labels_module, encoder_module):
        monkeypatch.setattr(module, "TABLE_SPAN", 0)
    monkeypatch.setattr(encoder_module, "_ENCODE_ROWS", 1000)
    check(groups, [pa.int16(), pa.bool_()])


def test_many_label_columns_do_not_overflow():
    rows = [tuple(int(x) for x in row) for row in np.random.default_rng(0).integers(0, 1000, (1000, 8))]
    check([rows], [pa.int64()] * 8)


def test_dictionaries_that_repeat_a_value_or_have_unused_ones():
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 1], pa.int8()), pa.array(["b", "a", "b", "never"]))
    scan = scan_labels(open_source(pa.table({"y": column})), "y")
    assert scan.classes == ["a", "b"]
    assert scan.class_counts.tolist() == [2, 2]
    assert Encoder(scan.values).encode(pa.table({"y": column})).tolist() == [1, 0, 1, 0]


def test_classes_do_not_depend_on_the_order_of_shards(tmp_path):
    for name, values in (("a", ["z"] * 3 + ["b"]), ("b", ["a"] * 5)):
        pq.write_table(pa.table({"y": values}), tmp_path / f"{name}.parquet", row_group_size=2)
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    one, two = (scan_labels(open_source(order), "y") for order in (paths, paths[::-1]))
    assert one.classes == two.classes == ["a", "b", "z"]
    assert one.class_counts.tolist() == two.class_counts.tolist() == [5, 1, 3]


def test_label_names_may_be_anything():
    table = pa.table({"count": [1, 2], "0": ["a", "b"], "count_all": [5, 5]})
    scan = scan_labels(open_source(table), ["count_all", "0", "count"])
    assert scan.label == ("count_all", "0", "count")
    assert scan.classes == [(5, "a", 1), (5, "b", 2)]


def test_progress_is_reported():
    source, names = source_of([[(True,)], [(False,)], []], [pa.bool_()])
    calls = []
    scan_labels(source, names, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def message(table, label, **options):
    with pytest.raises(LabelError) as caught:
        scan_labels(open_source(table), label, **options)
    return str(caught.value)


def test_messages_about_names():
    table = pa.table({"other": [1], "label_id": [1], "x": [1]})
    assert message(table, "label") == "label: got no column 'label'; allowed: one of ['label_id', 'other', 'x']."
    for label in ([], ["x", "x"], [3]):
        assert message(table, label) == f"label: got {label!r}; allowed: a column name, or several that differ."


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.dictionary(pa.int8(), pa.float64())])
def test_floats_are_refused(kind):
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    column = pa.array(np.array([1.0, 2.0], plain.to_pandas_dtype()))
    column = column.dictionary_encode().cast(kind) if plain != kind else column
    fix = "Cast it to an integer if its values are whole numbers, else sort them into bins"
    want = f"label column 'y': got {plain}; allowed: {labels_module.LABEL_TYPES}. {fix}."
    assert message(pa.table({"y": column}), "y") == want


@pytest.mark.parametrize("values", [[[1], [2]], [{"a": 1}, {"a": 2}], [None, None], [datetime.timedelta(1)]])
def test_nested_and_other_types_are_refused(values):
    text = message(pa.table({"y": pa.array(values)}), "y")
    assert text.startswith("label column 'y': got ")
    assert text.endswith("Name another column, or make a column of class numbers or names out of it.")


@pytest.mark.parametrize("kind", TYPES, ids=str)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_nulls_name_column_number_and_shard(kind, data):
    good, null = (data.draw(TYPES[kind]),), (None,)
    source, names = source_of([[good], [good], [null, good], [null, null]], [kind], shards=2)
    with pytest.raises(LabelError) as caught:
        scan_labels(source, names)
    fix = "Drop these rows, or give them a value of their own before"
    got = "3 nulls, the first of them in shard 1"
    assert str(caught.value) == f"label column 'c0': got {got}; allowed: labels without nulls. {fix}."


def test_nulls_of_a_second_column_and_a_later_shard():
    source, names = source_of([[(1, 1), (2, 2)], [(1, None)]], [pa.int8(), pa.int8()], shards=2)
    with pytest.raises(LabelError, match="label column 'c1': got 1 nulls, the first of them in shard 1"):
        scan_labels(source, names)


def test_nulls_inside_a_dictionary_are_nulls():
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1]), pa.array(["a", None]))
    assert "got 2 nulls" in message(pa.table({"y": column}), "y")


def test_too_few_and_too_many_classes():
    text = message(pa.table({"y": ["a", "a"]}), "y")
    assert text == (
        "label column 'y': got one class, 'a'; allowed: two or more classes. "
        "There is nothing to balance; is it the right column?"
    )
    assert "label columns 'y', 'z': got one class, (1, 2)" in message(pa.table({"y": [1], "z": [2]}), ["y", "z"])
    text = message(pa.table({"y": range(11)}), "y", max_classes=10)
    fix = "Is it a column of row ids? If not, raise max_classes"
    assert text == f"label column 'y': got more than 10 classes; allowed: max_classes=10. {fix}."
    scan = scan_labels(open_source(pa.table({"y": range(10)})), "y", max_classes=10)
    assert len(scan.classes) == 10


def test_too_many_classes_stop_the_scan_early():
    source, names = source_of([[(i,)] for i in range(100)], [pa.int32()])
    done = []
    with pytest.raises(LabelError, match="more than 3 classes"):
        scan_labels(source, names, max_classes=3, progress=lambda *state: done.append(state))
    assert len(done) == 6


@pytest.mark.parametrize(
    ("kind", "seen", "other"),
    [
        (pa.bool_(), [True, True, False], None),
        (pa.int64(), [0, 5], 3),
        (pa.int64(), [0, 5], 6),
        (pa.int64(), [0, 5], -1),
        (pa.int64(), [0, 2**40], 7),
        (pa.uint8(), [0, 5], 255),
        (pa.string(), ["a", "b"], "c"),
        (pa.dictionary(pa.int8(), pa.string()), ["a", "b"], "c"),
        (pa.dictionary(pa.int8(), pa.string()), ["a", "b"], None),
        (pa.string(), ["a", "b"], None),
    ],
)
def test_values_that_the_scan_did_not_see(kind, seen, other):
    source, names = source_of([[(value,) for value in seen]], [kind])
    encoder = Encoder(scan_labels(source, names).values)
    changed, _ = source_of([[(value,) for value in [seen[0], other, seen[1]]]], [kind])
    with pytest.raises(SourceError) as caught:
        encoder.encode(changed.read_group(0, names))
    fix = "A shard has changed since: scan the labels again"
    assert str(caught.value) == f"label column 'c0': got the value {other!r}; allowed: what the scan saw. {fix}."


def test_pairs_that_the_scan_did_not_see():
    source, names = source_of([[(1, "a"), (2, "b")]], [pa.int8(), pa.string()])
    encoder = Encoder(scan_labels(source, names).values)
    changed, _ = source_of([[(1, "a"), (1, "b")]], [pa.int8(), pa.string()])
    with pytest.raises(SourceError, match=r"label columns 'c0', 'c1': got the value \(1, 'b'\)"):
        encoder.encode(changed.read_group(0, names))
