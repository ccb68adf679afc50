"""Data larger than memory: the laws, the oracle, and what goes wrong."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastbalance as fb
from fastbalance import residency
from fastbalance.errors import ArgumentError, PlanError, ReadWarning, SourceError, StateError
from fastbalance.shards import MemoryShard
from fastbalance.source import _join
from fastbalance.stream import _Ring

from . import stream_oracle

MEMORY = 1 << 30
pytestmark = pytest.mark.filterwarnings("ignore::fastbalance.errors.ReadWarning")


def grouped(labels: Sequence[Sequence[int]]) -> fb.Dataset:
    """A data set in memory whose groups hold rows of these classes; x is the row's number."""
    ends = np.cumsum([0, *map(len, labels)])
    batches = [
        pa.record_batch({"x": np.arange(start, end, dtype=np.float32), "y": np.array(group, np.int64)})
        for start, end, group in zip(ends[:-1], ends[1:], labels, strict=True)
    ]
    return fb.Dataset.open(_join([MemoryShard("<table>", batches, batches[0].schema)]), "y")


def streaming(data: fb.Dataset, layout: list[Any], lanes: int = 1, **options: Any) -> fb.BalancedLoader:
    """A loader that streams in a given layout, as one that goes on with another's state does."""
    options = dict(batch_size=12, memory=MEMORY, device="cpu", extras=("row", "class_id"), seed=5) | options
    state = fb.BalancedLoader(data, **options | dict(rank=None, world_size=None, batch_size=12)).state_dict()
    loader = fb.BalancedLoader(data, **options)
    loader._adopt(state | {"stream": layout, "lanes": lanes})
    loader._plan = None
    return loader


def layout_of(block_rows: int, window_groups: int, streamed: Sequence[int]) -> list[Any]:
    bounds = {c for c in streamed if c - 1 not in streamed} | {c + 1 for c in streamed if c + 1 not in streamed}
    return [block_rows, window_groups, sorted(bounds)]


def rows_of(loader: fb.BalancedLoader, epochs: int = 1) -> list[list[int]]:
    rows = []
    for _ in range(epochs):
        for batch in loader:
            assert torch.equal(batch["x"].long(), batch["row"])
            rows.append(batch["row"].tolist())
    return rows


@st.composite
def data_sets(draw: st.DrawFn) -> list[list[int]]:
    """Groups of different sizes, some empty, classes of one row and of many, sorted or shuffled."""
    n_classes = draw(st.integers(2, 5))
    counts = [draw(st.sampled_from([1, 2, 16, 17, 70, 150])) for _ in range(n_classes)]
    counts[0] = draw(st.sampled_from([70, 150]))  # more than a batch
    labels = np.repeat(np.arange(n_classes), counts)
    random = np.random.default_rng(draw(st.integers(0, 99)))
    labels = labels if draw(st.booleans()) else random.permutation(labels)
    cuts = np.sort(random.integers(0, len(labels) + 1, draw(st.integers(0, 9))))
    return [group.tolist() for group in np.split(labels, cuts)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=data_sets(), data=st.data())
