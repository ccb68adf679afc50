"""BalancedLoader: class-balanced batches, computed where they are used.

shards --source--> groups --labels--> class counts --plan--> BalancePlan
      seed, epoch ------------------------------> order: position -> place     (pure, slices)
      rank, world_size, batch_size, tail -------> split: which positions
           rows that fit into memory -----------> arena: places -> records -> batch on the device -> yield
           more than that ----------------------> stream: the same, of windows that are read ahead
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from . import balance as _balance
from .arena import Arena, load_arena
from .batches import BatchMaker, Hook
from .checks import whole
from .cursor import Cursor
from .errors import ArgumentError, FastbalanceError, StateError, explain
from .options import (
    checked_device,
    checked_extras,
    checked_hooks,
    decoded_examples,
    memory_bytes,
    opened,
    ragged_bytes,
)
from .order import EpochOrder
from .plan import BalancePlan, Tail
from .ranks import MAX_RANKS
from .records import make_layout
from .residency import StreamPlan, check_layout, stream_plan
from .rowrandom import draw_seeds
from .run import Run
from .split import pieces, rank_places
from .stats import LoaderStats, Meter
from .stream import Stream

# Batches are gathered several at a time, and handed out as slices: a hand-over to threads (20 us) and a kernel launch
# (50 us) are then paid once for all of them.
_CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}


class _Block(NamedTuple):
    """Consecutive batches, as places in an arena."""

    arena: Arena
    places: torch.Tensor
    """int64 `[n_batches, rows of this rank]`."""
    seeds: torch.Tensor | None
    """Of those draws, if the batches are to have them."""


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
            that can be a tensor of one shape. Strings, binary and lists come as `fastbalance.Ragged` where they are
            named.
        decode: Functions that make a tensor of a value (say of the bytes of an image), by column. They run in the
            threads that read, once for each row that is read; all rows must give one type and shape.
        collate: Called with the `Ragged` columns of each batch, on the host (and its seeds, if it has them); returns a
            dict of what the batch gets in their place: tensors are moved to the device.
        transform: Called with each batch, on the device; the loop gets what it returns. Random numbers that are the
            same on any number of ranks and after any resume: `RowRandom(batch["seed"])`.
        balance: "natural", "uniform", "sqrt", or a value of `fastbalance.balance`.
        epoch_rows: Rows of an epoch over all ranks; None: as many as the data has; "over", "under": see `make_plan`.
        seed: In [0, 2^64). None: drawn from torch's global generator at the first iteration (ranks must then agree on
            it through `torch.manual_seed`).
        device: None: "cuda" where there is one, else "cpu".
        memory: What the rows may occupy on the device, and the reading of them: bytes, "4GiB", or "auto" (80 % of what
            is free). Data that is larger is streamed: classes that are drawn often stay in memory, of the others the
            next windows are read ahead.
        lanes: Of a stream: independent parts of the epoch, each of its own rows; a multiple of the number of ranks that
            divides the global batch. Any number of ranks that divides it can resume. None: as many as ranks.
        rank, world_size: None: found at the first use: torch.distributed's, else those that `torchrun` sets, else 0 and
            1.
        mesh: In place of them, a `DeviceMesh` of the data-parallel dimensions alone, as `device_mesh["dp"]`: processes
            that differ in other dimensions (tensor parallel) get the same batches.
        extras: Also in the batch: "class_id" (int64), "row" (int64, the global row number), "weight" (float32, natural
            share over sampled share of the row's class; weighted by it, a loss estimates the natural one), "seed"
            (int64, of the draw: another one each time that a row is drawn).
        tail: For `balance="natural"`: what becomes of the rows that fill no batch: "keep", "drop" or "pad".
        dtypes: Types to convert tensors to while loading, by name.
        fill_null: Values to put for nulls, by column.
        index: A file written by `Dataset.save_index`; None: scan the labels.
        filesystem: A pyarrow or fsspec file system for paths.
        progress: Show a progress bar of each epoch on rank 0, on stderr.

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
        lanes: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        mesh: Any = None,
        extras: Sequence[str] = ("class_id",),
        tail: Tail = "keep",
        dtypes: Mapping[str, torch.dtype] | None = None,
        fill_null: Mapping[str, Any] | None = None,
        decode: Mapping[str, Callable[[Any], Any]] | None = None,
        collate: Hook | None = None,
        transform: Hook | None = None,
        index: Any = None,
        filesystem: Any = None,
        progress: bool = False,
    ) -> None:
        super().__init__(batch_size, balance, epoch_rows, tail, seed, rank, world_size, mesh)
        self._extras = checked_extras(extras)
        self.device = checked_device(device)
        self._budget_bytes = memory_bytes(memory, self.device)
        self.data = opened(source, label, index, filesystem)
        examples = decoded_examples(self.data, decode)
        self._layout = make_layout(self.data.schema, columns, self._extras, dtypes, fill_null, examples)
        self._collate, self._transform = checked_hooks(self._layout, collate, transform)
        self._row_bytes = self._layout.record_bytes + ragged_bytes(self.data, self._layout)
        self._lanes = None if lanes is None else whole("lanes", lanes, 1, MAX_RANKS)
        self._fits = self.data.n_rows * self._row_bytes <= self._budget_bytes
        self._stream_layout: list[Any] | None = None  # of a state
        self._stream: Stream | None = None
        self._iteration: object = None  # the one that the windows of the stream belong to
        self._check_plan()
        self._progress = bool(progress)
        self.sampler = _EpochSetter(self._cursor)
        self.batch_sampler = None  # Lightning reads it of a loader for validation that has a `sampler`
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

    def __iter__(self) -> Iterator[Any]:
        """One epoch, or what is left of it; dicts, or what `transform` makes of them. Nothing happens before the first
        `next`.
        """
        epoch, first = self._start()
        if self._progress and self._ranks[0] == 0:
            yield from self._with_progress(self._batches(epoch, first), epoch, first)
        else:
            yield from self._batches(epoch, first)

    def _with_progress(self, batches: Iterator[Any], epoch: int, first: int) -> Iterator[Any]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(f"epoch {epoch}", total=len(self), completed=first)
            for batch in batches:
                bar.advance(task)
                yield batch

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        asked_s = time.perf_counter()
        for batch, (rows, tensors) in enumerate(self._tensors(epoch, first), start=first):
            self._cursor.yielding(epoch, batch, len(self))
            self._meter.served(epoch, batch, rows, rows * self._layout.record_bytes, time.perf_counter() - asked_s)
            yield tensors
            asked_s = time.perf_counter()

    def _tensors(self, epoch: int, batch: int) -> Iterator[tuple[int, Any]]:
        """Number of rows and tensors of each batch, from `batch` to the end of the epoch: block by block, chunk by
        chunk.
        """
        chunk_bytes = _CHUNK_BYTES.get(self.device.type, _CHUNK_BYTES["cpu"])
        blocks = self._streamed(epoch, batch) if isinstance(self.plan, StreamPlan) else self._resident(epoch, batch)
        for arena, places, seeds in blocks:
            rows = places.shape[1]
            at_once = max(1, chunk_bytes // max(1, rows * self._layout.record_bytes))
            for start in range(0, len(places), at_once):
                chunk = slice(start, start + at_once)
                gathered = arena.gather(places[chunk].reshape(-1))
                for tensors in self._maker.cut(gathered, None if seeds is None else seeds[chunk].reshape(-1), rows):
                    yield rows, tensors

    def _resident(self, epoch: int, batch: int) -> Iterator[_Block]:
        """The blocks of this rank, in the arena that holds all rows."""
        order = EpochOrder(None, self.plan, self.seed, epoch, self.device)
        for block, first, n_batches in pieces(self.plan, batch, len(self)):
            mine = rank_places(block.batch_rows, *self._ranks)
            seeds = None
            if "seed" in self._extras:
                seeds = draw_seeds(self.seed, epoch, block, first, n_batches, mine, self.device)
            yield _Block(self._arena, order.places(first, n_batches, *mine), seeds)

    def _streamed(self, epoch: int, batch: int) -> Iterator[_Block]:
        """The same, in an arena of windows."""
        stream, iteration = self._opened_stream(), object()
        self._iteration = iteration
        finalizing = sys.is_finalizing  # bound now: at the end of the process modules are emptied
        try:
            for _, first, n_batches in pieces(self.plan, batch, len(self)):
                if self._iteration is not iteration:
                    got = "another iteration of this loader, which began meanwhile"
                    fix = "Make a second loader."
                    raise ArgumentError(explain("iteration", got=got, allowed="one at a time of a stream", fix=fix))
                seeds = stream.seeds(epoch, first, n_batches) if "seed" in self._extras else None
                yield _Block(stream.arena, stream.places(epoch, first, n_batches), seeds)
        except GeneratorExit:  # the loop was left: nothing is read ahead for it
            if self._iteration is iteration and not finalizing():
                stream.forget()
            raise

    def _opened_stream(self) -> Stream:
        assert isinstance(self.plan, StreamPlan)
        if self._stream is None or self._stream.seed != self.seed or self._stream.plan is not self.plan:
            self.close()
            arguments = self.plan, self.data, self._layout, self.seed, self.device, *self._ranks
            self._stream = Stream(*arguments, self._meter.reads)
        return self._stream

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which reads the rows itself."""
        return {name: value for name, value in vars(self).items() if name != "_arena"} | {"_stream": None}

    def close(self) -> None:
        """Stop the threads that read, and free the memory of a stream. The next iteration begins anew."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _plan_for(self, world_size: int) -> BalancePlan:
        plan = super()._plan_for(world_size)
        if self._fits and self._stream_layout is None:
            return plan
        return stream_plan(
            plan,
            self.data,
            self._row_bytes,
            list(dict.fromkeys([*self._layout.columns, *self.data.label])),
            self._budget_bytes,
            self._lanes or world_size,
            world_size,
            self.data.source.threads,
            self._stream_layout,
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._meter.settle(self._count_classes)  # with the seed that those rows had
        before = self._lanes, self._stream_layout, self._plan
        self._plan = None
        try:
            self._adopt(state)
            super().load_state_dict(state)
        except FastbalanceError:
            self._lanes, self._stream_layout, self._plan = before
            raise
        if before[2] is not None and before[2][0] == self._ranks and before[2][1].fingerprint == self.plan.fingerprint:
            self._plan = before[2]  # its windows are in memory

    def _adopt(self, state: Mapping[str, Any]) -> None:
        """Take over how a state's run was streamed: the budget may be another here."""
        if not isinstance(state, Mapping) or not {"stream", "lanes"} <= set(state):
            return  # refused when it is loaded
        layout = state["stream"]
        if layout is None and not self._fits:
            allowed = f"at least {self.data.n_rows * self._row_bytes:,}, for all rows"
            fix = "The state's run had all rows in memory: their order is another one when they are streamed."
            raise StateError(explain("memory", got=f"{self._budget_bytes:,} bytes", allowed=allowed, fix=fix))
        if layout is not None:
            check_layout(layout, len(self.class_counts))
            self._lanes = whole("state['lanes']", state["lanes"], 1, MAX_RANKS)
        self._stream_layout = layout

    load_state_dict.__doc__ = Run.load_state_dict.__doc__

    def stats(self) -> LoaderStats:
        """What this rank has delivered so far, and how long it was waited for."""
        return self._meter.stats(self._count_classes, self.classes)

    def _count_classes(self, epoch: int, first: int, end: int) -> np.ndarray:
        """Rows of each class that this rank got in the batches [first, end) of an epoch, int64 `[n_classes]`."""
        ends = np.cumsum(self.class_counts)
        counts = np.zeros(len(ends), np.int64)
        if isinstance(self.plan, StreamPlan):
            stream = self._opened_stream()
            return sum((stream.count_classes(epoch, at, n) for _, at, n in pieces(self.plan, first, end)), counts)
        order = EpochOrder(None, self.plan, self.seed, epoch)
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
    def _maker(self) -> BatchMaker:
        weights = torch.from_numpy(self.plan.weights).to(self.device)
        return BatchMaker(self._layout, self.device, weights, self._collate, self._transform)


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
