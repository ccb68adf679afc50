"""What `test_ranks.py` runs under torchrun: one process of several.

torchrun --nproc-per-node 2 ranks_worker.py JOB FOLDER [JSON options]
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import fastbalance as fb

RANK = int(os.environ["RANK"])
WORLD_SIZE = int(os.environ["WORLD_SIZE"])


def report(folder: Path, name: str, value: Any) -> None:
    (folder / f"{name}.{RANK}.json").write_text(json.dumps(value))


def find(folder: Path, options: dict[str, Any]) -> None:
    """Two loaders that nobody tells their ranks: one before there is a process group, one with it."""
    given = dict(batch_size=60 // WORLD_SIZE, extras=("row",), device="cpu")
    loaders = [fb.BalancedLoader(folder / "data", "y", **given) for _ in range(2)]
    rows = [[batch["row"].tolist() for batch in loaders[0]]]
    dist.init_process_group("gloo")
    length = torch.tensor(len(loaders[1]))
    lengths = [torch.zeros_like(length) for _ in range(WORLD_SIZE)]
    dist.all_gather(lengths, length)
    assert all(each == length for each in lengths)
    rows.append([batch["row"].tolist() for batch in loaders[1]])
    report(folder, "find", rows)
    dist.destroy_process_group()


def mesh(folder: Path, options: dict[str, Any]) -> None:
    """Data parallel times tensor parallel."""
    from torch.distributed.device_mesh import init_device_mesh

    meshes = init_device_mesh("cpu", (2, WORLD_SIZE // 2), mesh_dim_names=("dp", "tp"))
    loader = fb.BalancedLoader(folder / "data", "y", 30, extras=("row",), device="cpu", mesh=meshes["dp"])
    both = fb.BalancedLoader(folder / "data", "y", 60 // WORLD_SIZE, extras=("row",), device="cpu", mesh=meshes)
    found = [[batch["row"].tolist() for batch in each] for each in (loader, both)]
    report(folder, "mesh", {"dp": meshes["dp"].get_local_rank(), "rows": found})
    dist.destroy_process_group()


def scan(folder: Path, options: dict[str, Any]) -> None:
    """Labels that the ranks scan together; and then files that one of them cannot read."""
    from fastbalance.source import Source

    dist.init_process_group("gloo")
    scanned, plain = [], Source.read_groups

    def noted(source: Source, run: Any, columns: Any) -> Any:
        scanned.extend(run)
        return plain(source, run, columns)

    Source.read_groups = noted
    data = fb.Dataset.open(folder / "data", "y", engine="ranks")
    found = {"scanned": sorted(scanned), "counts": data.class_counts.tolist(), "fingerprint": data.fingerprint}
    missing = folder / "data" if RANK else folder / "data" / "0.parquet"
    for source, name in ((missing, "other files"), (folder / "data", "damaged")):
        if name == "damaged" and RANK == 0:
            Source.read_groups = damaged
        try:
            fb.Dataset.open(source, "y", engine="ranks")
        except fb.errors.SourceError as error:
            found[name] = str(error)
    report(folder, "scan", found)
    dist.destroy_process_group()


def damaged(*arguments: object) -> None:
    raise fb.errors.SourceError("this one is damaged")


def train(folder: Path, options: dict[str, Any]) -> None:
    """Epochs, with the state kept by rank 0 after each step, until the end or a kill; goes on from that state."""
    dist.init_process_group("gloo")
    given = dict(batch_size=options["batch"] // WORLD_SIZE, extras=("row",), device="cpu")
    given |= {name: options[name] for name in ("memory", "lanes") if name in options}
    loader = fb.BalancedLoader(folder / "data", "y", **given)
    state_path = folder / "state.json"
    if state_path.exists():
        loader.load_state_dict(json.loads(state_path.read_text()))
    log = (folder / f"{options['run']}.{RANK}.log").open("w", buffering=1)
    (folder / f"{options['run']}.{RANK}.pid").write_text(str(os.getpid()))
    while (epoch := loader.state_dict()["epoch"]) < options["epochs"]:
        first = loader.state_dict()["batch"]
        for number, batch in enumerate(loader, start=first):
            log.write(json.dumps([epoch, number, batch["row"].tolist()]) + "\n")
            total = torch.from_numpy(np.array(len(batch["row"])))
            dist.all_reduce(total)  # as gradients are: all ranks have taken the step
            if RANK == 0:
                (folder / "state.new").write_text(json.dumps(loader.state_dict()))
                (folder / "state.new").replace(state_path)
            time.sleep(options.get("pause", 0))
    loader.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    job, where, *rest = sys.argv[1:]
    {"find": find, "mesh": mesh, "scan": scan, "train": train}[job](Path(where), json.loads(rest[0]) if rest else {})
