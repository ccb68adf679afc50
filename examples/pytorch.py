"""A plain PyTorch loop that may be killed at any step, and goes on behind its last checkpoint.

python examples/pytorch.py --checkpoint run.pt --max-steps 70   # ends in the second epoch
python examples/pytorch.py --checkpoint run.pt                  # the rest of the second epoch, and the third
"""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
import typer

import fastbalance as fb
from fastbalance.flights import shards_in

FEATURES = ["departure_sin", "departure_cos", "season_sin", "season_cos", "log_distance", "log_flights_to_dest"]


def main(
    data: Path = Path("flights"),
    checkpoint: Path = Path("run.pt"),
    epochs: int = 3,
    max_steps: int = 1000,
    save_every: int = 10,
) -> None:
    loader = fb.BalancedLoader(
        shards_in(data),
        label="cancelled",
        batch_size=4096,
        columns={"x": FEATURES, "y": "cancelled"},
        dtypes={"x": torch.float32, "y": torch.float32},
        extras=("row",),
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(len(FEATURES), 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    model.to(loader.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    step = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        step = saved["step"]

    for _ in range(step // len(loader), epochs):
        for batch in loader:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch["x"]).squeeze(1), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rows = zlib.crc32(batch["row"].cpu().numpy().tobytes())
            print(f"step {step} rank 0 rows {rows:08x} loss {loss.item():.6f}")
            step += 1
            if step % save_every == 0:
                save(checkpoint, model=model, optimizer=optimizer, loader=loader, step=step)
            if step == max_steps:
                return


def save(checkpoint: Path, step: int, **parts: torch.nn.Module | torch.optim.Optimizer | fb.BalancedLoader) -> None:
    """Under another name first: a run that is killed while it saves keeps the checkpoint before."""
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"step": step, **state}, checkpoint.with_suffix(".tmp"))
    checkpoint.with_suffix(".tmp").replace(checkpoint)


if __name__ == "__main__":
    typer.run(main)
