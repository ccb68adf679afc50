"""How fast is an epoch of data larger than memory, and how well is it shuffled?

Work: balanced epochs of 33 columns (132 bytes a row) from shards on the local disk, with a memory of a fraction of the
data; the kept classes are in memory before the clock starts. Limit: the same groups read in the same threads and thrown
away, plus `index_select` of as many rows with indices given. Peers: `stream_peers.py`. The batches are checked against
the rows that they name. Stall: the part of the time in `next` that is spent waiting for reads.

    python bench/stream.py [--rows 8000000] [--quick]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import stream_peers
import torch
from _harness import Case, report, save, time_in_turn

from fastbalance import BalancedLoader
from fastbalance.source import Source

N_FEATURES, BATCH_ROWS, SHARDS = 32, 4096, 8
FEATURES = [f"f{i}" for i in range(N_FEATURES)]


class Setup(NamedTuple):
    """A data set, and how it is asked for."""

    name: str
    format: str = "snappy"  # or "zstd", "ipc"
    is_sorted: bool = False  # by class
    n_classes: int = 2
    minority: float = 0.01  # of the rows, over all classes but the first
    balance: str = "uniform"
    cold: bool = False  # drop the files from the page cache before each epoch


SETUPS = [
    Setup("1 % positives, snappy"),
    Setup("1 % positives, snappy, cold", cold=True),
    Setup("1 % positives, zstd", format="zstd"),
    Setup("1 % positives, IPC", format="ipc"),
    Setup("0.1 % positives, snappy", minority=0.001),
    Setup("1 % positives, sorted by class", is_sorted=True),
    Setup("natural, snappy", balance="natural"),
    Setup("100 classes, 10 % outside the first", n_classes=100, minority=0.1),
]


def make_data(setup: Setup, rows: int, folder: Path) -> None:
    """Feature f0 is the row's number over the number of rows: what a poor shuffle would show in a batch."""
    rng, group_rows = np.random.default_rng(0), min(1 << 16, rows // 100)
    y = np.where(rng.random(rows) < setup.minority, rng.integers(1, setup.n_classes, rows), 0).astype(np.int16)
    y = np.sort(y) if setup.is_sorted else y
    for shard, part in enumerate(np.array_split(np.arange(rows), SHARDS)):
        columns = {name: rng.random(len(part), dtype=np.float32) for name in FEATURES}
        columns["f0"] = (part / rows).astype(np.float32)
        table = pa.table(columns | {"y": y[part]})
        if setup.format == "ipc":
            with pa.ipc.new_file(folder / f"{shard}.arrow", table.schema) as file:
                file.write_table(table, max_chunksize=group_rows)
        else:
            path = folder / f"{shard}.parquet"
            pq.write_table(table, path, group_rows, compression=setup.format, use_dictionary=False)


def drop_from_cache(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class Reads:
    """Notes which groups are read, while it is entered."""

    def __init__(self) -> None:
        self.runs: list[tuple[list[int], list[str]]] = []

    def __enter__(self) -> Reads:
        self._plain = plain = Source.read_groups

        def noted(source: Source, run, columns) -> pa.Table:
            self.runs.append((list(run), list(columns)))
            return plain(source, run, columns)

        Source.read_groups = noted
        return self

    def __exit__(self, *error: object) -> None:
        Source.read_groups = self._plain


def scan(source: Source, reads: Reads, pool: ThreadPoolExecutor, mapped: bool) -> None:
    """Read the same groups, in as many threads, and throw them away. What is only mapped is touched, line by line."""

    def read(run: tuple[list[int], list[str]]) -> None:
        table = source.read_groups(*run)
        if mapped:
            for column in table.columns:
                for chunk in column.chunks:
                    np.add.reduce(chunk.to_numpy().view(np.uint8)[::64])

    for _ in pool.map(read, reads.runs):
        pass


def quality(loader: BalancedLoader, rows: int) -> dict[str, float]:
    """Over the batches of an epoch, against a full shuffle: pairs of one class from one group, and spread of means."""
    groups, counts = loader.data.groups, loader.class_counts
    starts = groups.first_row
    same, pairs, means = np.zeros(len(counts)), np.zeros(len(counts)), []
    for batch in loader:
        group = np.searchsorted(starts, batch["row"].numpy(), side="right") - 1
        class_ids = batch["class_id"].numpy()
        for c in range(min(len(counts), 4)):
            met = np.bincount(group[class_ids == c])
            same[c] += (met * (met - 1)).sum()
            pairs[c] += met.sum() * (met.sum() - 1)
        means.append(float(batch["x"][:, 0][torch.from_numpy(class_ids == 0)].mean()))
    classes, _, group_counts = loader.data.entries_by_class()
    per_group = [group_counts[classes == c] for c in range(min(len(counts), 4))]
    expected = [(n * (n - 1)).sum() / (n.sum() * (n.sum() - 1)) for n in per_group]
    found = {f"same-group pairs, class {c}": same[c] / pairs[c] / e for c, e in enumerate(expected) if pairs[c]}
    drawn = BATCH_ROWS * loader.plan.quotas[0] / loader.plan.epoch_rows
    spread = np.var(means[:-1]) / ((counts[0] / rows) ** 2 / 12 / drawn)
    return found | {"variance of batch means, class 0": float(spread)}


def epochs(loader: BalancedLoader) -> Iterator[int]:
    while True:
        rows = 0
        for batch in loader:
            rows += len(batch["x"])
        yield rows


def measure(setup: Setup, rows: int, memory: int, keep: bool, peers: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(setup, rows, folder)
        options = dict(label="y", batch_size=BATCH_ROWS, columns={"x": FEATURES}, balance=setup.balance)
        options |= dict(device="cpu", memory=memory)
        checked = BalancedLoader(folder, **options, extras=("class_id", "row"))
        print(f"\n{setup.name}\n{checked.plan}")
        for batch in islice(checked, 50):
            numbers = (batch["row"].numpy() / rows).astype(np.float32)
            assert np.array_equal(batch["x"][:, 0].numpy(), numbers)
        checked.set_epoch(1)
        measures = quality(checked, rows)
        print("  ".join(f"{what}: {value:.2f}" for what, value in measures.items()))
        checked.close()

        loader = BalancedLoader(folder, **options)
        started = time.perf_counter()
        next(iter(loader))
        first_s = time.perf_counter() - started
        run = epochs(loader)
        next(run)
        before = loader.stats()
        with Reads() as reads:
            epoch_rows = next(run)
        after = loader.stats()
        x = torch.rand(min(rows, memory // 132), N_FEATURES + 1)
        indices = [torch.randint(len(x), (BATCH_ROWS,)) for _ in range(256)]

        pool = ThreadPoolExecutor(loader.plan.threads)

        def prepared() -> None:
            if setup.cold:
                drop_from_cache(folder)

        def select() -> None:
            for k in range(epoch_rows // BATCH_ROWS):
                x.index_select(0, indices[k % len(indices)])

        def limit() -> None:
            prepared()
            scan(loader.data.source, reads, pool, setup.format == "ipc")
            select()

        def ours() -> None:
            prepared()
            next(run)

        cases = [Case("scan + index_select", limit, epoch_rows, 0, 3), Case("fastbalance", ours, epoch_rows, 0, 3)]
        time_in_turn(cases)
        if peers:
            cases += stream_peers.cases(folder, N_FEATURES + 1, BATCH_ROWS)
        axes = {"setup": setup.name, "rows": rows, "memory_bytes": memory}
        report("stream", cases, axes, "scan + index_select", "fastbalance", keep)
        read, needed = (getattr(after, b) - getattr(before, b) for b in ("bytes_read", "bytes_needed"))
        facts = {
            "first_batch_s": round(first_s, 3),
            "groups_read": after.groups_read - before.groups_read,
            "amplification": round(read / needed if needed else 1.0, 3),
            "stall": round((after.read_wait_s - before.read_wait_s) / (after.wait_s - before.wait_s), 3),
            **{what: round(float(value), 3) for what, value in measures.items()},
        }
        print(facts)
        if keep:
            save("stream_facts", {"case": "fastbalance", "axes": axes, **facts})
        loader.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--quick", action="store_true", help="1,000,000 rows, two set-ups, no peers, nothing kept")
    arguments = parser.parse_args()
    rows = 1_000_000 if arguments.quick else arguments.rows
    for number, setup in enumerate(SETUPS[:2] if arguments.quick else SETUPS):
        memory = rows * 132 // 4
        measure(setup, rows, memory, keep=not arguments.quick, peers=number == 0 and not arguments.quick)


if __name__ == "__main__":
    main()
