"""Accelerate: the loader is registered for checkpointing, so that `save_state` holds its position in the epoch.

python examples/accelerate_loop.py --checkpoint run --max-steps 70   # ends in the second epoch
python examples/accelerate_loop.py --checkpoint run                  # the rest
"""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
import typer
from accelerate import Accelerator

import fastbalance as fb
from fastbalance.flights import shards_in

FEATURES = ["departure_sin", "departure_cos", "season_sin", "season_cos", "log_distance", "log_flights_to_dest"]
GLOBAL_BATCH_ROWS = 4096


def main(
    data: Path = Path("flights"),
    checkpoint: Path = Path("run"),
    epochs: int = 3,
    max_steps: int = 1000,
    save_every: int = 10,
) -> None:
    accelerator = Accelerator(cpu=True)
    loader = fb.BalancedLoader(  # asks torch.distributed for its rank: do not give it to `prepare`
        shards_in(data),
        label="cancelled",
        batch_size=GLOBAL_BATCH_ROWS // accelerator.num_processes,
        columns={"x": FEATURES, "y": "cancelled"},
        dtypes={"x": torch.float32, "y": torch.float32},
        device=accelerator.device,
        extras=("row",),
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(len(FEATURES), 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(loader)

    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))
    at = loader.state_dict()
    step = at["epoch"] * len(loader) + at["batch"]

    for _ in range(at["epoch"], epochs):
        for batch in loader:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch["x"]).squeeze(1), batch["y"])
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            rows = zlib.crc32(batch["row"].cpu().numpy().tobytes())
            print(f"step {step} rank {accelerator.process_index} rows {rows:08x} loss {loss.item():.6f}", flush=True)
            step += 1
            if step % save_every == 0:
                accelerator.save_state(str(checkpoint))
            if step == max_steps:
                return


if __name__ == "__main__":
    typer.run(main)
