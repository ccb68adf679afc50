"""Lightning's Trainer: checkpoints in the middle of an epoch hold the loader's position, and it goes on from there.

python examples/lightning_trainer.py --checkpoint run --max-steps 70   # ends in the second epoch
python examples/lightning_trainer.py --checkpoint run                  # the rest
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Annotated

import lightning
import torch
import typer
from lightning.pytorch.callbacks import ModelCheckpoint

import fastbalance as fb
from fastbalance.flights import shards_in
from fastbalance.trainers import FirstBatches

FEATURES = ["departure_sin", "departure_cos", "season_sin", "season_cos", "log_distance", "log_flights_to_dest"]
GLOBAL_BATCH_ROWS = 4096


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(len(FEATURES), 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(self.layers(batch["x"]).squeeze(1), batch["y"])
        rows = zlib.crc32(batch["row"].cpu().numpy().tobytes())
        print(f"step {self.global_step} rank {self.global_rank} rows {rows:08x} loss {loss.item():.6f}", flush=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main(
    data: Path = Path("flights"),
    checkpoint: Path = Path("run"),
    epochs: int = 3,
    max_steps: int = -1,
    save_every: int = 10,
    devices: int = 1,
    limit_train_batches: Annotated[
        int | None, typer.Option(help="Batches of an epoch; all of them by default.")
    ] = None,
    overfit_batches: Annotated[int, typer.Option(help="Train on the first batches only, to see a model overfit.")] = 0,
) -> None:
    lightning.seed_everything(0)
    loader = fb.BalancedLoader(
        shards_in(data),
        label="cancelled",
        batch_size=GLOBAL_BATCH_ROWS // devices,
        columns={"x": FEATURES, "y": "cancelled"},
        dtypes={"x": torch.float32, "y": torch.float32},
        device="cpu",
        extras=("row",),
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        max_epochs=epochs,
        max_steps=max_steps,
        limit_train_batches=limit_train_batches,
        overfit_batches=overfit_batches,
        callbacks=[
            ModelCheckpoint(checkpoint, filename="last", every_n_train_steps=save_every, enable_version_counter=False)
        ],
        logger=False,
    )
    last = checkpoint / "last.ckpt"
    batches = FirstBatches(loader, overfit_batches) if overfit_batches else loader
    trainer.fit(Model(), batches, ckpt_path=last if last.exists() else None)


if __name__ == "__main__":
    typer.run(main)
