"""Fully sharded data parallel (FSDP2) under torchrun, with a distributed checkpoint of model, optimizer and loader.

torchrun --nproc-per-node 2 examples/fsdp2.py --checkpoint run --max-steps 70   # ends in the second epoch
torchrun --nproc-per-node 4 examples/fsdp2.py --checkpoint run                  # the rest, on more ranks
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import typer
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fastbalance as fb
from fastbalance.flights import shards_in

FEATURES = ["departure_sin", "departure_cos", "season_sin", "season_cos", "log_distance", "log_flights_to_dest"]
GLOBAL_BATCH_ROWS = 4096  # of all ranks: what a checkpoint needs to be good for another number of them


class Training:
    """Model and optimizer as one `Stateful`, as torch's documentation has it. The loader is one already."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        model, optimizer = state["model"], state["optimizer"]
        set_state_dict(self.model, self.optimizer, model_state_dict=model, optim_state_dict=optimizer)


def main(
    data: Path = Path("flights"),
    checkpoint: Path = Path("run"),
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
    loader = fb.BalancedLoader(
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
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    state = {"training": Training(model, optimizer), "loader": loader}
    if (checkpoint / ".metadata").exists():  # written last
        dcp.load(state, checkpoint_id=checkpoint)
    at = loader.state_dict()
    step = at["epoch"] * len(loader) + at["batch"]

    for _ in range(at["epoch"], epochs):
        for batch in loader:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch["x"]).squeeze(1), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rows = zlib.crc32(batch["row"].numpy().tobytes())
            print(f"step {step} rank {dist.get_rank()} rows {rows:08x} loss {loss.item():.6f}", flush=True)
            step += 1
            if step % save_every == 0:
                dcp.save(state, checkpoint_id=checkpoint)
            if step == max_steps:
                return


if __name__ == "__main__":
    typer.run(main)
