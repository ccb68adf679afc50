"""How fast is the resident loader, from Parquet to batches?

Work: 10 M rows of 32 float32 and an int64 label (136 bytes, a record of 144 with the class id), 1 % positives, balanced
batches of 4,096. Limit: torch's index_select of the same rows with the indices given. Peers: the best hand-written
loops, and DataLoader + WeightedRandomSampler with two workers. Loading is timed apart, against a plain scan.

    python bench/loader.py [--rows 10000000] [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _harness import Case, report, save, time_in_turn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from fastbalance import BalancedLoader, Dataset
from fastbalance.arena import load_arena
from fastbalance.records import make_layout

N_FEATURES, BATCH_ROWS = 32, 4096
FEATURES = [f"f{i}" for i in range(N_FEATURES)]


def make_data(rows: int, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features and a label of 1 %; written as eight Parquet shards, and returned as tensors."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((rows, N_FEATURES), generator=generator)
    y = (torch.rand(rows, generator=generator) < 0.01).to(torch.int64)
    for part, (xs, ys) in enumerate(zip(x.chunk(8), y.chunk(8), strict=True)):
        columns = {name: xs[:, i].contiguous().numpy() for i, name in enumerate(FEATURES)} | {"y": ys.numpy()}
        pq.write_table(pa.table(columns), folder / f"part-{part}.parquet", row_group_size=1 << 18)
    return x, y


def loading(folder: Path, keep: bool) -> None:
    """Parquet to arena, against reading the same columns and doing nothing with them; and the label scan alone."""
    columns = [*FEATURES, "y"]
    data = Dataset.open(folder, label="y")
    layout = make_layout(data.schema, {"x": FEATURES, "y": "y"}, ("class_id",))

    def scan(names: list[str]) -> None:
        for _ in data.source.scan(names, lambda group, table: None):
            pass

    cases = [
        Case("plain scan", lambda: scan(columns), data.n_rows, 136, 3),
        Case("fastbalance", lambda: load_arena(data, layout, torch.device("cpu")), data.n_rows, 136, 3),
    ]
    time_in_turn(cases)
    report("load", cases, {"rows": data.n_rows, "features": N_FEATURES}, "plain scan", "fastbalance", keep)
    cases = [
        Case("read the label column", lambda: scan(["y"]), data.n_rows, 8),
        Case("fastbalance", lambda: Dataset.open(folder, label="y"), data.n_rows, 8),
    ]
    time_in_turn(cases)
    report("label_scan", cases, {"rows": data.n_rows}, "read the label column", "fastbalance", keep)


def balanced_indices(y: torch.Tensor, n_batches: int) -> list[torch.Tensor]:
    """Row numbers of balanced batches, made beforehand: what the limit is given for nothing."""
    classes = [torch.where(y == c)[0] for c in (0, 1)]
    half = BATCH_ROWS // 2
    picks = [[rows[torch.randint(len(rows), (half,))] for rows in classes] for _ in range(n_batches)]
    return [torch.cat(pick)[torch.randperm(BATCH_ROWS)] for pick in picks]


def serving(folder: Path, x: torch.Tensor, y: torch.Tensor, n_batches: int, keep: bool) -> None:
    loader = BalancedLoader(folder, label="y", batch_size=BATCH_ROWS, columns={"x": FEATURES, "y": "y"}, device="cpu")
    check(folder, x, y)
    indices = balanced_indices(y, n_batches)
    classes = [torch.where(y == c)[0] for c in (0, 1)]
    weights = torch.where(y == 1, 1 / (y == 1).sum(), 1 / (y == 0).sum()).double()

    def use(batches) -> None:
        for _ in batches:
            pass

    def per_batch_draws():
        half = BATCH_ROWS // 2
        for _ in range(n_batches):
            rows = torch.cat([rows[torch.randint(len(rows), (half,))] for rows in classes])[torch.randperm(BATCH_ROWS)]
            yield x.index_select(0, rows), y.index_select(0, rows)

    def epoch_multinomial():
        for rows in torch.multinomial(weights, n_batches * BATCH_ROWS, True).split(BATCH_ROWS):
            yield x.index_select(0, rows), y.index_select(0, rows)

    rows, record = n_batches * BATCH_ROWS, 2 * 136
    cases = [
        Case(
            "index_select, indices given",
            lambda: use((x.index_select(0, i), y.index_select(0, i)) for i in indices),
            rows,
            record,
        ),
        Case("fastbalance", lambda: use(islice(loader, n_batches)), rows, record),
        Case("hand-written: randint per class", lambda: use(per_batch_draws()), rows, record),
        Case("hand-written: one multinomial", lambda: use(epoch_multinomial()), rows, record, 2),
    ]
    time_in_turn(cases)
    workers, first_s = wrs_case(x, y, weights, n_batches)
    report(
        "loader", [*cases, workers], {"rows": len(y), "features": N_FEATURES, "batch_rows": BATCH_ROWS},
        "index_select, indices given", "fastbalance", keep,
    )  # fmt: skip
    started = time.perf_counter()
    loader.set_epoch(1_000)
    next(iter(loader))
    ours_s = time.perf_counter() - started
    print(f"first batch: fastbalance {ours_s:.4f} s, DataLoader + WeightedRandomSampler {first_s:.2f} s")
    for case, seconds in () if not keep else (("fastbalance", ours_s), ("DataLoader + WeightedRandomSampler", first_s)):
        save("loader_first_batch", {"case": case, "axes": {"rows": len(y)}, "seconds": [round(seconds, 6)]})


def wrs_case(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, n_batches: int) -> tuple[Case, float]:
    """DataLoader + WeightedRandomSampler with two workers: a case timed from its first batch on, and that batch."""
    n_timed = min(n_batches, 60)
    sampler = WeightedRandomSampler(weights, len(y))
    started = time.perf_counter()
    batches = iter(DataLoader(TensorDataset(x, y), batch_size=BATCH_ROWS, sampler=sampler, num_workers=2))
    next(batches)
    first_s = time.perf_counter() - started
    started = time.perf_counter()
    for _ in islice(batches, n_timed):
        pass
    case = Case("DataLoader + WeightedRandomSampler, 2 workers", lambda: None, n_timed * BATCH_ROWS, 2 * 136)
    case.seconds.append(time.perf_counter() - started)
    return case, first_s


def check(folder: Path, x: torch.Tensor, y: torch.Tensor) -> None:
    """The batches hold the rows that they name, half of them positive."""
    columns = {"x": FEATURES, "y": "y"}
    loader = BalancedLoader(folder, label="y", batch_size=BATCH_ROWS, columns=columns, device="cpu", extras=("row",))
    for batch in islice(loader, 20):
        assert torch.equal(batch["x"], x[batch["row"]])
        assert torch.equal(batch["y"], y[batch["row"]])
        assert abs(int(batch["y"].sum()) - BATCH_ROWS // 2) <= 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="400,000 rows, few batches, nothing kept")
    arguments = parser.parse_args()
    rows, n_batches = (400_000, 40) if arguments.quick else (arguments.rows, 1000)
    with tempfile.TemporaryDirectory() as folder:
        x, y = make_data(rows, Path(folder))
        loading(Path(folder), keep=not arguments.quick)
        serving(Path(folder), x, y, n_batches, keep=not arguments.quick)


if __name__ == "__main__":
    main()
