"""Row records: a batch holds the values of the rows that it names, whatever its columns are; bad ones are named."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastbalance import BalancedLoader, Dataset
from fastbalance.arena import Arena, load_arena
from fastbalance.errors import ArgumentError, ColumnError, SourceError
from fastbalance.records import make_layout

CPU = torch.device("cpu")
NUMPY_TYPES = ["bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
NUMPY_TYPES += ["float16", "float32", "float64"]
LABELS = [0] * 9 + [1] * 3


def values_of(dtype: str, n_rows: int, shape: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
    """Values over the whole range of a type, its ends included."""
    rng = np.random.default_rng(seed)
    size = (n_rows, *shape)
    if dtype == "bool":
        return rng.random(size) < 0.5
    if dtype.startswith("float"):
        return (rng.standard_normal(size) * 100).astype(dtype)
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max, size, dtype=dtype, endpoint=True)
    values.reshape(-1)[:2] = [info.min, info.max][: values.size]
    return values


def as_arrow(values: np.ndarray) -> pa.Array:
    """An array of n rows as nested fixed-size lists."""
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in values.shape[:0:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def load(source: Any, batch_size: int = 4, **options: Any) -> BalancedLoader:
    return BalancedLoader(source, "y", batch_size, device="cpu", **{"balance": "natural", **options})


def one_batch(source: dict[str, Any], **options: Any) -> dict[str, torch.Tensor]:
    """All rows of a source, in their order."""
    source = {"y": LABELS, **source}
    batch = next(iter(load(source, len(source["y"]), extras=("row",), **options)))
    order = batch.pop("row").argsort()
    return {name: tensor[order] for name, tensor in batch.items()}


def check_values(loader: BalancedLoader, wanted: dict[str, np.ndarray], epochs: int = 1) -> None:
    """Every row of every batch has the values of the row whose number it names."""
    seen = np.zeros(loader.data.n_rows, np.int64)
    for _ in range(epochs):
        for batch in loader:
            rows = batch["row"].numpy()
            np.add.at(seen, rows, 1)
            for name, values in wanted.items():
                got = batch[name].numpy()
                assert got.dtype == values.dtype, name
                np.testing.assert_array_equal(got, values[rows], err_msg=name)
    assert seen.min() >= epochs


# ---------------------------------------------------------------------------------------------- types and shapes


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 2)], ids=str)
def test_every_type_and_shape(dtype, shape):
    values = values_of(dtype, 12, shape)
    batch = one_batch({"x": as_arrow(values)})
    assert batch["x"].dtype == getattr(torch, dtype)
    assert tuple(batch["x"].shape) == (12, *shape)
    np.testing.assert_array_equal(batch["x"].numpy(), values)


@pytest.mark.parametrize("dtype", ["bool", "int16", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)], ids=str)
def test_sliced_and_chunked_columns(dtype, shape):
    column = as_arrow(values_of(dtype, 40, shape))
    chunks = pa.chunked_array([column.slice(3, 5), column.slice(0, 0), column.slice(17, 1), column.slice(33, 6)])
    batch = one_batch({"x": chunks})
    wanted = values_of(dtype, 40, shape)[[*range(3, 8), 17, *range(33, 39)]]
    np.testing.assert_array_equal(batch["x"].numpy(), wanted)


def test_nulls_outside_of_a_slice_do_not_matter():
    lists = pa.array([None, *[[i, i] for i in range(12)], [1, None]], pa.list_(pa.int8(), 2)).slice(1, 12)
    numbers = pa.array([None, *range(12), None]).slice(1, 12)
    batch = one_batch({"lists": lists, "numbers": numbers})
    assert batch["lists"].tolist() == [[i, i] for i in range(12)]
    assert batch["numbers"].tolist() == list(range(12))


@pytest.mark.parametrize("cut", [False, True])
def test_fixed_shape_tensors(cut):
    values = values_of("float32", 20, (2, 3))
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    chunks = pa.chunked_array([column.slice(7, 7), column.slice(1, 5)]) if cut else column.slice(0, 12)
    wanted = values[[*range(7, 14), *range(1, 6)]] if cut else values[:12]
    np.testing.assert_array_equal(one_batch({"x": chunks})["x"].numpy(), wanted)


def test_fixed_shape_tensors_with_permuted_dimensions_are_not_taken_for_others():
    values = values_of("float32", 12, (2, 3))
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3], permutation=[1, 0])  # stored as [2, 3], meant as [3, 2]
    column = pa.ExtensionArray.from_storage(kind, as_arrow(values.reshape(12, 6)))
    try:
        got = one_batch({"x": column}, columns=["x"])["x"].numpy()
    except ColumnError:
        return
    np.testing.assert_array_equal(got, values.transpose(0, 2, 1))


@pytest.mark.parametrize("columns", [None, ["x"], {"z": ["x", "f"]}], ids=str)
def test_lists_of_no_elements(columns):
    source = {"x": pa.array([[]] * 12, pa.list_(pa.float32(), 0)), "f": np.arange(12, dtype=np.float32)}
    batch = one_batch(source, columns=columns)
    if columns == {"z": ["x", "f"]}:
        assert batch["z"].tolist() == [[float(i)] for i in range(12)]
    else:
        assert tuple(batch["x"].shape) == (12, 0)


# ------------------------------------------------------------------------------------------- choosing columns

MIXED = {
    "a": np.arange(12),
    "b": np.arange(12) * 10,
    "f": np.arange(12) / 2,
    "v": as_arrow(np.arange(24).reshape(12, 2)),
    "m": as_arrow(np.arange(72).reshape(12, 2, 3)),
    "s": [str(i) for i in range(12)],
}


def test_none_takes_every_column_that_can_be_a_tensor():
    assert list(one_batch(MIXED)) == ["y", "a", "b", "f", "v", "m"]


def test_names():
    assert list(one_batch(MIXED, columns=["f", "a"])) == ["f", "a"]
    assert list(one_batch(MIXED, columns=("a",))) == ["a"]
    assert list(one_batch(MIXED, columns=["a", "a"])) == ["a"]
    assert one_batch(MIXED, columns=[]) == {}


def test_a_mapping_renames_and_groups():
    batch = one_batch(MIXED, columns={"one": "a", "matrix": ["b", "a"], "twice": ["a", "a"], "list": "m"})
    assert list(batch) == ["one", "matrix", "twice", "list"]
    assert batch["one"].tolist() == list(range(12))
    assert batch["matrix"].tolist() == [[10 * i, i] for i in range(12)]
    assert batch["twice"].tolist() == [[i, i] for i in range(12)]
    assert tuple(batch["list"].shape) == (12, 2, 3)


def test_lists_and_numbers_lie_side_by_side():
    batch = one_batch(MIXED, columns={"x": ["v", "a", "m"]})
    assert batch["x"].tolist() == [[2 * i, 2 * i + 1, i, *range(6 * i, 6 * i + 6)] for i in range(12)]


def test_a_list_of_one_column_is_a_matrix_like_a_list_of_two():
    """A model with one feature is a model of `[B, n]` with n = 1."""
    batch = one_batch(MIXED, columns={"x": ["a"]})
    assert tuple(batch["x"].shape) == (12, 1)


def test_a_name_can_be_that_of_another_column():
    batch = one_batch(MIXED, columns={"a": "b", "b": "a"})
    assert batch["a"].tolist() == [10 * i for i in range(12)]
    assert batch["b"].tolist() == list(range(12))


# --------------------------------------------------------------------------------------------- the layout


class Shape(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


shapes = st.builds(Shape, st.sampled_from(NUMPY_TYPES), st.lists(st.integers(1, 5), max_size=3).map(tuple))


def schema_of(shapes: list[Shape]) -> pa.Schema:
    fields = []
    for i, (dtype, shape) in enumerate(shapes):
        kind = pa.from_numpy_dtype(np.dtype(dtype))
        for size in reversed(shape):
            kind = pa.list_(kind, size)
        fields.append((f"c{i}", kind))
    return pa.schema(fields)


@given(st.lists(shapes, min_size=1, max_size=12), st.sampled_from([(), ("class_id",), ("row",), ("class_id", "row")]))
def test_fields_are_aligned_and_do_not_overlap(shapes, extras):
    layout = make_layout(schema_of(shapes), None, extras)
    assert [field.name for field in layout.fields] == [f"c{i}" for i in range(len(shapes))] + list(extras)
    assert layout.record_bytes % 16 == 0
    end = waste = 0
    for field in layout.fields:
        assert field.offset % field.dtype.itemsize == 0
        assert field.offset >= end
        waste += field.offset - end
        end = field.offset + field.n_bytes
    assert 0 <= layout.record_bytes - end < 16
    assert waste <= 7 * len(layout.fields)
    records = torch.zeros((7, layout.record_bytes), dtype=torch.uint8)
    for rows in (records, records[3:5], records[6:7]):
        views = layout.views(rows)
        for field, shape in zip(layout.fields, [s.shape for s in shapes] + [()] * len(extras), strict=True):
            view = views[field.name]
            assert tuple(view.shape) == (len(rows), *shape)
            assert view.data_ptr() == rows.data_ptr() + field.offset
            assert view.untyped_storage().data_ptr() == records.untyped_storage().data_ptr()


@given(st.data())
def test_values_of_any_grouping_of_any_columns(data):
    """Columns of any types, grouped in any way, converted to float64 where they are mixed."""
    n_rows = data.draw(st.integers(2, 20))
    labels = data.draw(st.permutations([i % 2 for i in range(n_rows)]))
    found = data.draw(st.lists(shapes.filter(lambda s: not s.dtype.endswith("int64")), min_size=1, max_size=6))
    values = {f"c{i}": values_of(dtype, n_rows, shape, i) for i, (dtype, shape) in enumerate(found)}
    groups = data.draw(st.lists(st.lists(st.sampled_from(sorted(values)), min_size=2, max_size=4), max_size=4))
    columns: dict[str, Any] = {name: name for name in values}
    wanted, dtypes = dict(values), {}
    for i, names in enumerate(groups):
        parts = [values[name].reshape(n_rows, -1) for name in names]
        if len({part.dtype for part in parts}) > 1:
            dtypes[f"g{i}"] = torch.float64
            parts = [part.astype(np.float64) for part in parts]
        columns[f"g{i}"] = names
        wanted[f"g{i}"] = np.concatenate(parts, axis=1)
    source = {"y": labels, **{name: as_arrow(column) for name, column in values.items()}}
    shuffled = dict(data.draw(st.permutations(list(columns.items()))))
    loader = load(source, 2, columns=shuffled, dtypes=dtypes, extras=("row", "class_id"))
    check_values(loader, {**wanted, "class_id": np.array(labels)})


def test_batches_are_views_of_one_record_block():
    loader = load({"y": LABELS, **MIXED}, extras=("class_id", "row"))
    for batch in loader:
        storages = {tensor.untyped_storage().data_ptr() for tensor in batch.values()}
        assert len(storages) == 1
        strides = {tensor.stride(0) * tensor.dtype.itemsize for tensor in batch.values()}
        assert len(strides) == 1
        assert strides.pop() % 16 == 0


def test_batches_can_be_computed_with():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5)).astype(np.float32)
    source = {"y": [0] * 50 + [1] * 10, "flag": x[:, 0] > 0, **{f"f{i}": x[:, i] for i in range(5)}}
    weight = torch.from_numpy(rng.standard_normal((5, 3)).astype(np.float32)).requires_grad_()
    columns = {"flag": "flag", "x": [f"f{i}" for i in range(5)], "y": "y"}
    loader = load(source, 8, balance="uniform", columns=columns, extras=("row", "weight", "class_id"))
    for batch in loader:
        out = batch["x"] @ weight
        torch.testing.assert_close(out, torch.from_numpy(x[batch["row"]]) @ weight)
        loss = torch.nn.functional.cross_entropy(out, batch["y"], reduction="none") * batch["weight"]
        loss.mean().backward()
        assert batch["x"].contiguous().is_contiguous()
        assert batch["flag"].logical_not().sum() == 8 - int(batch["flag"].sum())
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


def test_writing_to_a_batch_changes_nothing_else():
    source = {"y": LABELS, "x": as_arrow(np.arange(36.0).reshape(12, 3))}
    fresh = load(source, 4, balance="uniform", extras=("row", "class_id"))
    loader = load(source, 4, balance="uniform", extras=("row", "class_id"))
    for _ in range(3):
        wanted = [{name: tensor.clone() for name, tensor in batch.items()} for batch in fresh]
        got = []
        for batch in loader:
            got.append({name: tensor.clone() for name, tensor in batch.items()})
            for tensor in batch.values():
                tensor.mul_(0).sub_(7)
        for a, b in zip(wanted, got, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
    kept = list(loader)
    kept[0]["x"].fill_(-1)
    for batch in kept[1:]:
        assert batch["x"].tolist() == [[3.0 * row, 3.0 * row + 1, 3.0 * row + 2] for row in batch["row"].tolist()]


def test_the_data_that_was_given_is_not_written_to():
    x = torch.arange(12.0)
    for batch in load({"y": torch.tensor(LABELS), "x": x}):
        batch["x"].fill_(-1)
    assert x.tolist() == list(range(12))


# ------------------------------------------------------------------------------------- wherever the rows are


def random_table(n_rows: int, seed: int, *, sort: bool) -> tuple[pa.Table, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.minimum(np.arange(n_rows) % 11, 3))
    labels = np.sort(labels) if sort else labels
    values = {
        "flag": values_of("bool", n_rows, (), seed),
        "half": values_of("float16", n_rows, (), seed),
        "wide": values_of("float64", n_rows, (3,), seed),
        "byte": values_of("int8", n_rows, (), seed),
        "big": values_of("uint64", n_rows, (), seed),
        "cube": values_of("int32", n_rows, (2, 2), seed),
        "bits": values_of("bool", n_rows, (5,), seed),
    }
    columns = {name: as_arrow(column) for name, column in values.items()}
    columns["image"] = pa.FixedShapeTensorArray.from_numpy_ndarray(values_of("uint16", n_rows, (2, 3), seed))
    values["image"] = values_of("uint16", n_rows, (2, 3), seed)
    text = pa.array([f"text {i}" for i in range(n_rows)])
    return pa.table({"text": text, **columns, "y": labels}), {**values, "y": labels, "class_id": labels}


def write_shards(folder, table: pa.Table, cuts: list[int], kind: str, group_rows: int) -> None:
    for i, (start, stop) in enumerate(pairwise(cuts)):
        part = table.slice(start, stop - start)
        if kind == "parquet":
            pq.write_table(part, folder / f"{i}.parquet", row_group_size=group_rows)
            continue
        make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        options = pa.ipc.IpcWriteOptions(compression="lz4" if kind == "lz4" else None)
        with make(folder / f"{i}.arrow", table.schema, options=options) as writer:
            writer.write_batch(_empty(table.schema))
            writer.write_table(part, max_chunksize=group_rows)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([pa.nulls(0, field.type) for field in schema], schema=schema)


@pytest.mark.parametrize("kind", ["parquet", "file", "lz4", "stream"])
@pytest.mark.parametrize("sort", [False, True], ids=["mixed", "sorted"])
def test_files(tmp_path, kind, sort):
    for seed, group_rows, cuts in [
        (0, 1, [0, 12, 23]),
        (1, 7, [0, 1, 50, 173]),
        (2, 1000, [0, 611]),
        (3, 37, [0, 300]),
    ]:
        folder = tmp_path / str(seed)
        folder.mkdir()
        table, values = random_table(cuts[-1], seed, sort=sort)
        write_shards(folder, table, cuts, kind, group_rows)
        loader = load(folder, 11, extras=("row", "class_id"), seed=seed)
        check_values(loader, values)
        loader = load(str(folder), 11, extras=("row", "class_id"), balance="uniform", epoch_rows="over", seed=seed)
        check_values(loader, values, epochs=2)


def test_tables_in_memory():
    table, values = random_table(200, 0, sort=False)
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3, 0), table.slice(3, 150), table.slice(153)])
    hugging = datasets.Dataset(table.drop_columns(["image", "half", "big"]))
    for source in (table, chunked, table.combine_chunks(), table.to_batches()[0], Dataset.open(table, "y"), hugging):
        loader = load(source, 9, extras=("row", "class_id"))
        names = loader.data.schema.names
        check_values(loader, {k: v for k, v in values.items() if k in names or k == "class_id"})


def test_tensors_and_arrays():
    n_rows = 50
    values = {
        "y": np.arange(n_rows) % 3,
        "x": values_of("float32", n_rows, (4,)),
        "cube": values_of("int16", n_rows, (2, 3)),
        "flags": values_of("bool", n_rows, (3,)),
        "turned": np.asfortranarray(values_of("float64", n_rows, (3,))),
        "strided": values_of("int64", 2 * n_rows)[::2],
    }
    tensors = {name: torch.from_numpy(column) for name, column in values.items()}
    tensors["x"].requires_grad_()
    check_values(load(values, 7, extras=("row",)), values)
    check_values(load(tensors, 7, extras=("row",)), values)


def test_several_labels_and_labels_of_other_types():
    source = {"y": ["b", "a", "a", "b", "a"], "z": [1, 2, 2, 1, 1], "x": np.arange(5)}
    loader = BalancedLoader(
        source, ["y", "z"], 2, device="cpu", balance="natural", columns=["x", "z"], extras=("class_id",)
    )
    assert loader.classes == [("a", 1), ("a", 2), ("b", 1)]
    for batch in loader:
        for x, z, c in zip(batch["x"].tolist(), batch["z"].tolist(), batch["class_id"].tolist(), strict=True):
            assert (source["y"][x], z) == (source["y"][x], source["z"][x]) == loader.classes[c]


def test_the_label_need_not_be_among_the_columns():
    assert list(one_batch({"x": np.arange(12)}, columns=["x"])) == ["x"]


def test_groups_are_read_once_and_reported(tmp_path, monkeypatch):
    table, _ = random_table(30, 0, sort=False)
    write_shards(tmp_path, table, [0, 12, 30], "parquet", 5)
    data = Dataset.open(tmp_path, "y")
    read, calls = [], []
    plain = type(data.source).read_groups
    monkeypatch.setattr(
        type(data.source),
        "read_groups",
        lambda self, run, columns: (read.extend((g, *columns) for g in run), plain(self, run, columns))[1],
    )
    layout = make_layout(data.schema, ["byte", "flag"], ["row"])
    arena = load_arena(data, layout, CPU, lambda *state: calls.append(state))
    assert calls == [(i, len(data.groups)) for i in range(1, len(data.groups) + 1)]
    assert sorted(read) == [(g, "byte", "flag", "y") for g in range(len(data.groups))]
    np.testing.assert_array_equal(layout.views(arena.records)["row"], data.class_rows())


@given(st.integers(1, 60), st.integers(0, 200), st.sampled_from([16, 48, 80, 1040]), st.integers(0, 9))
def test_gather_takes_any_rows_any_number_of_times(n_rows, n_places, record_bytes, seed):
    rng = np.random.default_rng(seed)
    schema = pa.schema([("x", pa.list_(pa.uint8(), record_bytes))])
    arena = Arena(make_layout(schema, None), n_rows, CPU)
    values = rng.integers(0, 256, (n_rows, record_bytes), dtype=np.uint8)
    places = rng.permutation(n_rows)
    arena.put(places, pa.table([pa.FixedSizeListArray.from_arrays(values.reshape(-1), record_bytes)], schema), {}, "")
    wanted = rng.integers(0, n_rows, n_places)
    got = arena.gather(torch.from_numpy(wanted))
    np.testing.assert_array_equal(got.records.numpy(), values[np.argsort(places)][wanted])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_gather_on_any_number_of_threads(threads):
    torch.set_num_threads(threads)
    arena = Arena(make_layout(pa.schema([("x", pa.int64())]), None), 1000, CPU)
    arena.put(np.arange(1000), pa.table({"x": np.arange(1000)}), {}, "")
    places = torch.randint(0, 1000, (40_007,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(arena.layout.views(arena.gather(places).records)["x"], places)


# --------------------------------------------------------------------------------------------- conversion


@pytest.mark.parametrize("to", NUMPY_TYPES)
@pytest.mark.parametrize("dtype", NUMPY_TYPES)
def test_conversion_of_values_that_fit(dtype, to):
    values = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1], dtype)
    batch = one_batch({"x": values, "v": as_arrow(values.reshape(6, 2).repeat(2, 0))}, dtypes={
        "x": getattr(torch, to), "v": getattr(torch, to)})  # fmt: skip
    assert batch["x"].dtype == batch["v"].dtype == getattr(torch, to)
    np.testing.assert_array_equal(batch["x"].numpy(), values.astype(to))
    np.testing.assert_array_equal(batch["v"].numpy(), values.reshape(6, 2).repeat(2, 0).astype(to))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.int64(300), torch.int8),
        (np.int64(-1), torch.uint64),
        (np.uint64(2**64 - 1), torch.int64),
        (np.int64(2**53 + 1), torch.float64),
        (np.int64(2**24 + 1), torch.float32),
        (np.float64(0.5), torch.int32),
        (np.float32(np.nan), torch.int64),
        (np.float64(1e300), torch.int64),
    ],
    ids=str,
)
def test_conversion_of_values_that_do_not_fit(value, dtype):
    loader = load({"y": LABELS, "x": np.full(12, value)}, dtypes={"x": dtype})
    with pytest.raises(ColumnError, match=re.escape("column 'x' (group 0 of <table>): got ")) as caught:
        next(iter(loader))
    assert str(caught.value).endswith(f"; allowed: values that {dtype} can hold. Give another type in dtypes.")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(np.float64(1e300), torch.float32), (np.float32(1e6), torch.float16), (np.int32(100_000), torch.float16)],
    ids=str,
)
def test_conversion_never_makes_infinities(value, dtype):
    loader = load({"y": LABELS, "x": np.full(12, value)}, dtypes={"x": dtype})
    with pytest.raises(ColumnError, match=f"values that {dtype} can hold"):
        next(iter(loader))


def test_conversion_keeps_infinities_and_nans():
    values = np.array([np.inf, -np.inf, np.nan, 0.1] * 3)
    batch = one_batch({"x": values}, dtypes={"x": torch.float32})
    np.testing.assert_array_equal(batch["x"].numpy(), values.astype(np.float32))


def test_columns_of_different_types():
    source = {"y": LABELS, **MIXED}
    with pytest.raises(ColumnError) as caught:
        load(source, columns={"x": ["a", "f"]})
    assert str(caught.value) == (
        "columns['x']: got columns of different types: a torch.int64, f torch.float64; allowed: one type for all "
        "columns of a tensor. Convert them while loading: dtypes={'x': torch.float32}."
    )
    batch = one_batch(MIXED, columns={"x": ["a", "f", "v"]}, dtypes={"x": torch.float32})
    assert batch["x"].dtype == torch.float32
    assert batch["x"].tolist() == [[i, i / 2, 2 * i, 2 * i + 1] for i in range(12)]


# -------------------------------------------------------------------------------------------------- nulls

NULLS = {
    "i": pa.array([None, *range(11)], pa.int32()),
    "h": pa.array([None, *([np.float16(1)] * 11)], pa.float16()),
    "b": pa.array([None, *([True] * 11)]),
    "f": pa.array([None, 0.5, *([None] * 10)], pa.float32()),
    "v": pa.array([[1.0, None], *([[1.0, 2.0]] * 11)], pa.list_(pa.float32(), 2)),
    "n": pa.array([None, *([[1.0, 2.0]] * 10), None], pa.list_(pa.float32(), 2)),
    "m": pa.array([[[1], None], *([[[1], [2]]] * 11)], pa.list_(pa.list_(pa.int8(), 1), 2)),
}


@pytest.mark.parametrize(
    ("name", "value", "first"),
    [
        ("i", 7, 7),
        ("i", np.int8(7), 7),
        ("h", 0, 0.0),
        ("h", 0.5, 0.5),
        ("b", False, False),
        ("f", float("nan"), None),
        ("f", 3, 3.0),
        ("v", 9, [1.0, 9.0]),
    ],
)
def test_fill_null(name, value, first):
    batch = one_batch({name: NULLS[name]}, fill_null={name: value})
    assert batch[name].dtype == {"i": torch.int32, "h": torch.float16, "b": torch.bool}.get(name, torch.float32)
    got = batch[name][0].tolist()
    assert math.isnan(got) if first is None else got == first
    rest = NULLS[name].slice(1).to_pylist()
    assert batch[name][1:].tolist() == rest or name == "f"


def test_fill_null_of_one_column_in_a_matrix():
    source = {"a": pa.array([None, 1.0] * 6), "b": pa.array([2.0, None] * 6)}
    batch = one_batch(source, columns={"x": ["a", "b"]}, fill_null={"a": -1, "b": -2})
    assert batch["x"].tolist() == [[-1.0, 2.0], [1.0, -2.0]] * 6


@pytest.mark.parametrize(("name", "nulls"), [("i", "1"), ("f", "11"), ("v", "1"), ("b", "1")])
def test_nulls_name_the_column_their_number_and_the_choices(name, nulls):
    loader = load({"y": LABELS, name: NULLS[name]})
    with pytest.raises(ColumnError) as caught:
        next(iter(loader))
    assert str(caught.value) == (
        f"column '{name}': got {nulls} nulls in group 0 of <table>; allowed: no nulls in a tensor. "
        f"Give fill_null={{'{name}': value}}, or leave the column out with columns=[...]."
    )


@pytest.mark.parametrize("fill_null", [None, {"n": 0.0}])
@pytest.mark.parametrize(("name", "nulls"), [("n", 2), ("m", 1)])
def test_null_lists_cannot_be_filled(name, nulls, fill_null):
    loader = load({"y": LABELS, name: NULLS[name]}, fill_null=fill_null if name == "n" else None)
    with pytest.raises(ColumnError) as caught:
        next(iter(loader))
    assert str(caught.value) == (
        f"column '{name}': got {nulls} nulls in group 0 of <table>; allowed: no nulls in a tensor. "
        "Leave the column out, or fill its lists when the data is written."
    )


def test_nulls_in_a_file_name_shard_and_group(tmp_path):
    table = pa.table({"y": LABELS, "x": [*range(10), None, 11]})
    pq.write_table(table.slice(0, 6), tmp_path / "a.parquet", row_group_size=4)
    pq.write_table(table.slice(6), tmp_path / "b.parquet", row_group_size=4)
    with pytest.raises(ColumnError, match=re.escape(f"1 nulls in group 1 of {tmp_path}/b.parquet")):
        next(iter(load(tmp_path)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("i", "x"), ("i", None), ("i", float("nan")), ("i", 2**70), ("i", [1]), ("i", 2**31), ("b", 0), ("i", 0.5)],
    ids=str,
)
def test_a_fill_value_that_the_column_cannot_hold(name, value):
    """Known from schema and arguments alone: said before anything is read."""
    with pytest.raises((ArgumentError, ColumnError), match="fill_null"):
        load({"y": LABELS, name: NULLS[name]}, fill_null={name: value})


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(3), pa.date32(), pa.timestamp("us"), pa.duration("s"), pa.decimal128(5, 2), pa.null(),
        pa.list_(pa.bool_()), pa.list_(pa.string(), 2), pa.struct([("a", pa.int8())]), pa.uuid(), pa.bool8(),
        pa.list_(pa.list_(pa.int8())), pa.dictionary(pa.int8(), pa.decimal128(5, 2)),
    ],
    ids=str,
)  # fmt: skip
def test_unsupported_types_are_named(kind):
    source = pa.table({"y": LABELS, "x": pa.nulls(12, kind), "z": np.arange(12)})
    assert "x" not in next(iter(load(source)))
    for columns in (["z", "x"], {"q": ["z", "x"]}):
        with pytest.raises(ColumnError) as caught:
            load(source, columns=columns)
        assert str(caught.value) == (
            f"column 'x': got type {kind}; allowed: numbers, bools, fixed-size lists of them; alone also strings, "
            "binary, lists of numbers. Leave it out with columns=[...], give a function in decode, or convert it "
            "before."
        )


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"columns": ["q"]}, ColumnError, "columns['q']: got 'q'; allowed: a column of the data: ['y', 'a', 'b']."),
        (
            {"columns": {"x": ["a", "q"]}},
            ColumnError,
            "columns['x']: got 'q'; allowed: a column of the data: ['y', 'a', 'b'].",
        ),
        (
            {"columns": "a"},
            ArgumentError,
            "columns: got 'a'; allowed: a list, as ['a'], or a mapping, as {'x': ['a']}.",
        ),
        ({"columns": {"x": []}}, ArgumentError, "columns['x']: got an empty list; allowed: at least one column."),
        ({"columns": [], "extras": ()}, ArgumentError, "columns: got none; allowed: at least one column or extra."),
        (
            {"columns": {"row": "a"}, "extras": ("row",)},
            ArgumentError,
            "columns: got a tensor named 'row'; allowed: names other than the extras'. "
            "Rename it, or leave the extra out.",
        ),
        (
            {"columns": {"weight": "a"}, "extras": ("weight",)},
            ArgumentError,
            "columns: got a tensor named 'weight'; allowed: names other than the extras'. "
            "Rename it, or leave the extra out.",
        ),
        ({"dtypes": {"q": torch.int8}}, ArgumentError, "dtypes: got 'q'; allowed: one of ['a', 'b', 'y']."),
        (
            {"dtypes": {"class_id": torch.int8}},
            ArgumentError,
            "dtypes: got 'class_id'; allowed: one of ['a', 'b', 'y'].",
        ),
        ({"fill_null": {"q": 0}}, ArgumentError, "fill_null: got 'q'; allowed: one of ['a', 'b', 'y']."),
        (
            {"columns": {"x": ["a", "b"]}, "fill_null": {"x": 0}},
            ArgumentError,
            "fill_null: got 'x'; allowed: one of ['a', 'b'].",
        ),
        (
            {"dtypes": {"a": "float32"}},
            ArgumentError,
            "dtypes['a']: got float32; allowed: torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, "
            "torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.float32, torch.float64.",
        ),
    ],
    ids=str,
)
def test_wrong_choices(options, error, text):
    with pytest.raises(error) as caught:
        load({"y": LABELS, "a": np.arange(12), "b": np.arange(12)}, **options)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("columns", {"x": 3}),
        ("columns", [["a", "b"]]),
        ("columns", 5),
        ("dtypes", torch.float32),
        ("fill_null", 0),
        ("fill_null", ["a"]),
    ],
    ids=str,
)
def test_arguments_of_a_wrong_kind(argument, value):
    with pytest.raises((ArgumentError, ColumnError), match=argument):
        load({"y": LABELS, "a": np.arange(12), "b": np.arange(12)}, **{argument: value})


def test_a_column_may_be_called_class_id_where_the_extra_is_not_asked_for():
    """`weight` needs class ids itself; that is no reason to refuse or to hide the user's column."""
    source = {"y": LABELS, "class_id": np.arange(12)}
    batch = next(iter(load(source, 12, extras=("weight", "row"))))
    assert list(batch) == ["y", "class_id", "row", "weight"]
    assert torch.equal(batch["class_id"], batch["row"])


def test_labels_that_changed_since_the_scan(tmp_path):
    def write(labels):
        pq.write_table(pa.table({"y": labels}), tmp_path / "a.parquet", compression="none", use_dictionary=False)

    write([0, 0, 1, 1])
    loader = load(tmp_path, 2)
    write([0, 1, 1, 1])
    with pytest.raises(SourceError, match=re.escape(f"{tmp_path}/a.parquet")):
        next(iter(loader))


def test_a_file_that_is_gone_or_cut_off(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"y": LABELS, "x": np.arange(12)}), path)
    whole = path.read_bytes()
    loader = load(tmp_path, 2)
    path.unlink()
    with pytest.raises(SourceError, match=re.escape(str(path))):
        next(iter(loader))
    path.write_bytes(whole[:50])
    with pytest.raises(SourceError, match=re.escape(str(path))):
        next(iter(loader))
    path.write_bytes(whole)
    assert len(next(iter(loader))["x"]) == 2
