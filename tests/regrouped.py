"""What the tests of `reshard` share: small data, what was written, and runs that stop halfway."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastbalance.errors import ArgumentError
from fastbalance.resharding import reshard
from fastbalance.source import open_source


def make(n, labels, start=0):
    """Columns `id`, `y`, `x`."""
    ids = np.arange(start, start + n)
    return pa.table({"id": ids, "y": np.asarray(labels), "x": (ids * 0.5).astype(np.float32)})


def write(folder, labels, n_shards=3, group_rows=1000):
    """Shards of `make`; their labels are int64."""
    folder.mkdir()
    start = 0
    for i, part in enumerate(np.array_split(np.asarray(labels, np.int64), n_shards)):
        path = folder / f"{i}.parquet"
        pq.write_table(make(len(part), part, start), path, row_group_size=group_rows, write_page_checksum=True)
        start += len(part)
    return folder


def digests(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read(folder):
    """All groups, in order."""
    source = open_source(folder)
    return list(source.scan(source.schema.names, lambda group, table: table))


def assert_regrouped(folder, expected_ids_of):
    """Every row is there once; groups have one class, and classes ascend."""
    groups = read(folder)
    classes = [np.unique(group["y"].to_numpy()) for group in groups]
    assert all(len(values) == 1 for values in classes)
    assert (np.diff(np.concatenate(classes)) >= 0).all()
    found = pa.concat_tables(groups)
    for label, ids in expected_ids_of.items():
        mine = found.filter(pa.compute.equal(found["y"], label))["id"].to_numpy()
        np.testing.assert_array_equal(np.sort(mine), ids)
    assert len(found) == sum(map(len, expected_ids_of.values()))
    np.testing.assert_array_equal(found["x"].to_numpy(), (found["id"].to_numpy() * 0.5).astype(np.float32))


def skewed():
    """Labels of 24,000 rows: 2 % of class 1, and one row of class 7."""
    labels = (np.random.default_rng(0).random(24_000) < 0.02).astype(np.int64)
    labels[12_345] = 7
    return labels


def refused(*args, kind=ArgumentError, **options):
    with pytest.raises(kind) as caught:
        reshard(*args, **options)
    return str(caught.value)


class Interrupt(Exception):  # noqa: N818
    pass


def begin(data, out, options, stop_at):
    """Run until the first task of a stage is about to begin; the folder that is left."""

    def progress(stage, done, total):
        if stage == stop_at:
            raise Interrupt

    with pytest.raises(Interrupt):
        reshard(data, out, "y", progress=progress, **options)
    return out.with_name(f".{out.name}.reshard")


def done_before(data, out, options):
    """Finish a run; what was there when it began, of what, by stage."""
    first = {}
    reshard(data, out, "y", progress=lambda stage, done, total: first.setdefault(stage, (done, total)), **options)
    return first
