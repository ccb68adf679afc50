"""Hugging Face's Trainer: a mixin gives it the loader, and the place in the epoch where a checkpoint was saved.

python examples/huggingface_trainer.py --checkpoint run --max-steps 70   # ends in the second epoch
python examples/huggingface_trainer.py --checkpoint run                  # the rest
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import torch
import transformers
import typer

import fastbalance as fb
from fastbalance.flights import shards_in
from fastbalance.trainers import BalancedTrainerMixin

FEATURES = ["departure_sin", "departure_cos", "season_sin", "season_cos", "log_distance", "log_flights_to_dest"]
GLOBAL_BATCH_ROWS = 4096


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(len(FEATURES), 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(x).squeeze(1)
        return {"loss": torch.nn.functional.binary_cross_entropy_with_logits(logits, y), "logits": logits}


class BalancedTrainer(BalancedTrainerMixin, transformers.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        rows = zlib.crc32(inputs.pop("row").cpu().numpy().tobytes())
        loss = super().compute_loss(model, inputs, **kwargs)
        rank = self.args.process_index
        print(f"step {self.state.global_step} rank {rank} rows {rows:08x} loss {loss.item():.6f}", flush=True)
        return loss


class StopAt(transformers.TrainerCallback):
    """Stops like `max_steps` of `TrainingArguments`, but leaves the schedule of the learning rate alone."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.max_steps


def main(
    data: Path = Path("flights"),
    checkpoint: Path = Path("run"),
    epochs: int = 3,
    max_steps: int = 1000,
    save_every: int = 10,
) -> None:
    batch_size = GLOBAL_BATCH_ROWS // int(os.environ.get("WORLD_SIZE", "1"))
    args = transformers.TrainingArguments(
        str(checkpoint),
        per_device_train_batch_size=batch_size,
        num_train_epochs=epochs,
        learning_rate=0.01,
        save_steps=save_every,
        save_total_limit=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    loader = fb.BalancedLoader(
        shards_in(data),
        label="cancelled",
        batch_size=batch_size,
        columns={"x": FEATURES, "y": "cancelled"},
        dtypes={"x": torch.float32, "y": torch.float32},
        device="cpu",
        extras=("row",),
    )
    transformers.set_seed(0)
    trainer = BalancedTrainer(Model(), args, balanced_loader=loader, callbacks=[StopAt(max_steps)])
    trainer.train(resume_from_checkpoint=any(checkpoint.glob("checkpoint-*")))


if __name__ == "__main__":
    typer.run(main)
