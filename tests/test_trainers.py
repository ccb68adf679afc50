"""Trainers take the loader as it is: every example runs, is stopped in an epoch, and goes on with the rows that follow.

An example prints a checksum of the rows of every step and rank. What it must be is computed here, from the plan and the
order alone, so that a trainer that replaces a sampler, repeats, skips or mixes up ranks is found out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import fastbalance as fb
from fastbalance.errors import ArgumentError, StateError
from fastbalance.flights import shards_in
from fastbalance.trainers import BalancedTrainerMixin, FirstBatches, lightning_callback

ROOT = Path(__file__).parents[1]
BATCH_ROWS, EPOCHS = 4096, 2
LINE = re.compile(r"step (\d+) rank (\d+) rows ([0-9a-f]{8}) loss (\d\.\d+)")
Steps = dict[tuple[int, int], tuple[str, float]]  # (step, rank): checksum of the rows, loss


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "flights"
    shards_in(folder)
    return folder


@pytest.fixture(scope="module")
def batches(shards) -> list[np.ndarray]:
    """Rows of every global batch of the run."""
    data = fb.Dataset.open(shards_in(shards), label="cancelled")
    plan = fb.make_plan(data.class_counts, global_batch_size=BATCH_ROWS)
    orders = [fb.EpochOrder(data, plan, seed=0, epoch=epoch) for epoch in range(EPOCHS)]
    starts = range(0, plan.epoch_rows, BATCH_ROWS)
    return [order[start : start + BATCH_ROWS].numpy() for order in orders for start in starts]


def checksums(batches: list[np.ndarray], world_size: int) -> dict[tuple[int, int], str]:
    """What every step and rank must print."""
    return {
        (step, rank): f"{zlib.crc32(rows.tobytes()):08x}"
        for step, batch in enumerate(batches)
        for rank, rows in enumerate(batch.reshape(world_size, -1))
    }


def run(example: str, *arguments: object, ranks: int = 1) -> Steps:
    launch, more = [], []
    if example in ("ddp", "fsdp2") or (ranks > 1 and example in ("accelerate_loop", "huggingface_trainer")):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    elif ranks > 1 and example == "lightning_trainer":
        more = ["--devices", ranks]
    command = [sys.executable, *launch, ROOT / "examples" / f"{example}.py", *arguments, *more]
    # Ray prints only one of several lines that differ in digits, and looks for reports every two seconds, by default.
    ray = {"RAY_DEDUP_LOGS": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **ray}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    found = LINE.findall(done.stdout)
    steps = {(int(step), int(rank)): (rows, float(loss)) for step, rank, rows, loss in found}
    assert len(steps) == len(found), "a step was made twice"
    return steps


def test_what_the_examples_are_compared_with_obeys_the_laws(shards, batches):
    data = fb.Dataset.open(shards_in(shards), label="cancelled")
    is_cancelled = np.concatenate([np.full(n, c) for c, n in enumerate(data.class_counts)])
    labels = np.empty(data.n_rows, np.int64)
    labels[data.class_rows()] = is_cancelled
    assert len(batches) == EPOCHS * 49
    for batch in batches:
        assert abs(labels[batch].sum() - BATCH_ROWS // 2) <= 2
    used = np.bincount(np.concatenate(batches), minlength=data.n_rows)
    assert [np.ptp(used[labels == c]) for c in (0, 1)] == [1, 1]


def test_the_page_shows_the_rows_that_are_printed_and_links_to_what_is_there(batches):
    page = (ROOT / "docs" / "trainers.md").read_text()
    wanted = checksums(batches, 1)
    shown = LINE.findall(page)
    assert len(shown) == 4
    assert all(wanted[int(step), int(rank)] == rows for step, rank, rows, _ in shown)
    assert all((ROOT / "docs" / target).exists() for target in re.findall(r"\]\(([^)#]+)\)", page))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "ranks", "ranks_after", "save_every", "stop"),
    [
        ("pytorch", 1, 1, 10, 37),
        ("pytorch", 1, 1, 49, 49),  # saved in the last step of an epoch
        ("ddp", 2, 4, 10, 37),
        ("fsdp2", 2, 1, 10, 37),
        ("lightning_trainer", 2, 2, 10, 37),
        ("accelerate_loop", 2, 2, 10, 37),
        ("huggingface_trainer", 2, 2, 10, 37),
        ("ray_train", 2, 2, 30, 37),
    ],
)
def test_a_run_that_was_stopped_goes_on_with_the_rows_that_follow(
    example, ranks, ranks_after, save_every, stop, shards, batches, tmp_path
):
    arguments = ["--data", shards, "--checkpoint", tmp_path / "run", "--epochs", EPOCHS, "--save-every", save_every]
    before = run(example, *arguments, "--max-steps", stop, ranks=ranks)
    wanted = checksums(batches, ranks)
    assert {at: rows for at, (rows, _) in before.items()} == {at: wanted[at] for at in wanted if at[0] < stop}

    after = run(example, *arguments, ranks=ranks_after)
    wanted = checksums(batches, ranks_after)
    saved = stop // save_every * save_every
    assert {at: rows for at, (rows, _) in after.items()} == {at: wanted[at] for at in wanted if at[0] >= saved}
    for step in range(saved, stop):  # made by both: model and optimizer were saved at the same step as the loader
        mean_before, mean_after = (
            np.mean([loss for (at, _), (_, loss) in steps.items() if at == step]) for steps in (before, after)
        )
        assert mean_after == pytest.approx(mean_before, abs=1e-4)


# ------------------------------------------------------------------------------------- every step of a small run

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1], [180, 72]))


def load(labels: np.ndarray = LABELS, **options: object) -> fb.BalancedLoader:
    """21 batches of 12 rows."""
    data = {"x": np.arange(len(labels), dtype=np.float32), "y": labels}
    return fb.BalancedLoader(data, "y", 12, device="cpu", extras=("row",), **options)


def rows_of(batches, epochs: int = 1) -> list[list[int]]:
    return [batch["row"].tolist() for _ in range(epochs) for batch in batches]


def test_the_first_batches_again_and_again():
    loader = load()
    first = FirstBatches(loader, 3)
    assert len(first) == 3
    assert rows_of(first, epochs=2) == 2 * rows_of(load())[:3]
    assert not hasattr(first, "state_dict")
    more = FirstBatches(load(), 22)
    assert (len(more), rows_of(more)) == (21, rows_of(load()))


@pytest.mark.parametrize("n_batches", [0, 1.5])
def test_first_batches_are_at_least_one(n_batches):
    with pytest.raises(ArgumentError, match="n_batches"):
        FirstBatches(load(), n_batches)


def test_no_trainer_is_imported_before_it_is_used():
    code = "import fastbalance.trainers, sys; print(sys.modules.keys() & set(sys.argv[1:]))"
    names = ["accelerate", "lightning", "ray", "transformers"]
    assert subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True).stdout == "set()\n"


@pytest.fixture
def lightning_fit(tmp_path):
    """Trains on a loader; returns the rows of every step. Checkpoints `step=1.ckpt`, ... are saved behind each."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.rows: dict[str, list[list[int]]] = {"fit": [], "validate": []}

        def training_step(self, batch, batch_idx):
            self.rows["fit"].append(batch["row"].tolist())
            return self.layer(batch["x"][:, None] / 252).mean()

        def validation_step(self, batch, batch_idx):
            self.rows["validate"].append(batch["row"].tolist())

        def configure_optimizers(self):
            if asks_for_steps:
                assert self.trainer.estimated_stepping_batches == 42
            return torch.optim.SGD(self.parameters(), lr=0.1)

    asks_for_steps = False

    def fit(loader, validation=None, ckpt_path=None, estimate=False, callbacks=(), **options):
        nonlocal asks_for_steps
        asks_for_steps, module = estimate, Module()
        every_step = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 2}
        options |= {"accelerator": "cpu", "callbacks": [every_step, *callbacks], "num_sanity_val_steps": 0}
        trainer = lightning.Trainer(**quiet, **options)
        trainer.fit(module, loader, validation, ckpt_path=ckpt_path)
        return module.rows

    return fit


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [None, 8])
def test_lightning_resumes_behind_any_step(limit, lightning_fit, tmp_path):
    """`limit_train_batches` takes the first batches of each epoch."""
    every = rows_of(load(), epochs=2)
    wanted = every[:21][:limit] + every[21:][:limit]
    assert lightning_fit(load(), limit_train_batches=limit)["fit"] == wanted
    of_an_epoch = limit or 21
    for step in {1, of_an_epoch - 1, of_an_epoch, of_an_epoch + 1, 2 * of_an_epoch - 1}:
        rest = lightning_fit(load(), ckpt_path=tmp_path / f"step={step}.ckpt", limit_train_batches=limit)
        assert rest["fit"] == wanted[step:], step


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_callback", [True, False])
def test_lightning_keeps_the_position_for_a_module_that_asks_for_the_number_of_steps(
    with_callback, lightning_fit, tmp_path
):
    """Without the callback Lightning loses it: once this fails, the callback has done its duty."""
    wanted = rows_of(load(), epochs=2)

    def fit(loader, **options):
        callbacks = [lightning_callback(loader)] if with_callback else []
        return lightning_fit(loader, estimate=True, callbacks=callbacks, **options)["fit"]

    assert fit(load()) == wanted
    for step in (5, 21, 30):
        rest = fit(load(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert (rest == wanted[step:]) is (with_callback or step == 21)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning_overfits_the_first_batches_only_where_it_gets_no_others(lightning_fit):
    every = rows_of(load(), epochs=2)
    assert lightning_fit(FirstBatches(load(), 3), overfit_batches=3)["fit"] == every[:3] + every[:3]
    assert lightning_fit(load(), overfit_batches=3)["fit"] == every[:3] + every[21:24]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning_validates_on_every_row_once(lightning_fit):
    rows = lightning_fit(load(), load(balance="natural"))["validate"]
    for epoch in (rows[:21], rows[21:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(252))


@pytest.fixture
def huggingface_train(tmp_path):
    """Trains on a loader, two batches a step; returns the rows of every batch. Each step leaves a checkpoint."""
    import transformers

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, x, y, row):
            rows.append(row.tolist())
            return {"loss": self.layer(x[:, None] / 252).mean()}

    class Trainer(BalancedTrainerMixin, transformers.Trainer):
        pass

    rows: list[list[int]] = []

    def train(loader, resume_from_checkpoint=None):
        rows.clear()
        steps = {"save_steps": 1, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
        quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
        args = transformers.TrainingArguments(str(tmp_path), per_device_train_batch_size=12, **steps, **quiet)
        trainer = Trainer(Module(), args, balanced_loader=loader)
        trainer.train(resume_from_checkpoint)
        assert trainer.state.global_step == 22
        assert trainer.state.epoch == 2
        return list(rows)

    return train


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_huggingface_resumes_behind_any_step_and_makes_no_batch_that_it_skips(huggingface_train, tmp_path):
    wanted = rows_of(load(seed=5), epochs=2)
    assert huggingface_train(load(seed=5)) == wanted
    for step in (1, 10, 11, 12, 21):  # 21 batches are 10 steps of two, and one of one
        loader = load(seed=6)  # the seed is that of the checkpoint
        batches = 2 * step if step < 11 else 21 + 2 * (step - 11)
        assert huggingface_train(loader, tmp_path / f"checkpoint-{step}") == wanted[batches:], step
        assert loader.stats().batches == 42 - batches


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_huggingface_refuses_what_it_cannot_resume(huggingface_train, tmp_path):
    with pytest.raises(ValueError, match="No valid checkpoint"):
        huggingface_train(load(), True)
    huggingface_train(load())
    with pytest.raises(StateError, match="data"):
        huggingface_train(load(LABELS[12:]), True)
    (tmp_path / "checkpoint-22" / "fastbalance.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"fastbalance\.json"):
        huggingface_train(load(), True)