def test_the_order_equals_the_oracle(monkeypatch, labels, data):
    opened = grouped(labels)
    n_classes = opened.n_classes
    lanes = data.draw(st.sampled_from([1, 1, 2, 4]))
    world_size = data.draw(st.sampled_from([w for w in (1, 2, 4) if lanes % w == 0]))
    streamed = data.draw(st.sets(st.integers(0, n_classes - 1)))
    layout = layout_of(data.draw(st.sampled_from([12, 50, 1 << 20])), data.draw(st.integers(1, 4)), sorted(streamed))
    balance, epoch = data.draw(st.sampled_from(["uniform", "natural", "sqrt"])), data.draw(st.integers(0, 3))
    split_rows = data.draw(st.sampled_from([8, 1024]))
    monkeypatch.setattr(residency, "SPLIT_ROWS", split_rows)
    for rank in range(world_size):
        options = dict(balance=balance, rank=rank, world_size=world_size, batch_size=12 // world_size)
        loader = streaming(opened, layout, lanes, **options, tail="pad")
        plan = loader.plan
        assert plan.layout == layout
        described = stream_oracle.Streamed(
            labels,
            plan.quotas.tolist(),
            12,
            5,
            plan.block_batches,
            lanes,
            plan.window_groups,
            plan.kept.tolist(),
            split_rows,
        )
        loader.set_epoch(epoch)
        assert rows_of(loader) == stream_oracle.batches(described, epoch, rank, world_size)
        loader.close()


@settings(max_examples=60, deadline=None)
@given(data_sets(), st.sampled_from([1, 2, 4]), st.data())
def test_quotas_even_use_and_coverage(labels, lanes, data):
    opened = grouped(labels)
    streamed = data.draw(st.sets(st.integers(0, opened.n_classes - 1)))
    loader = streaming(
        opened, layout_of(24, 2, sorted(streamed)), lanes, balance=data.draw(st.sampled_from(["uniform", "sqrt"]))
    )
    flat = np.concatenate([np.array(group, int) for group in labels])
    used = np.zeros(len(flat), int)
    for epoch in range(1, 6):
        np.add.at(used, np.concatenate(rows_of(loader)), 1)
        for c in range(opened.n_classes):
            mine = used[flat == c]
            assert mine.sum() == epoch * loader.plan.quotas[c]
            assert mine.max() - mine.min() <= (1 if lanes == 1 else 2 if c in streamed else lanes)
            if lanes == 1 and epoch >= loader.plan.epochs_to_cover[c]:
                assert mine.min() >= 1
    loader.close()


@pytest.mark.parametrize("tail", ["keep", "drop", "pad"])
@pytest.mark.parametrize("lanes", [1, 3, 6])
def test_natural_epochs_and_their_tails(lanes, tail):
    labels = [np.random.default_rng(k).integers(0, 3, 41).tolist() for k in range(7)]
    resident = fb.BalancedLoader(grouped(labels), batch_size=12, device="cpu", balance="natural", tail=tail)
    loader = streaming(grouped(labels), layout_of(60, 2, [0, 1, 2]), lanes, balance="natural", tail=tail)
    rows = rows_of(loader)
    assert [len(batch) for batch in rows] == [len(batch["x"]) for batch in resident]
    if tail == "keep":
        assert sorted(itertools.chain(*rows)) == list(range(287))
    counts = loader.stats().class_rows
    assert counts == {c: int(q) for c, q in enumerate(loader.plan.quotas)}


def test_even_batches():
    """Law 5, with one lane."""
    labels = [(np.random.default_rng(k).random(500) < 0.1).astype(int).tolist() for k in range(20)]
    loader = streaming(grouped(labels), layout_of(1 << 11, 3, [0]), batch_size=64)
    for batch in loader:
        ids = batch["class_id"].numpy()
        assert abs(ids.sum() - 32) <= 2
        for start in range(0, 64, 16):
            assert abs(ids[start : start + 16].sum() - 8) <= 2 + np.log2(16) / 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 70), st.sampled_from([1, 2, 3, 6]))
