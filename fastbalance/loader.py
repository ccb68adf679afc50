"""BalancedLoader: class-balanced batches, computed where they are used.

shards --source--> groups --labels--> class counts --plan--> BalancePlan
      seed, epoch ------------------------------> order: position -> place     (pure, slices)
      rank, world_size, batch_size, tail -------> split: which positions
                                                    arena: places -> records -> batch on the device -> yield
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import psutil
import torch

from . import balance as _balance
from .arena import Arena, load_arena
from .checks import names_of
from .cursor import Cursor
from .dataset import Dataset
from .errors import ArgumentError, PlanError, explain
from .labels import label_names
from .order import EpochOrder
from .plan import Tail
from .records import EXTRAS, make_layout
from .run import Run
from .split import pieces, rank_places
from .stats import LoaderStats, Meter

# Batches are gathered several at a time, and handed out as slices: a hand-over to threads (20 us) and a kernel launch
# (50 us) are then paid once for all of them.
_CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}
_MEMORY_SHARE = 0.8  # of what is free, for memory="auto"


class BalancedLoader(Run):
    """Batches of a chosen class distribution, from Parquet, Arrow or tensors, as tensors on a device.

    Iterating gives one epoch of `dict[str, Tensor]`. The order is a pure function of (data, plan, seed, epoch); every
    class is an endless stream of shuffled passes over its rows, and an epoch goes on where the last one stopped. So
    nothing is left out for good, and copies of a row are a whole pass apart.

    Batches are slices of a few MiB that were gathered together: one that is kept alive keeps its neighbours alive too
    (`.clone()` what is kept). Writing to a batch changes no other.

    Args:
        source: Path, glob, directory, URI, list of them; `pa.Table`, dict of arrays or tensors, `datasets.Dataset`; or
            a `fastbalance.Dataset`.
        label: Column whose values are the classes, or several columns: one class for each distinct tuple. None only for
            a `Dataset`, which knows its label.
        batch_size: Rows for each rank and batch; must be given. The global batch is `batch_size * world_size`.
        columns: Names, or `{tensor: column or columns}`: several columns become one `[B, n]` matrix. None: every column
            that can be a tensor.
        balance: "natural", "uniform", "sqrt", or a value of `fastbalance.balance`.
        epoch_rows: Rows of an epoch over all ranks; None: as many as the data has; "over", "under": see `make_plan`.
        seed: In [0, 2^64). None: drawn from torch's global generator at the first iteration (ranks must then agree on
            it through `torch.manual_seed`).
        device: None: "cuda" where there is one, else "cpu".
        memory: What the rows may occupy on the device: bytes, "4GiB", or "auto" (80 % of what is free).
        rank, world_size: None: asked of torch.distributed at the first use, else 0 and 1.
        extras: Also in the batch: "class_id" (int64), "row" (int64, the global row number), "weight" (float32, natural
            share over sampled share of the row's class; weighted by it, a loss estimates the natural one).
        tail: For `balance="natural"`: what becomes of the rows that fill no batch: "keep", "drop" or "pad".
        dtypes: Types to convert tensors to while loading, by name.
        fill_null: Values to put for nulls, by column.
        index: A file written by `Dataset.save_index`; None: scan the labels.
        filesystem: A pyarrow or fsspec file system for paths.

    Raises:
        SourceError, LabelError, IndexFileError, ColumnError, PlanError, ArgumentError: See `fastbalance.errors`; raised
            here already, but for what only reading or the number of ranks can tell.
    """

    def __init__(
        self,
        source: Any,
        label: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        columns: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        balance: str | _balance.Balance = "uniform",
        epoch_rows: int | Literal["over", "under"] | None = None,
        seed: int | None = 0,
        device: str | torch.device | None = None,
        memory: int | str = "auto",
        rank: int | None = None,
        world_size: int | None = None,
        extras: Sequence[str] = ("class_id",),
        tail: Tail = "keep",
        dtypes: Mapping[str, torch.dtype] | None = None,
        fill_null: Mapping[str, Any] | None = None,
        index: Any = None,
        filesystem: Any = None,
    ) -> None:
        super().__init__(batch_size, balance, epoch_rows, tail, seed, rank, world_size)
        self._extras = _checked_extras(extras)
        self.device = _checked_device(device)
        self._budget_bytes = _memory_bytes(memory, self.device)
        self.data = _opened(source, label, index, filesystem)
        self._layout = make_layout(self.data.schema, columns, self._extras, dtypes, fill_null)
        self._check_memory()
        self._check_plan()
        self.sampler = _EpochSetter(self._cursor)
        self._meter = Meter()

    @property
    def classes(self) -> list[Any]:
        """The label value of each class id."""
        return self.data.classes

    @property
    def class_counts(self) -> np.ndarray:
        """Rows of each class, int64 `[n_classes]`."""
        return self.data.class_counts

    @property
    def _fingerprint(self) -> str:
        return self.data.fingerprint

    def __len__(self) -> int:
        """Batches of an epoch: the same on every rank."""
        return self.plan.n_batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """One epoch, or what is left of it. Nothing happens before the first `next`."""
        epoch, first = self._cursor.start()
        asked_s = time.perf_counter()
        for batch, records in self._records(epoch, first):
            tensors = self._tensors(records)
            self._cursor.yielding(epoch, batch, len(self))
            self._meter.served(epoch, batch, len(records), records.nbytes, time.perf_counter() - asked_s)
            yield tensors
            asked_s = time.perf_counter()

    def _records(self, epoch: int, batch: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The records of each batch, from `batch` to the end of the epoch: block by block, chunk by chunk."""
        order = EpochOrder(None, self.plan, self.seed, epoch, self.device)
        chunk_bytes = _CHUNK_BYTES.get(self.device.type, _CHUNK_BYTES["cpu"])
        for block, first, n_batches in pieces(self.plan, batch, len(self)):
            start, stop = rank_places(block.batch_rows, *self._ranks)
            places = order.places(first, n_batches, start, stop)
            chunk_batches = max(1, chunk_bytes // max(1, (stop - start) * self._layout.record_bytes))
            for chunk in places.split(chunk_batches):
                records = self._arena.gather(chunk.reshape(-1))
                for part in records.split(stop - start):
                    yield batch, part
                    batch += 1

    def _tensors(self, records: torch.Tensor) -> dict[str, torch.Tensor]:
        tensors = self._layout.views(records)
        if "weight" in self._extras:
            tensors["weight"] = self._weights[tensors["weight"]]
        return tensors

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._meter.settle(self._count_classes)  # with the seed that those rows had
        super().load_state_dict(state)

    load_state_dict.__doc__ = Run.load_state_dict.__doc__

    def stats(self) -> LoaderStats:
        """What this rank has delivered so far, and how long it was waited for."""
        return self._meter.stats(self._count_classes, self.classes)

    def _count_classes(self, epoch: int, first: int, end: int) -> np.ndarray:
        """Rows of each class that this rank got in the batches [first, end) of an epoch, int64 `[n_classes]`."""
        order = EpochOrder(None, self.plan, self.seed, epoch)
        ends = np.cumsum(self.class_counts)
        counts = np.zeros(len(ends), np.int64)
        for block, batch, n_batches in pieces(self.plan, first, end):
            places = order.places(batch, n_batches, *rank_places(block.batch_rows, *self._ranks))
            counts += np.bincount(np.searchsorted(ends, places.numpy().reshape(-1), side="right"), minlength=len(ends))
        return counts

    @cached_property
    def _arena(self) -> Arena:
        started_s = time.perf_counter()
        arena = load_arena(self.data, self._layout, self.device)
        self._meter.load_s = time.perf_counter() - started_s
        return arena

    @cached_property
    def _weights(self) -> torch.Tensor:
        return torch.from_numpy(self.plan.weights).to(self.device)

    def _check_memory(self) -> None:
        needed = self.data.n_rows * self._layout.record_bytes
        if needed > self._budget_bytes:
            raise PlanError(
                explain(
                    "memory",
                    got=f"{self._budget_bytes:,} bytes for {self.data.n_rows:,} rows of {self._layout.record_bytes} "
                    f"bytes, which are {needed:,}",
                    allowed="room for all rows",
                    fix="Raise memory, load fewer columns, or narrower types with dtypes.",
                )
            )


class _EpochSetter:
    """What trainers look for as `loader.sampler`: only `set_epoch`."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor

    def set_epoch(self, epoch: int) -> None:
        self._cursor.set_epoch(epoch)


def log_prior_correction(loader: BalancedLoader) -> torch.Tensor:
    """What to add to the logits of a model trained on balanced batches to get natural probabilities.

    Returns:
        float32 `[n_classes]`: `log(pi_c / q_c)`, natural over sampled share; -inf for a class that is never drawn. For
        a binary model with one logit add the difference `correction[1] - correction[0]`.

    Source: Elkan, *The foundations of cost-sensitive learning* (IJCAI 2001), theorem 2, in logit form.
    """
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(loader.plan.weights))


def _opened(source: Any, label: Any, index: Any, filesystem: Any) -> Dataset:
    if isinstance(source, Dataset):
        if index is not None or filesystem is not None:
            got = "index" if index is not None else "filesystem"
            raise ArgumentError(explain(got, got="a value, beside a Dataset that is open", allowed="None"))
        names = source.label if label is None else label_names(label)
        if names != source.label:
            raise ArgumentError(explain("label", got=names, allowed=f"{source.label}, the data set's own, or None"))
        return source
    if label is None:
        raise ArgumentError(explain("label", got="None", allowed="the name of the label column, or several names"))
    return Dataset.open(source, label, index=index, filesystem=filesystem)


def _checked_extras(extras: Sequence[str]) -> tuple[str, ...]:
    """The extras in the order of a record."""
    allowed = f"a sequence of names from {EXTRAS}"
    names = names_of("extras", extras, allowed)
    if isinstance(extras, str) or not set(names) <= set(EXTRAS):
        raise ArgumentError(explain("extras", got=repr(extras if isinstance(extras, str) else names), allowed=allowed))
    return tuple(name for name in EXTRAS if name in names)


def _checked_device(device: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        allowed = "a device of this machine, or None"
        raise ArgumentError(explain("device", got=f"{device!r} ({error})", allowed=allowed)) from error
    return found


def _memory_bytes(memory: int | str, device: torch.device) -> int:
    if memory == "auto":
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        return int(_MEMORY_SHARE * free)
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
    try:
        if isinstance(memory, str):
            unit = next(u for u in sorted(units, key=len, reverse=True) if memory.endswith(u))
            n_bytes = int(float(memory[: -len(unit)]) * units[unit])
        else:
            n_bytes = int(memory)
    except (StopIteration, ValueError, TypeError, OverflowError):
        n_bytes = 0
    if n_bytes <= 0 or isinstance(memory, bool):
        raise ArgumentError(
            explain(
                "memory",
                got=repr(memory),
                allowed='bytes as an integer > 0, a string as "512MiB" or "4GiB", or "auto"',
            )
        )
    return n_bytes
