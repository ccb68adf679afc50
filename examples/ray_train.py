"""Ray Train with two workers on this machine; a second run of the same name goes on behind the last checkpoint.

python examples/ray_train.py --checkpoint run --max-steps 70   # ends in the second epoch
python examples/ray_train.py --checkpoint run                  # the rest
"""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import typer

import fastbalance as fb
from fastbalance.flights import shards_in

FEATURES = ["departure_sin", "departure_cos", "season_sin", "season_cos", "log_distance", "log_flights_to_dest"]
GLOBAL_BATCH_ROWS = 4096  # of all workers: what a checkpoint needs to be good for another number of them


def main(
    data: Path = Path("flights"),
    checkpoint: Path = Path("run"),
    epochs: int = 3,
    max_steps: int = 1000,
    save_every: int = 10,
) -> None:
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config={
            "shards": shards_in(data.absolute()),
            "epochs": epochs,
            "max_steps": max_steps,
            "save_every": save_every,
        },
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=str(checkpoint.parent.absolute()), name=checkpoint.name),
    )
    trainer.fit()


def train(config: dict[str, Any]) -> None:
    rank = ray.train.get_context().get_world_rank()
    loader = fb.BalancedLoader(  # asks torch.distributed for its rank: do not give it to `prepare_data_loader`
        config["shards"],
        label="cancelled",
        batch_size=GLOBAL_BATCH_ROWS // ray.train.get_context().get_world_size(),
        columns={"x": FEATURES, "y": "cancelled"},
        dtypes={"x": torch.float32, "y": torch.float32},
        device="cpu",
        extras=("row",),
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(len(FEATURES), 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    ddp = ray.train.torch.prepare_model(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    step = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder) / "state.pt")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])  # the state is the same on every rank
        step = saved["step"]

    for _ in range(step // len(loader), config["epochs"]):
        for batch in loader:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(ddp(batch["x"]).squeeze(1), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rows = zlib.crc32(batch["row"].numpy().tobytes())
            print(f"step {step} rank {rank} rows {rows:08x} loss {loss.item():.6f}")
            step += 1
            if step % config["save_every"] == 0:
                parts = {"model": model, "optimizer": optimizer, "loader": loader}
                report(loss, {"step": step, **{name: part.state_dict() for name, part in parts.items()}}, rank)
            if step == config["max_steps"]:
                return


def report(loss: torch.Tensor, state: dict[str, Any], rank: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "state.pt")
        checkpoint = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
        ray.train.report({"loss": loss.item()}, checkpoint=checkpoint)


if __name__ == "__main__":
    typer.run(main)