def test_resume_at_any_batch_with_any_number_of_ranks(at, world_size):
    labels = [np.random.default_rng(k).integers(0, 2, 50).tolist() for k in range(8)]
    layout = layout_of(48, 2, [1])
    loader = streaming(grouped(labels), layout, lanes=6)
    batches, done = [], 0
    n = len(loader)
    while done < 3 * n:
        for batch in loader:
            batches.append(batch["row"].tolist())
            done += 1
            if done == at:
                state = json.loads(json.dumps(loader.state_dict()))
    if at == 0:
        state = streaming(grouped(labels), layout, lanes=6).state_dict()
    rest = [[] for _ in range(3 * n - at)]
    for rank in range(world_size):
        options = dict(batch_size=12 // world_size, rank=rank, world_size=world_size)
        other = fb.BalancedLoader(grouped(labels), memory=MEMORY, device="cpu", extras=("row",), **options)
        other.load_state_dict(state)
        assert other.plan.fingerprint == loader.plan.fingerprint
        k = 0
        while k < len(rest):
            for batch in other:
                rest[k] += batch["row"].tolist()
                k += 1
    assert [sorted(rows) for rows in rest] == [sorted(rows) for rows in batches[at:]]
    if world_size == 1:
        assert rest == batches[at:]


def test_lanes_shuffle_apart():
    labels = [[0] * 100 + [1] * 100 for _ in range(12)]
    loader = streaming(grouped(labels), layout_of(48, 2, [0, 1]), lanes=2)
    halves = [(np.array(rows[:6]) % 200, np.array(rows[6:]) % 200) for rows in rows_of(loader)]
    assert np.mean([one == other for one, other in halves]) < 0.1


# ------------------------------------------------------------------------------------------ memory decides


def table(rows: int, share: float = 0.05) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"x": np.arange(rows, dtype=np.float32), "y": (random.random(rows) < share).astype(np.int8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stream")
    data = pa.table(table(20_000))
    for shard in range(4):
        pq.write_table(data.slice(shard * 5000, 5000), path / f"{shard}.parquet", row_group_size=500)
    return path


def load(folder: Path, memory: Any = "200KiB", **options: Any) -> fb.BalancedLoader:
    options = dict(label="y", batch_size=64, device="cpu", extras=("row",), epoch_rows=3200, seed=3) | options
    return fb.BalancedLoader(folder, memory=memory, **options)


def test_memory_decides(folder):
    assert not hasattr(load(folder, "1MiB").plan, "kept")
    plan = load(folder).plan
    assert plan.kept.tolist() == [False, True]
    assert "1 classes of 991 rows are kept, 1 of 19,009 rows are streamed" in str(plan)
    assert "reads in an epoch:" in str(plan)


def test_a_budget_that_is_too_small_says_what_is_needed(folder):
    with pytest.raises(
        PlanError, match=r"memory: got 50,000 bytes for 20,000 rows of 16 bytes; allowed: at least"
    ) as e:
        load(folder, 50_000)
    needed = int(str(e.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    assert load(folder, needed).plan.memory_bytes == needed


def test_only_the_groups_that_are_needed_are_read_and_each_once(folder):
    loader = load(folder)
    for _ in loader:  # fills the kept class
        pass
    before = loader.stats()
    for _ in range(4):
        for _ in loader:
            pass
    after = loader.stats()
    drawn = 4 * 1600
    assert 0 < after.groups_read - before.groups_read <= drawn / 475 + 3
    assert after.class_rows == {0: 5 * 1600, 1: 5 * 1600}
    assert after.peak_arena_rows * 16 <= 200 << 10


@pytest.mark.parametrize("kind", ["ipc", "ipc lz4", "table"])
def test_other_formats(tmp_path, folder, kind):
    data = pa.table(table(20_000))
    if kind == "table":
        source: Any = fb.Dataset.open(_join([MemoryShard("<t>", data.to_batches(max_chunksize=500), data.schema)]), "y")
    else:
        options = pa.ipc.IpcWriteOptions(compression="lz4" if "lz4" in kind else None)
        for shard in range(4):
            with pa.ipc.new_file(tmp_path / f"{shard}.arrow", data.schema, options=options) as file:
                file.write_table(data.slice(5000 * shard, 5000), max_chunksize=500)
        source = tmp_path
    assert rows_of(load(source, label=None if kind == "table" else "y")) == rows_of(load(folder))


def test_streamed_and_resident_deliver_the_same_counts(folder):
    streamed, resident = load(folder), load(folder, "1GiB")
    y = table(20_000)["y"]
    for loader in (streamed, resident):
        counts = np.bincount(y[np.concatenate(rows_of(loader, 2))])
        assert counts.tolist() == (2 * loader.plan.quotas).tolist()
    assert streamed.plan.quotas.tolist() == resident.plan.quotas.tolist()


def test_classes_at_different_rates_that_share_groups_are_warned_of(folder):
    y = np.random.default_rng(0).choice(3, 20_000, p=[0.6, 0.3, 0.1])
    data = {"x": np.zeros(20_000, np.float32), "y": y}
    source = _join([MemoryShard("<t>", pa.table(data).to_batches(max_chunksize=200), pa.table(data).schema)])
    with pytest.warns(ReadWarning, match=r"an epoch will read .* times the bytes .*`fastbalance reshard`"):
        fb.BalancedLoader(source, "y", 32, memory="100KiB", device="cpu", balance="sqrt", epoch_rows=3200)


@pytest.mark.parametrize(("options", "lanes"), [({}, 7), ({"rank": 0, "world_size": 2, "batch_size": 32}, 3)])
def test_lanes_that_do_not_divide(folder, options, lanes):
    with pytest.raises(PlanError, match=f"lanes: got {lanes} lanes for a global batch of 64 rows"):
        len(load(folder, lanes=lanes, **options))


def test_states_of_the_other_kind(folder):
    streamed, resident = load(folder), load(folder, "1GiB")
    taken_over = load(folder, "1GiB")
    taken_over.load_state_dict(streamed.state_dict())
    assert rows_of(taken_over) == rows_of(streamed)
    before = streamed.state_dict()
    with pytest.raises(StateError, match="memory: got 204,800 bytes; allowed: at least 320,000, for all rows"):
        streamed.load_state_dict(resident.state_dict())
    assert streamed.state_dict() == before


@pytest.mark.parametrize(
    "layout",
    [
        3,
        {},
        [],
        [4, 1, 0],
        [4, 1, [0]],
        [4, 1, [1, 0]],
        [4, 1, [0, 9]],
        layout_of(0, 1, [0]),
        layout_of(10, 1, [7]),
        layout_of(10, 1.5, [0]),
    ],
)
def test_a_damaged_layout_is_refused_and_changes_nothing(folder, layout):
    loader = load(folder)
    before = loader.state_dict()
    with pytest.raises(StateError, match=r"state\['stream'\]: got "):
        loader.load_state_dict(before | {"stream": layout})
    assert loader.state_dict() == before


# ------------------------------------------------------------------------------------------ threads and faults


def exhaust(*iterables: Any) -> None:
    for _ in itertools.chain(*iterables):
        pass


def is_quiet(loader: fb.BalancedLoader) -> bool:
    stream = loader._stream
    return stream is None or all(read.done() for read in stream._under_way)


def test_a_shard_that_is_damaged_meanwhile_is_named(tmp_path, folder):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    loader = load(tmp_path)
    batches = iter(loader)
    next(batches)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SourceError, match=r"\d\.parquet"):
        exhaust(batches, *([loader] * 20))
    assert is_quiet(loader)


def test_leaving_the_loop_stops_reading(folder):
    loader = load(folder)
    for number, _ in enumerate(loader):
        if number == 3:
            break
    assert is_quiet(loader)
    with pytest.raises(ZeroDivisionError):
        exhaust(1 // 0 for _ in loader)
    wanted = load(folder)
    wanted.set_epoch(2)
    assert rows_of(loader) == rows_of(wanted)


def test_two_iterations_at_a_time_are_refused(folder):
    loader = load(folder, epoch_rows=64 * 400)
    loader.load_state_dict(loader.state_dict() | {"batch": 0})
    one = iter(loader)
    next(one)
    other = iter(loader)
    next(other)
    with pytest.raises(ArgumentError, match="iteration: got another iteration of this loader"):
        exhaust(one)
    assert len(next(other)["x"]) == 64


def test_close_ends_the_threads(folder):
    before = set(threading.enumerate())
    loader = load(folder)
    rows = rows_of(loader)
    readers = [t for t in threading.enumerate() if t not in before and t.name.startswith("fastbalance-read")]
    assert readers
    loader.close()
    assert not any(reader.is_alive() for reader in readers)
    loader.set_epoch(0)
    assert rows_of(loader) == rows


class _Worker(torch.utils.data.IterableDataset):
    def __init__(self, folder: Path) -> None:
        self.loader = load(folder)

    def __iter__(self):
        return (batch["row"] for batch in self.loader)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process")
def test_in_a_worker_of_a_data_loader(folder, method):
    data = _Worker(folder)
    if method == "fork":
        next(iter(data.loader))  # threads and windows of the parent do not come along
        data.loader.set_epoch(0)
    workers = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=method)
    assert [rows.tolist() for rows in workers] == rows_of(load(folder))


KILLED = """
import json, sys, fastbalance as fb
folder, state, out, n = *sys.argv[1:4], int(sys.argv[4])
loader = fb.BalancedLoader(folder, "y", 64, memory="200KiB", device="cpu", extras=("row",), epoch_rows=3200, seed=3)
try:
    loader.load_state_dict(json.load(open(state)))
except FileNotFoundError:
    pass
done = 0
with open(out, "w") as file:
    while done < n:
        for batch in loader:
            print(json.dumps(batch["row"].tolist()), file=file, flush=True)
            json.dump(loader.state_dict(), open(state, "w"))
            done += 1
            if done == n:
                print("ready", flush=True)
                sys.stdin.read()
                break
"""


def test_resume_in_a_new_process_after_a_kill(tmp_path, folder):
    arguments = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "state")]
    got = []
    for name, n in (("first", 73), ("second", 27)):
        process = subprocess.Popen(
            [*arguments, str(tmp_path / name), str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        got += [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    assert got == rows_of(load(folder), 2)


def test_interrupt_ends_the_process_soon(folder):
    code = KILLED.replace('print("ready", flush=True)', "pass").replace(
        "if done == n", "print(done, flush=True)\n            if done == n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), "/nonexistent/state", os.devnull, "1000000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0, stderr
    assert time.monotonic() - started < 30


MEASURED = """
import resource, sys
from pathlib import Path
import numpy as np, pyarrow.parquet as pq, torch, fastbalance as fb
torch.set_num_threads(2)
folder, memory, epochs, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
data = fb.Dataset.open(folder, "y")
features = [f"f{i}" for i in range(32)]
small = {"x": np.zeros((64, 4), np.float32), "y": np.arange(64) % 2}
next(iter(fb.BalancedLoader(small, "y", 8, device="cpu")))  # kernels are loaded
if memory:
    mapped = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (mapped + memory + (300 << 20),) * 2)  # more is not to be had
    options = dict(columns={"x": features}, memory=memory, device="cpu", epoch_rows=rows // 2)
    options |= dict(extras=("row", "class_id"))
    loader = fb.BalancedLoader(data, batch_size=4096, **options)
    assert not loader.plan.kept.all()
    used = np.zeros(rows, np.int64)
    for _ in range(epochs):
        for batch in loader:
            row = batch["row"].numpy()
            assert np.array_equal(batch["x"][:, 0].numpy(), row.astype(np.float32))
            assert abs(int(batch["class_id"].sum()) - 2048) <= 2
            np.add.at(used, row, 1)
    y = np.concatenate([pq.read_table(path, columns=["y"])["y"].to_numpy() for path in sorted(Path(folder).iterdir())])
    for c in (0, 1):
        mine = used[y == c]
        assert mine.sum() == epochs * loader.plan.quotas[c]
        assert mine.max() - mine.min() <= 1
    print(loader.stats().amplification, used.max(), file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_data_of_many_times_the_memory(tmp_path):
    """600 MB of records in 60 MiB: every row is the one that it says, and memory keeps to the budget + 300 MiB."""
    rows, memory = 4_000_000, 60 << 20
    random = np.random.default_rng(0)
    for shard, part in enumerate(np.array_split(np.arange(rows), 8)):
        columns = {f"f{i}": np.full(len(part), i, np.float32) for i in range(1, 32)}
        columns |= {"f0": part.astype(np.float32), "y": (random.random(len(part)) < 0.01).astype(np.int8)}
        path = tmp_path / f"{shard}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=1 << 14, use_dictionary=False, compression="none")

    def peak_mib(budget: int) -> int:
        command = [sys.executable, "-c", MEASURED, str(tmp_path), str(budget), "3", str(rows)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert rows * 144 > 9 * memory
    assert peak_mib(memory) - peak_mib(0) <= (memory >> 20) + 300


def test_a_ring_gives_room_in_order():
    ring = _Ring(100, 10)
    assert [ring.take(turn, rows) for turn, rows in ((0, 4), (1, 4), (2, 3))] == [100, 104, None]
    assert ring.give_back_before(1) == [(0, 4)]
    assert ring.take(2, 3) == 100, "it begins again where a window would not lie in one piece"
    assert ring.take(3, 2) is None
    assert ring.give_back_before(3) == [(1, 4), (2, 3)]
    assert ring.take(3, 11) is None
    assert ring.take(3, 10) == 100


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("memory", ["200KiB", "1GiB"])
def test_a_distributed_checkpoint_loads_with_other_memory(folder, tmp_path, memory):
    stopped, resumed = load(folder), load(folder, memory)
    batches = iter(stopped)
    for _ in range(7):
        next(batches)
    dcp.save({"loader": stopped}, checkpoint_id=tmp_path / "checkpoint")
    dcp.load({"loader": resumed}, checkpoint_id=tmp_path / "checkpoint")
    assert [batch["row"].tolist() for batch in resumed] == [batch["row"].tolist() for batch in batches]
