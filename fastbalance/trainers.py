"""For trainers that ask more of a loader than to be iterated, saved and loaded; see docs/trainers.md.

torch, DDP, FSDP, Accelerate, Ray Train and, but for two corners, Lightning take a `BalancedLoader` as it is. Nothing
here imports a trainer before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset

from .checks import whole
from .loader import BalancedLoader

if TYPE_CHECKING:
    from lightning import Callback
    from transformers import TrainerCallback

_STATE_FILE = "fastbalance.json"


class FirstBatches:
    """The first batches of a loader's next epoch, the same ones in every epoch: for a model that shall overfit.

    This is what Lightning's `overfit_batches=n` asks for. It gets it by an exchange of samplers, which a
    `BalancedLoader` does not have; without this class it trains on the first `n` batches of every epoch, each of other
    rows.

    The batches are kept in memory. There is no position to save: every epoch is the same.

    Args:
        loader: Asked for its batches at the first iteration.
        n_batches: At least 1. More than an epoch has are the whole epoch.

    Raises:
        ArgumentError: `n_batches` is not a positive integer.
    """

    def __init__(self, loader: BalancedLoader, n_batches: int) -> None:
        self._loader = loader
        self._n_batches = whole("n_batches", n_batches, 1, 1 << 62)
        self._batches: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return min(self._n_batches, len(self._loader))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self._batches:
            self._batches = list(islice(self._loader, self._n_batches))
        return iter(self._batches)


def lightning_callback(loader: BalancedLoader) -> Callback:
    """A callback that keeps a loader's position in Lightning's checkpoints: for `trainer.estimated_stepping_batches`.

    Lightning saves and restores the state of a loader itself. But where a module's `configure_optimizers` asks for
    `trainer.estimated_stepping_batches`, Lightning 2.6 sets up the loader before it knows that it resumes, and drops
    the state: an epoch that was left in its middle begins again. With this callback among the trainer's it does not.

    Nothing is lost: where Lightning restores the state too, it is the same one.
    """
    from lightning import Callback

    class KeepPosition(Callback):
        def state_dict(self) -> dict[str, Any]:
            return loader.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            loader.load_state_dict(state_dict)

    return KeepPosition()


class BalancedTrainerMixin:
    """Lets Hugging Face's `Trainer` train on a `BalancedLoader`, and resume in the middle of an epoch.

    `Trainer` counts the steps it made, and skips as many batches of an epoch when it resumes. Here it skips their
    numbers, so that no batch is made to be thrown away. Every checkpoint folder gets a file `fastbalance.json`: by it a
    resumed run gets the seed and the windows of the run before, and is refused on other data or another plan.

        class BalancedTrainer(BalancedTrainerMixin, transformers.Trainer): ...

        trainer = BalancedTrainer(model, args, balanced_loader=loader)
        trainer.train(resume_from_checkpoint=True)

    Leave `ignore_data_skip` False, and give `TrainingArguments` the loader's batch size as
    `per_device_train_batch_size`: `Trainer` makes no batches of it, but counts with it in its logs. `data_collator`,
    `train_dataset` and all arguments that begin with `dataloader_` are without effect on training.

    Args:
        balanced_loader: The batches to train on.
        *args, **kwargs: Those of `Trainer`.
    """

    def __init__(self, *args: Any, balanced_loader: BalancedLoader, **kwargs: Any) -> None:
        self.balanced_loader = balanced_loader
        super().__init__(*args, **kwargs)
        self.add_callback(_saver(balanced_loader))  # type: ignore[attr-defined]

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The loader, as `Trainer` wants it."""
        return _NumberedBatches(self.balanced_loader)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`; of the checkpoint it resumes from, the loader's state is loaded first.

        Raises:
            StateError: The checkpoint was saved with other data, another plan or another global batch size.
            FileNotFoundError: The checkpoint was saved without this class.
        """
        folder = resume_from_checkpoint
        if folder is True:
            from transformers.trainer_utils import get_last_checkpoint

            folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[attr-defined]
        if folder:  # if there is none, `Trainer` says so
            self.balanced_loader.load_state_dict(json.loads((Path(folder) / _STATE_FILE).read_text()))
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]


def _saver(loader: BalancedLoader) -> TrainerCallback:
    """Puts the loader's state into every checkpoint folder."""
    from transformers import TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    class Saver(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
                (folder / _STATE_FILE).write_text(json.dumps(loader.state_dict()))

    return Saver()


class _NumberedBatches(DataLoader):
    """A DataLoader of a BalancedLoader's batches by their number.

    What `accelerate.skip_first_batches` makes of it skips numbers. It must not be prepared by Accelerate, which would
    deal the numbers to the ranks once more; `Trainer` does not do that to what `get_train_dataloader` returns.
    """

    def __init__(self, loader: BalancedLoader) -> None:
        self._numbers = _Numbers(loader)
        super().__init__(_Batches(loader), batch_sampler=self._numbers, collate_fn=_the_batch)

    def set_epoch(self, epoch: int) -> None:
        self._numbers.set_epoch(epoch)


class _Numbers:
    """Epoch and number of every batch of an epoch, each alone in a list."""

    def __init__(self, loader: BalancedLoader) -> None:
        self._loader, self._epoch = loader, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self._epoch, batch)] for batch in range(len(self)))


class _Batches(Dataset):
    """Batches by epoch and number, quick where each is asked for behind the one before."""

    def __init__(self, loader: BalancedLoader) -> None:
        self._loader = loader
        self._batches: Iterator[dict[str, Any]] = iter(())
        self._next: tuple[int, int] | None = None

    def __getitem__(self, number: tuple[int, int]) -> dict[str, Any]:
        epoch, batch = number
        if number != self._next:
            self._loader.load_state_dict({**self._loader.state_dict(), "epoch": epoch, "batch": batch})
            self._batches = iter(self._loader)
        self._next = epoch, batch + 1
        return next(self._batches)


def _the_batch(batches: list[dict[str, Any]]) -> dict[str, Any]:
    return batches[0]
