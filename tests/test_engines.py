"""Tasks run by threads or by Ray: the same results, errors as they were raised, nothing left running."""

import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastbalance.engines import check_stopped, count_workers, cpus, map_tasks, scan_groups
from fastbalance.errors import ArgumentError, SourceError
from fastbalance.labels import scan_labels
from fastbalance.source import open_source


def test_results_come_in_the_order_of_the_tasks():
    def work(shared, task):
        time.sleep(0.02 * (task % 3 == 0))
        return shared + task

    assert list(map_tasks(work, 100, range(20), workers=4)) == list(range(100, 120))
    assert list(map_tasks(work, 100, [])) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_than_workers_run_and_none_is_begun_early(workers):
    running, most, lock = set(), [], threading.Lock()

    def work(_, task):
        with lock:
            running.add(task)
            most.append(len(running))
        time.sleep(0.01)
        with lock:
            running.remove(task)
        return task

    taken = []
    results = map_tasks(work, None, (taken.append(i) or i for i in range(12)), workers=workers)
    assert next(results) == 0
    assert len(taken) <= 2 * workers
    assert list(results) == list(range(1, 12))
    assert max(most) == workers


def test_an_error_is_raised_as_it_was_and_stops_the_rest():
    stopped = threading.Event()

    def work(_, task):
        if task == 1:
            raise SourceError("shard 1, group 7")
        try:
            while True:
                check_stopped()
                time.sleep(0.001)
        finally:
            stopped.set()

    with pytest.raises(SourceError, match=r"^shard 1, group 7$"):
        list(map_tasks(work, None, range(5), workers=2))
    assert stopped.is_set()
    check_stopped()  # of this thread nothing is stopped


def test_closing_the_iterator_stops_the_tasks():
    begun = []

    def work(_, task):
        begun.append(task)
        while task:
            check_stopped()
            time.sleep(0.001)

    results = map_tasks(work, None, range(100), workers=2)
    next(results)
    results.close()
    assert len(begun) <= 3


def test_names(monkeypatch):
    with pytest.raises(ArgumentError, match=r"^engine: got 'dask'; allowed: \"local\" or \"ray\"\.$"):
        next(map_tasks(print, None, [1], engine="dask"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ArgumentError) as caught:
        next(map_tasks(print, None, [1], engine="ray"))
    assert str(caught.value) == (
        "engine: got 'ray', which is missing; allowed: \"local\". pip install 'fastbalance[ray]'."
    )
    assert count_workers("local") == cpus() >= 1


def test_scan_labels_checks_the_engine():
    source = open_source({"y": [0, 1]})
    with pytest.raises(ArgumentError, match=r"^engine: got 'spark'"):
        scan_labels(source, "y", engine="spark")
    assert list(scan_groups(source, ["y"], lambda group, table: (group, len(table)))) == [(0, 2)]


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    for shard in range(3):
        ids = np.arange(4000 * shard, 4000 * shard + 4000)
        word = pa.array([f"w{i % 5}" for i in ids]).dictionary_encode()
        table = pa.table({"id": ids, "y": ids % 9 == 0, "word": word})
        pq.write_table(table, tmp_path / "data" / f"{shard}.parquet", row_group_size=500, write_page_checksum=True)
    return tmp_path / "data"


def in_ray(code, *args):
    """Run code in a process of its own, where a Ray of two CPUs runs; what it prints."""
    # To a file: Ray writes to stdout when it likes, also in the middle of a line.
    start = """
import functools, os, ray
print = functools.partial(print, file=open(os.environ["PRINTED"], "w"), flush=True)
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
"""
    # Workers import this test's sources, and Ray must neither report nor look for a cluster.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", start + code, *map(str, args)]
    with NamedTemporaryFile("r") as printed:
        environment["PRINTED"] = printed.name
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment)
        assert done.returncode == 0, done.stderr
        return printed.read()


@pytest.mark.slow
@needs_ray
def test_ray_writes_the_same_and_scans_the_same(data, tmp_path):
    out = in_ray(
        """
import sys
from pathlib import Path
import numpy as np
from fastbalance.labels import scan_labels
from fastbalance.resharding import reshard
from fastbalance.source import open_source
data, folder = sys.argv[1], Path(sys.argv[2])
source = open_source(data)
here, there = scan_labels(source, "y"), scan_labels(source, "y", engine="ray")
for name in ("group_ptr", "group_classes", "group_counts", "class_counts"):
    np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
assert here.values.equals(there.values)
options = {"group_rows": 700, "memory": "200KiB", "shard_bytes": "40KiB", "workers": 2}
for engine in ("local", "ray"):
    reshard(data, folder / engine, "y", engine=engine, **options)
files = [{path.name: path.read_bytes() for path in (folder / engine).iterdir()} for engine in ("local", "ray")]
assert files[0] == files[1]
assert ray.is_initialized(), "it was not ours to end"
print(len(files[0]))
""",
        data,
        tmp_path,
    )
    assert int(out) > 5


@pytest.mark.slow
@needs_ray
def test_ray_passes_errors_on_and_stops(data, tmp_path):
    out = in_ray(
        """
import os, sys, time
from pathlib import Path
from fastbalance.engines import map_tasks
from fastbalance.errors import TaskError
from fastbalance.errors import SourceError
from fastbalance.resharding import reshard
import pyarrow.parquet as pq
folder = Path(sys.argv[2])
path = Path(sys.argv[1]) / "1.parquet"
content = bytearray(path.read_bytes())
first = pq.read_metadata(path).row_group(3).column(0).dictionary_page_offset
content[first : first + 8] = bytes(8)  # of the page's header
path.write_bytes(content)
try:
    reshard(sys.argv[1], folder / "out", "y", engine="ray", group_rows=500, workers=2)
except SourceError as error:
    print("found", error)
assert not (folder / "out").exists()

def slow(folder, task):
    if task:
        (folder / f"begun {task}").touch()
        time.sleep(600)
        (folder / f"done {task}").touch()
results = map_tasks(slow, folder, range(9), "ray", 2)
next(results)
while not (folder / "begun 1").exists():
    time.sleep(0.01)
start = time.monotonic()
results.close()
print("found", time.monotonic() - start < 300, sorted(path.name for path in folder.glob("done *")))

try:
    list(map_tasks(lambda _, task: os._exit(1), None, [1], "ray"))
except TaskError as error:
    print("found", str(error).partition(":")[0], "Look at the node's memory" in str(error))
""",
        data,
        tmp_path,
    )
    found = [line.removeprefix("found ") for line in out.splitlines() if line.startswith("found ")]
    assert found[0].startswith(f"{data}/1.parquet, groups [3]: got ")
    assert found[1:] == ["True []", "Ray worker True"]


@pytest.mark.slow
@needs_ray
def test_the_command_starts_a_ray_and_ends_it(data, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "fastbalance", "index", data, "--label", "y", "--output", tmp_path / "i"]
    done = subprocess.run([*command, "--engine", "ray"], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (
        0,
        f"wrote {tmp_path}/i: rows 12,000, groups 24, classes 2\n",
    ), done.stderr
    ray_index = (tmp_path / "i").read_bytes()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert (tmp_path / "i").read_bytes() == ray_index
