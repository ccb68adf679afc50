"""Distributed data parallel under torchrun: every rank is given its part of the same balanced global batches.

torchrun --nproc-per-node 2 examples/ddp.py --checkpoint run.pt --max-steps 70   # ends in the second epoch
torchrun --nproc-per-node 4 examples/ddp.py --checkpoint run.pt                  # the rest, on more ranks
"""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
import torch.distributed as dist
import typer
from torch.nn.parallel import DistributedDataParallel

import fastbalance as fb
from fastbalance.flights import shards_in

FEATURES = ["departure_sin", "departure_cos", "season_sin", "season_cos", "log_distance", "log_flights_to_dest"]
GLOBAL_BATCH_ROWS = 4096  # of all ranks: what a checkpoint needs to be good for another number of them


def main(
    data: Path = Path("flights"),
    checkpoint: Path = Path("run.pt"),
    epochs: int = 3,
    max_steps: int = 1000,
    save_every: int = 10,
) -> None:
    dist.init_process_group("gloo")
    try:
        train(data, checkpoint, epochs, max_steps, save_every)
    finally:
        dist.destroy_process_group()


def train(data: Path, checkpoint: Path, epochs: int, max_steps: int, save_every: int) -> None:
    rank = dist.get_rank()
    loader = fb.BalancedLoader(  # asks torch.distributed for its rank: no DistributedSampler, no set_epoch
        shards_in(data),
        label="cancelled",
        batch_size=GLOBAL_BATCH_ROWS // dist.get_world_size(),
        columns={"x": FEATURES, "y": "cancelled"},
        dtypes={"x": torch.float32, "y": torch.float32},
        device="cpu",
        extras=("row",),
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(len(FEATURES), 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    step = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])  # the state is the same on every rank
        step = saved["step"]

    for _ in range(step // len(loader), epochs):
        for batch in loader:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(ddp(batch["x"]).squeeze(1), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rows = zlib.crc32(batch["row"].numpy().tobytes())
            print(f"step {step} rank {rank} rows {rows:08x} loss {loss.item():.6f}", flush=True)
            step += 1
            if step % save_every == 0 and rank == 0:
                parts = {"model": model, "optimizer": optimizer, "loader": loader}
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save({"step": step, **state}, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
            if step == max_steps:
                return


if __name__ == "__main__":
    typer.run(main)
