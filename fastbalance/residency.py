"""What stays in memory and what is streamed: class counts, record size and a budget -> `StreamPlan`.

Every class's first pass is read from the shards as it is needed. A *kept* class stays in memory from then on, so its
copies cost no reading; the others keep only the windows under the block at hand and the next one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from .checks import is_whole
from .dataset import Dataset
from .errors import PlanError, ReadWarning, StateError, explain
from .plan import BalancePlan
from .split import Dealer, lanes_of, parts

# A kept class with fewer rows a lane is not cut into parts: every lane draws from all of its rows. Parts differ by a
# row, and so rows in the smaller ones are drawn once more in so many passes.
SPLIT_ROWS = 1024
# Windows of more rows than this many blocks draw mix no better by much, and the first batch waits for them.
_WINDOW_BLOCKS = 4
_POOR_AMPLIFICATION = 1.5
# A decoded row is about as large as a record, and as much again lies in the buffers that it is decoded from.
_DECODED = 2


class Prediction(NamedTuple):
    """What an epoch will read, once the kept classes have been read."""

    groups: float
    bytes: float
    amplification: float
    """Bytes read over the bytes of the groups that hold a planned row."""
    first_pass_bytes: int
    """Read once, to fill the kept classes."""


@dataclass(frozen=True, eq=False)
class StreamPlan(BalancePlan):
    """A `BalancePlan` whose rows do not all fit into memory. Made by `stream_plan`."""

    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """bool `[n_classes]`. Whether the class stays in memory after its first pass."""
    window_groups: int = 1
    """Groups of a window, in visiting order: a class's rows are shuffled within it."""
    lanes: int = 1
    """Independent parts of the epoch; a rank serves whole lanes."""
    memory_bytes: int = 0
    """What records and reading occupy in this process."""
    run_rows: int = 1
    """Most rows that one read decodes, or one group."""
    threads: int = 1
    """That read."""
    largest_windows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 `[n_classes]`. Most rows of each class that a window can hold."""
    prediction: Prediction | None = None

    @property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(super().fingerprint.encode(), digest_size=16)
        digest.update(np.array([self.window_groups, self.lanes], "<i8").tobytes() + self.kept.tobytes())
        return digest.hexdigest()

    @property
    def layout(self) -> list[Any]:
        """What a state must hold, beside the seed, to stream the same order again: rows of a block, groups of a window,
        and which class ids are streamed: those in `[b0, b1)`, `[b2, b3)`, ... of the list of all b.

        A list, as torch.distributed.checkpoint takes dicts apart and cannot load them where there were others.
        """
        bounds = np.flatnonzero(np.diff(~self.kept, prepend=False, append=False))
        return [self.block_rows, self.window_groups, bounds.tolist()]

    @property
    def ring_rows(self) -> np.ndarray:
        """Rows that a lane must hold of each class if it is streamed, int64 `[n_classes]`.

        Of the block at hand and the next one: their draws; the windows at both ends, which they share with others; one
        that is read early because its groups are read anyway; and one that is left empty where a ring ends.
        """
        return 2 * self.block_draws + 4 * self.largest_windows

    @property
    def block_draws(self) -> np.ndarray:
        """Most draws of each class in a lane's block, int64 `[n_classes]`."""
        rows = self.block_batches * self.global_batch_rows
        share = -(-self.quotas * np.minimum(1.0, rows / self.epoch_rows) // self.lanes)
        return np.minimum(share.astype(np.int64) + 2 * max(1, self.n_classes - 1).bit_length() + 1, rows)

    def lane_plan(self, lane: int, epoch: int) -> BalancePlan:
        """A lane's part of an epoch, as a plan of its own."""
        rows = self.global_batch_rows // self.lanes
        quotas = Dealer(self.quotas, self.lanes).dealt(lane, epoch)
        return BalancePlan(self.class_counts, quotas, rows, self.classes, self.balance, self.block_batches * rows)

    def lane_drawn_before(self, lane: int, epoch: int) -> np.ndarray:
        """Draws of each class in a lane's parts of the epochs before `epoch`, int64 `[n_classes]`."""
        self.drawn_before(epoch)  # refuses numbers that are too large
        return Dealer(self.quotas, self.lanes).in_earlier_turns(lane, epoch)

    @property
    def is_split(self) -> np.ndarray:
        """Whether lanes have parts of a kept class, and do not all have all of its rows; bool `[n_classes]`."""
        return self.class_counts >= SPLIT_ROWS * self.lanes

    def kept_rows(self, lane: int) -> tuple[np.ndarray, np.ndarray]:
        """The half-open range of the rows of each class that a lane keeps, in visiting order; int64 `[n_classes]`."""
        first, end = parts(self.class_counts, lane, self.lanes)
        return np.where(self.is_split, first, 0), np.where(self.is_split, end, self.class_counts)

    def __str__(self) -> str:
        kept, drawn = self.kept, self.quotas > 0
        rows = [int(self.class_counts[part & drawn].sum()) for part in (kept, ~kept)]
        lines = [
            super().__str__(),
            f"memory {_size(self.memory_bytes)}: {(kept & drawn).sum():,} classes of {rows[0]:,} rows are kept, "
            f"{(~kept & drawn).sum():,} of {rows[1]:,} rows are streamed in windows of {self.window_groups:,} groups; "
            f"{self.lanes} lane{'s' if self.lanes > 1 else ''}",
        ]
        if self.prediction:
            p = self.prediction
            lines.append(
                f"reads in an epoch: {p.groups:,.0f} groups, {_size(p.bytes)}, {p.amplification:.2f} times the groups "
                f"that hold a planned row; once, to fill the kept classes: {_size(p.first_pass_bytes)}"
            )
        return "\n".join(lines)


def stream_plan(
    plan: BalancePlan,
    data: Dataset,
    record_bytes: int,
    columns: Sequence[str],
    memory_bytes: int,
    lanes: int,
    world_size: int,
    threads: int,
    layout: Sequence[Any] | None = None,
) -> StreamPlan:
    """Decide what is kept, how long blocks and windows are, and what that will read.

    Args:
        plan: The balance.
        record_bytes: Of a row.
        columns: What is read of a group.
        memory_bytes: Budget of this process, for records and for what is being read.
        lanes: Independent parts of the epoch; divides the global batch, and the ranks divide it.
        threads: That may read; fewer where the groups are large for the budget.
        layout: `StreamPlan.layout` of a run to go on with; None: decide by the budget.

    Raises:
        PlanError: Lanes, ranks and batch do not divide each other, or the budget is too small.
    """
    my_lanes = len(lanes_of(plan, 0, world_size, lanes))
    largest_group = int(data.groups.n_rows.max())
    threads = max(1, min(threads, memory_bytes // 2 // (_DECODED * record_bytes * largest_group)))
    run_rows = max(largest_group, min(1 << 18, memory_bytes // 4 // (_DECODED * record_bytes * threads)))
    reading_bytes = threads * run_rows * record_bytes * _DECODED
    room = _Room(data, (memory_bytes - reading_bytes) // record_bytes, my_lanes)
    given = {f.name: getattr(plan, f.name) for f in fields(BalancePlan) if f.init}
    given |= dict(lanes=lanes, run_rows=run_rows, threads=threads, memory_bytes=memory_bytes)
    chosen = room.with_windows(StreamPlan(**given, kept=np.zeros(plan.n_classes, bool)), 1)
    if layout is None:
        chosen = _with_blocks_and_kept(chosen, room)
        chosen = room.with_windows(chosen, _window_groups(chosen, room))
    else:
        block_rows, window_groups, bounds = layout
        kept = np.searchsorted(bounds, np.arange(plan.n_classes), side="right") & 1 == 0
        chosen = room.with_windows(replace(chosen, kept=kept, block_rows=block_rows), window_groups)
    needed = room.needed(chosen)
    if needed > room.rows:
        raise PlanError(
            explain(
                "memory",
                got=f"{memory_bytes:,} bytes for {data.n_rows:,} rows of {record_bytes} bytes",
                allowed=f"at least {needed * record_bytes + reading_bytes:,} to stream them"
                + (" as the state does" if layout else ""),
                fix="Raise memory, load fewer columns or narrower types, or rewrite the data in smaller groups.",
            )
        )
    prediction = _predicted(chosen, data, columns)
    if prediction.amplification > _POOR_AMPLIFICATION:
        warnings.warn(
            f"an epoch will read {prediction.amplification:.1f} times the bytes of the groups that hold its "
            "rows: classes that are streamed at different rates share groups. Rewrite the data with `fastbalance "
            "reshard`, which puts each class into groups of its own, or raise memory so that more classes are kept.",
            ReadWarning,
            stacklevel=4,
        )
    return replace(chosen, prediction=prediction)


class _Room:
    """Which plans fit into this process."""

    def __init__(self, data: Dataset, rows: int, my_lanes: int) -> None:
        self.rows = rows
        self.n_groups = max(1, int((data.groups.n_rows > 0).sum()))
        self._my_lanes = my_lanes
        classes, _, counts = data.entries_by_class()
        self._most = np.maximum.reduceat(counts, np.searchsorted(classes, np.arange(data.n_classes)))
        self._class_counts = data.class_counts

    def with_windows(self, plan: StreamPlan, window_groups: int) -> StreamPlan:
        """The plan with windows of so many groups."""
        largest = np.minimum(self._most * min(window_groups, self.n_groups), self._class_counts)
        return replace(plan, window_groups=window_groups, largest_windows=largest)

    def homes_and_rings(self, plan: StreamPlan) -> tuple[np.ndarray, np.ndarray]:
        """Rows that each class occupies where it is kept, and where it is streamed, int64 `[n_classes]`."""
        drawn = plan.quotas > 0
        homes = np.where(plan.is_split, -(-plan.class_counts // plan.lanes), plan.class_counts)
        return homes * drawn * self._my_lanes, plan.ring_rows * drawn * self._my_lanes

    def needed(self, plan: StreamPlan) -> int:
        """Rows that the plan occupies."""
        homes, rings = self.homes_and_rings(plan)
        return int(np.where(plan.kept, homes, rings).sum())


def _with_blocks_and_kept(plan: StreamPlan, room: _Room) -> StreamPlan:
    """The longest blocks that leave room to keep every class that is drawn more than once an epoch; else those that
    leave room for most. As many classes are kept as fit.
    """
    best, most = plan, -1
    block_rows = plan.block_rows
    while True:
        plan = replace(plan, block_rows=block_rows)
        homes, rings = room.homes_and_rings(plan)
        # First what is smaller than its windows; then what saves most reading for each row that is kept.
        # Lanes keep fixed parts of a class, which may differ by a row from what they draw of it in an epoch: a class
        # that is drawn once must be dealt anew.
        may = (plan.lanes == 1) | (plan.repeats > 1)
        by_gain = np.lexsort((plan.class_counts, -plan.repeats, homes > rings))
        by_gain = by_gain[may[by_gain]]
        needed = np.concatenate([[0], np.cumsum((homes - rings)[by_gain])]) + rings.sum()
        fitting = np.flatnonzero(needed <= room.rows)
        n_kept = int(fitting[-1]) if len(fitting) else -1
        if n_kept > most or most < 0:
            kept = np.zeros(plan.n_classes, bool)
            kept[by_gain[: max(0, n_kept)]] = True
            best, most = replace(plan, kept=kept), n_kept
        if n_kept >= (plan.repeats > 1).sum() or block_rows <= plan.global_batch_rows:
            return best
        block_rows //= 4


def _window_groups(plan: StreamPlan, room: _Room) -> int:
    """The most groups whose windows fit, until a window holds several blocks' draws of its class."""
    streamed = np.flatnonzero(~plan.kept & (plan.quotas > 0))
    if not len(streamed):
        return 1
    c = streamed[plan.quotas[streamed].argmax()]
    wanted = _WINDOW_BLOCKS * plan.block_draws[c] * room.n_groups / plan.class_counts[c]
    low, high = 1, int(min(room.n_groups, max(1, wanted)))
    while low < high:
        middle = (low + high + 1) // 2
        fits = room.needed(room.with_windows(plan, middle)) <= room.rows
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _predicted(plan: StreamPlan, data: Dataset, columns: Sequence[str]) -> Prediction:
    """Classes of one rate walk over the groups together; those of another rate walk for themselves.

    A group must be read as often as the fastest of its classes passes over it: that is amplification 1.
    """
    group_bytes = data.source.group_bytes(columns)
    classes, groups_of, _ = data.entries_by_class()
    rates = np.where(plan.kept, 0.0, plan.repeats)
    walks, least = np.zeros(len(group_bytes)), np.zeros(len(group_bytes))
    for rate in np.unique(rates[rates > 0]):
        held = np.zeros(len(group_bytes), bool)
        held[groups_of[(rates == rate)[classes]]] = True
        walks[held] += rate
        least[held] = rate  # ascending
    read, planned = float(walks @ group_bytes), float(least @ group_bytes)
    first = np.zeros(len(group_bytes), bool)
    first[groups_of[(plan.kept & (plan.quotas > 0))[classes]]] = True
    return Prediction(float(walks.sum()), read, read / planned if planned else 1.0, int(group_bytes[first].sum()))


def check_layout(layout: Any, n_classes: int) -> None:
    """Refuse what no `StreamPlan.layout` of these classes was.

    Raises:
        StateError: It is something else.
    """
    valid = isinstance(layout, list) and len(layout) == 3 and isinstance(layout[2], list)
    if valid:
        valid = all(is_whole(size, 1, 1 << 62) for size in layout[:2])
        valid = valid and all(is_whole(bound, 0, n_classes + 1) for bound in layout[2])
        valid = valid and len(layout[2]) & 1 == 0 and bool((np.diff(layout[2]) > 0).all())
    if not valid:
        raise StateError(explain("state['stream']", got=repr(layout), allowed="what state_dict() returned, or None"))


def _size(n_bytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:,.0f} {unit}" if unit == "bytes" else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.1f} TiB"
