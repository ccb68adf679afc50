"""Rewritten data: every row once, groups of one class, each class shuffled as a whole, within a memory bound."""

import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastbalance.dataset import Dataset
from fastbalance.errors import ArgumentError
from fastbalance.regroup import _argsort, make_layout
from fastbalance.resharding import INDEX_NAME, reshard
from fastbalance.source import open_source
from tests.regrouped import assert_regrouped, digests, make, read, skewed, write


@pytest.fixture
def labels():
    return skewed()


@pytest.fixture
def data(tmp_path, labels):
    return write(tmp_path / "data", labels)


class TestRows:
    @pytest.mark.parametrize("format", ["parquet", "ipc"])
    def test_every_row_once_in_groups_of_one_class(self, format, data, labels, tmp_path):
        out = reshard(
            data, tmp_path / "out", "y", format=format, group_rows=2000, shard_bytes="100KiB", memory="300KiB"
        )
        assert out == tmp_path / "out"
        assert_regrouped(out, {label: np.flatnonzero(labels == label) for label in (0, 1, 7)})
        sizes = open_source(out).groups.n_rows.tolist()
        n = int((labels == 0).sum())
        assert sizes == [*[-(-n // 12)] * 11, n - 11 * -(-n // 12), int((labels == 1).sum()), 1]
        suffix = {"parquet": "parquet", "ipc": "arrow"}[format]
        assert [path.name for path in sorted(out.iterdir())] == [
            INDEX_NAME,
            *[f"shard-{i:05}.{suffix}" for i in range(7)],
        ]
        assert sorted(os.listdir(tmp_path)) == ["data", "out"]

    def test_the_index_is_that_of_a_scan(self, data, tmp_path):
        out = reshard(data, tmp_path / "out", "y", group_rows=2000, shard_bytes="100KiB")
        shutil.move(out, tmp_path / "moved")
        scanned = Dataset.open(tmp_path / "moved", "y")
        loaded = Dataset.open(tmp_path / "moved" / "*", "y", tmp_path / "moved" / INDEX_NAME)
        assert loaded.fingerprint == scanned.fingerprint
        np.testing.assert_array_equal(loaded.class_rows(), np.arange(24_000))

    def test_statistics_and_checksums_are_written(self, data, tmp_path):
        reshard(data, tmp_path / "out", "y")
        metadata = pq.read_metadata(tmp_path / "out" / "shard-00000.parquet")
        for group in range(metadata.num_row_groups):
            label = metadata.row_group(group).column(1).statistics
            assert label.min == label.max
        ids = metadata.row_group(0).column(0)
        assert ids.statistics.has_min_max
        assert "PLAIN" in metadata.row_group(0).column(2).encodings
        assert not any("DICTIONARY" in name for name in metadata.row_group(0).column(2).encodings)

    @pytest.mark.parametrize(
        ("format", "options"),
        [
            ("parquet", {"workers": 1}),
            ("parquet", {"workers": 3, "memory": "300KiB"}),
            ("parquet", {"memory": "2MiB"}),
            ("ipc", {"workers": 3, "memory": "300KiB"}),
        ],
    )
    def test_what_is_written_depends_on_data_sizes_and_seed_alone(self, format, options, data, tmp_path):
        sizes = {"format": format, "group_rows": 1500, "shard_bytes": "150KiB"}
        reshard(data, tmp_path / "one", "y", **sizes)
        reshard(data, tmp_path / "two", "y", **sizes, **options)
        one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
        if format == "ipc":  # the index notes when an Arrow file was written
            one.pop(INDEX_NAME), two.pop(INDEX_NAME)
        assert one == two
        reshard(data, tmp_path / "three", "y", seed=1, **sizes)
        assert digests(tmp_path / "three")["shard-00000." + {"parquet": "parquet", "ipc": "arrow"}[format]] not in (
            one.values()
        )

    def test_a_thousand_classes(self, tmp_path):
        labels = np.random.default_rng(1).integers(0, 1000, 20_000)
        out = reshard(write(tmp_path / "data", labels), tmp_path / "out", "y", memory="300KiB", shard_bytes="64KiB")
        assert_regrouped(out, {label: np.flatnonzero(labels == label) for label in range(1000)})

    def test_two_labels_and_a_dataset(self, data, labels, tmp_path):
        table = pa.concat_tables(read(data))
        table = table.append_column("z", pa.array(np.where(np.arange(24_000) % 3 == 0, "a", "b")))
        opened = Dataset.open(table, ["y", "z"])
        out = reshard(opened, tmp_path / "out", group_rows=5000)
        found = Dataset.open(out, ["y", "z"], out / INDEX_NAME)
        assert found.classes == opened.classes
        assert found.class_counts.tolist() == opened.class_counts.tolist()
        for group in read(out):
            assert len(group.select(["y", "z"]).group_by(["y", "z"]).aggregate([])) == 1
        with pytest.raises(ArgumentError, match=r"^label: got 'y'; allowed: \('y', 'z'\), as in the Dataset, or None"):
            reshard(opened, tmp_path / "again", "y")

    def test_empty_groups_and_shards(self, tmp_path):
        table, folder = make(10, [0, 1] * 5), tmp_path / "data"
        folder.mkdir()
        pq.write_table(table.slice(0, 0), folder / "a.parquet")
        with pq.ParquetWriter(folder / "b.parquet", table.schema) as writer:
            for part in (table.slice(0, 0), table.slice(0, 7), table.slice(0, 0), table.slice(7)):
                writer.write_table(part)
        pq.write_table(table.slice(0, 0), folder / "c.parquet")
        out = reshard(folder, tmp_path / "out", "y", memory="1KiB")
        assert_regrouped(out, {0: np.arange(0, 10, 2), 1: np.arange(1, 10, 2)})

    def test_progress(self, data, tmp_path):
        calls = []
        options = {"group_rows": 1500, "memory": "300KiB", "workers": 2}
        reshard(data, tmp_path / "out", "y", progress=lambda *call: calls.append(call), **options)
        stages = list(dict.fromkeys(stage for stage, _, _ in calls))
        assert stages == ["scanning labels", "scattering", "writing"]
        for stage in stages[1:]:
            steps = [(done, total) for name, done, total in calls if name == stage]
            assert steps == [(done, steps[0][1]) for done in range(steps[0][1] + 1)]


def shuffle_faults(ids):
    """What tells an order of `ids` [0, n) from a shuffle: neighbours kept, and |z| of where the ids went."""
    n, parts = len(ids), 12
    counts, _, _ = np.histogram2d(ids, np.arange(n), bins=parts)
    chi2, freedom = ((counts - n / parts**2) ** 2).sum() / (n / parts**2), (parts - 1) ** 2
    return int((np.abs(np.diff(ids)) == 1).sum()), abs(chi2 - freedom) / np.sqrt(2 * freedom)


class TestShuffle:
    def test_a_class_is_shuffled_as_a_whole(self, tmp_path):
        labels = np.arange(40_000) % 2
        data = write(tmp_path / "data", labels, n_shards=5)
        order = {}
        for seed in (0, 1):
            out = reshard(data, tmp_path / f"{seed}", "y", seed=seed, memory="300KiB", group_rows=1500)
            found = pa.concat_tables(read(out))
            order[seed] = found["id"].to_numpy()[:20_000] // 2, found["id"].to_numpy()[20_000:] // 2
        for ids in (*order[0], *order[1]):
            neighbours, z = shuffle_faults(ids)
            assert neighbours < 14  # 2 are expected
            assert z < 5
        pairs = [(order[0][0], order[0][1]), (order[0][0], order[1][0])]
        for one, two in pairs:  # two classes, two seeds: other orders
            assert shuffle_faults(np.argsort(one)[two])[1] < 5

    def test_the_check_can_fail(self):
        ids = np.arange(20_000)
        within = np.concatenate(
            [np.random.default_rng(i).permutation(part) for i, part in enumerate(ids.reshape(4, -1))]
        )
        assert shuffle_faults(within)[1] > 100
        assert shuffle_faults(ids)[0] == 19_999

    def test_tiny_classes_take_every_order_equally_often(self, tmp_path):
        n = 600
        out = reshard({"id": np.tile(np.arange(3), n), "y": np.repeat(np.arange(n), 3)}, tmp_path / "out", "y")
        orders = np.concatenate([group["id"].to_numpy() for group in read(out)]).reshape(n, 3)
        _, counts = np.unique(orders, axis=0, return_counts=True)
        assert len(counts) == 6
        assert ((counts - n / 6) ** 2).sum() / (n / 6) < 25  # 5 degrees of freedom


class TestLayout:
    @pytest.mark.parametrize("counts", [[1], [5, 1, 12], [4], [7, 7], [1000, 1]])
    @pytest.mark.parametrize("group_rows", [1, 2, 3, 5, 10_000])
    def test_groups(self, counts, group_rows):
        layout = make_layout(np.array(counts), np.array([3, 0, sum(counts)]), group_rows, 6, 4)
        rows = np.diff(layout.group_first)
        assert rows.min() >= 1
        assert rows.max() <= group_rows
        np.testing.assert_array_equal(np.bincount(layout.group_class, rows), counts)
        for c, n in enumerate(counts):
            groups = -(-n // group_rows)
            assert (layout.group_class == c).sum() == groups
            assert rows[layout.group_class == c][:-1].tolist() == [-(-n // groups)] * (groups - 1)
        assert layout.buckets[[0, -1]].tolist() == [0, len(rows)]
        assert (np.diff(layout.buckets) > 0).all()
        assert layout.shards[[0, -1]].tolist() == [0, layout.n_buckets]
        for ends, most in ((layout.buckets, 4), (layout.buckets[layout.shards], 6)):
            parts = [rows[a:b] for a, b in pairwise(ends)]
            assert all(part.sum() <= most or len(part) == 1 for part in parts)
        assert layout.chunks.tolist()[0] == 0
        assert layout.chunks.tolist()[-1] == 3

    def test_order_of_wide_numbers(self):
        numbers = np.random.default_rng(0).integers(0, 2**20, 5000)
        np.testing.assert_array_equal(_argsort(numbers), np.argsort(numbers, kind="stable"))
        assert len(_argsort(numbers[:0])) == 0


MEMORY = """
import re, sys
import numpy as np, pyarrow as pa
from fastbalance.resharding import reshard
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
reshard({"y": [0, 1], "x": [0.5, 1.5]}, sys.argv[2] + ".warm", "y", format=sys.argv[3])
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
reshard(sys.argv[1], sys.argv[2], "y", format=sys.argv[3], memory="48MiB", workers=2, group_rows=2**14)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("format", ["parquet", pytest.param("ipc", marks=pytest.mark.slow)])
def test_memory_is_bounded(format, tmp_path):
    """97 MB of rows within 48 MiB. (Arrow's default allocator keeps up to 100 MiB more, of what it was given back.)"""
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for shard in range(2):
        n = 250_000
        columns = {f"x{i}": rng.integers(0, 1000, n) for i in range(24)}
        table = pa.table({**columns, "y": pa.array(rng.random(n) < 0.02)})
        with pa.ipc.new_file(tmp_path / "data" / f"{shard}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=30_000)
    command = [sys.executable, "-c", MEMORY, tmp_path / "data", tmp_path / "out", format]
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stderr == ""
    assert int(done.stdout) < (48 + 40) * 2**20
    assert open_source(tmp_path / "out").n_rows == 500_000
