"""The arena: the records of all rows, sorted by class, on a device. A place of `order` is the number of a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from .dataset import Dataset
from .errors import SourceError, explain
from .kernels import cpu_rows
from .kernels.dispatch import kernels_for
from .ragged import Ragged, RaggedStore
from .records import RecordLayout


class Rows(NamedTuple):
    """Rows that were gathered."""

    records: torch.Tensor
    """uint8 `[n, record_bytes]`, on the device."""
    ragged: dict[str, Ragged]
    """On the CPU."""


class Arena:
    """Records on a device: those of a whole data set, sorted by class, or of the windows of a stream."""

    def __init__(self, layout: RecordLayout, n_rows: int, device: torch.device) -> None:
        self.layout = layout
        self.held: list[list[pa.Array]] = []  # kept as long as the arena is
        self._ragged = RaggedStore(layout.ragged, n_rows)
        self.records = _empty(n_rows, layout.record_bytes, device)
        self._kernels = kernels_for(device)
        # A stream of its own, so that windows go up while batches are gathered.
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.rest()  # the memory may have been another tensor's, which is still in use

    def gather(self, places: torch.Tensor) -> Rows:
        """The rows at places, int64 `[n]`."""
        out = torch.empty((len(places), self.layout.record_bytes), dtype=torch.uint8, device=self.records.device)
        self._kernels.gather(out, self.records, places)
        return Rows(out, self._ragged.gather(places.cpu().numpy()) if self.layout.ragged else {})

    def rest(self) -> None:
        """Rows that were gathered so far may be overwritten: what is put from here on waits for those gathers."""
        if self._uploads is not None:
            self._uploads.wait_stream(torch.cuda.current_stream(self.records.device))

    def put(self, places: np.ndarray, table: pa.Table, extras: Mapping[str, np.ndarray], where: str) -> list[pa.Array]:
        """Write the rows of a table to their places. Any thread may call it; on return they are there.

        Args:
            places: int64 `[n]`, CPU. Negative: the row is left out.
            extras: The columns that the data does not have.
            where: Group and shard, for messages.

        Returns:
            What must be kept as long as the rows are: their ragged columns.

        Raises:
            ColumnError: Nulls, or values that do not fit their dtype.
        """
        wanted = np.flatnonzero(places >= 0)
        if len(wanted) < len(places) and (len(wanted) < _FEW * len(places) or self.layout.is_costly):
            places, table = places[wanted], table.take(wanted)
            extras = {name: values[wanted] for name, values in extras.items()}
        arrays, offsets = self.layout.arrays(table, extras, where)
        with torch.cuda.stream(self._uploads) if self._uploads is not None else nullcontext():
            self._kernels.pack(self.records, places, arrays, offsets)
        return self._ragged.put(places, table, self.layout.fill_null, where)


# Of a group: fewer rows are taken out first, more are packed around the gaps.
_FEW = 0.25


def _empty(n_rows: int, record_bytes: int, device: torch.device) -> torch.Tensor:
    """Room for records, uint8 `[n_rows, record_bytes]`.

    On the CPU numpy allocates, which asks the system for huge pages: filling 600 MB takes 0.15 s instead of 0.70, and
    random gathers miss the TLB less.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.empty((n_rows, record_bytes), np.uint8))
    return torch.empty((n_rows, record_bytes), dtype=torch.uint8, device=device)


def load_arena(
    dataset: Dataset,
    layout: RecordLayout,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Arena:
    """Read every row once, in threads, and pack it to its place.

    Args:
        progress: Called as `progress(groups_done, n_groups)`.

    Raises:
        SourceError: A group cannot be read, or is not the one whose labels were scanned.
        ColumnError: Nulls, or values that do not fit their dtype.
    """
    arena = Arena(layout, dataset.n_rows, device)
    class_starts = np.cumsum(dataset.class_counts) - dataset.class_counts

    def pack(group: int, table: pa.Table) -> None:
        classes, counts = dataset.group_class_counts(group)
        first_places = class_starts[classes] + dataset.first_slots(group)[1]
        every_row = Wanted(classes, counts, first_places, np.zeros_like(counts), counts)
        arena.held.extend(put_group(arena, dataset, group, table, [every_row]))

    columns = list(dict.fromkeys([*layout.columns, *dataset.label]))
    for done, _ in enumerate(dataset.source.scan(columns, pack), start=1):
        if progress is not None:
            progress(done, len(dataset.groups))
    return arena


class Wanted(NamedTuple):
    """Rows of a group to put into an arena, class by class; int64 `[n]` each.

    Row number k of a class in the group goes to `first_places + k`, for k in `[low, high)`.
    """

    classes: np.ndarray
    counts: np.ndarray
    """Rows of the class in the group."""
    first_places: np.ndarray
    low: np.ndarray
    high: np.ndarray


def put_group(
    arena: Arena, dataset: Dataset, group: int, table: pa.Table, wanted: Sequence[Wanted]
) -> list[list[pa.Array]]:
    """Pack the wanted rows of a group; returns what must be kept for each.

    Raises:
        SourceError: The group is not the one whose labels were scanned.
        ColumnError: Nulls, or values that do not fit their dtype.
    """
    if not len(table):
        return [[] for _ in wanted]
    groups = dataset.groups
    where = f"group {groups.index[group]} of {dataset.source.shards[groups.shard[group]].name}"
    class_ids = dataset.encoder.encode(table)
    extras = {name: _extra(name, class_ids, int(groups.first_row[group])) for name in arena.layout.extras}
    held = []
    for rows in wanted:
        places = _places(class_ids, rows, dataset.n_classes)
        if places is None:
            fix = "Scan the labels again."
            got = "other labels than when they were scanned"
            raise SourceError(explain(where, got=got, allowed="unchanged data", fix=fix))
        held.append(arena.put(places, table, extras, where))
    return held


def _extra(name: str, class_ids: np.ndarray, first_row: int) -> np.ndarray:
    """The values of an extra for the rows of a group, int64 `[n]`. For the weight, which is the plan's, the class."""
    return np.arange(len(class_ids)) + first_row if name == "row" else class_ids.astype(np.int64)


_UNWANTED = -(1 << 62)


def _places(class_ids: np.ndarray, wanted: Wanted, n_classes: int) -> np.ndarray | None:
    """The place of each row, int64 `[n]`; negative: not wanted. None: the classes have other counts."""
    classes, counts, first_places, low, high = wanted
    next_places = np.full(n_classes, _UNWANTED)
    next_places[classes] = first_places
    places = cpu_rows.number_rows(class_ids, next_places)
    if not np.array_equal(next_places[classes], first_places + counts):
        return None
    if (low > 0).any() or (high < counts).any():
        lowest, end = np.zeros(n_classes, np.int64), np.zeros(n_classes, np.int64)
        lowest[classes], end[classes] = first_places + low, first_places + high
        places[(places < lowest[class_ids]) | (places >= end[class_ids])] = -1
    return places
