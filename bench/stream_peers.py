"""What else streams two classes in equal shares: the peers of `stream.py`, each at its best.

Every peer gets each class in files of its own, in its own format, and mixes two streams, one of each class; nothing is
filtered. Rates are of what follows the first batch. MosaicML Streaming is missing: it needs torchvision, numpy below
2.2 and transformers below 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _harness import Case
from torch.utils.data import DataLoader

ROWS, WORKERS = 200_000, 2


def _class_rows(n_columns: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random((ROWS // 2, n_columns), dtype=np.float32) for _ in range(2)]


def hugging_face(folder: Path, n_columns: int, batch_rows: int) -> Iterable[Any]:
    import datasets

    streams = []
    for c, rows in enumerate(_class_rows(n_columns)):
        path = folder / f"class{c}.parquet"
        pq.write_table(pa.table({f"f{i}": column for i, column in enumerate(rows.T)}), path, 1 << 16)
        stream = datasets.load_dataset("parquet", data_files=str(path), streaming=True, split="train")
        streams.append(stream.shuffle(seed=0, buffer_size=1000).with_format("numpy"))
    mixed = datasets.interleave_datasets(streams, probabilities=[0.5, 0.5], seed=0)
    return mixed.iter(batch_rows)


def webdataset(folder: Path, n_columns: int, batch_rows: int) -> Iterable[Any]:
    import webdataset as wds

    streams = []
    for c, rows in enumerate(_class_rows(n_columns)):
        parts = np.array_split(rows, WORKERS)  # a worker reads whole shards
        for part, shard in enumerate(parts):
            with wds.TarWriter(str(folder / f"class{c}-{part}.tar")) as writer:
                for i, row in enumerate(shard):
                    writer.write({"__key__": f"{part}-{i}", "x.npy": row})
        urls = str(folder / f"class{c}-{{0..{WORKERS - 1}}}.tar")
        streams.append(wds.WebDataset(urls, shardshuffle=False).shuffle(1000).decode().to_tuple("x.npy"))
    return DataLoader(wds.RandomMix(streams), batch_size=batch_rows, num_workers=WORKERS)


def litdata(folder: Path, n_columns: int, batch_rows: int) -> Iterable[Any]:
    import litdata as ld

    streams = []
    for c, rows in enumerate(_class_rows(n_columns)):
        items = [torch.from_numpy(row.copy()) for row in rows]
        ld.optimize(_itself, items, str(folder / f"class{c}"), chunk_bytes="8MB", num_workers=1, verbose=False)
        streams.append(ld.StreamingDataset(str(folder / f"class{c}"), shuffle=True, drop_last=False))
    mixed = ld.CombinedStreamingDataset(streams, weights=(0.5, 0.5), iterate_over_all=False)
    return ld.StreamingDataLoader(mixed, batch_size=batch_rows, num_workers=WORKERS)


def _itself(item: torch.Tensor) -> torch.Tensor:
    return item


PEERS: dict[str, Callable[[Path, int, int], Iterable[Any]]] = {
    "Hugging Face streaming": hugging_face,
    "WebDataset, 2 workers": webdataset,
    "LitData, 2 workers": litdata,
}


def _length(batch: Any) -> int:
    """Rows of a batch: a tensor, or tensors in a list or dict."""
    parts = batch.values() if isinstance(batch, dict) else batch
    return len(batch) if isinstance(batch, torch.Tensor) else len(next(iter(parts)))


def cases(folder: Path, n_columns: int, batch_rows: int) -> list[Case]:
    """Each peer over its data once; those that are not installed are named and left out."""
    found = []
    for number, (name, make) in enumerate(PEERS.items()):
        own = folder / str(number)
        own.mkdir()
        try:
            batches = iter(make(own, n_columns, batch_rows))
        except ImportError as error:
            print(f"{name} is not measured: {error}")
            continue
        next(batches)
        started = time.perf_counter()
        rows = sum(map(_length, batches))
        case = Case(name, lambda: None, rows)
        case.seconds.append(time.perf_counter() - started)
        found.append(case)
    return found
