"""Class counts and a balance -> `BalancePlan`: how often every class is drawn. Integers, no randomness, no device."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from . import balance as _balance
from .checks import is_whole, whole
from .errors import ArgumentError, PlanError, StarvedClassError, explain
from .kernels import cpu

Tail = Literal["keep", "drop", "pad"]

BLOCK_ROWS = 1 << 20  # positions planned and computed together: 8 MiB of places, well under 10 ms on 2 cores
MAX_EPOCH_ROWS = 1 << 52  # up to here `kernels.cpu.drawn` is exact
MAX_BATCH_ROWS = 1 << 30  # exclusive


@dataclass(frozen=True, eq=False)
class BalancePlan:
    """What one epoch delivers. Make it with `make_plan`; print it to audit it."""

    class_counts: np.ndarray
    """int64 `[n_classes]`. Rows of each class."""
    quotas: np.ndarray
    """int64 `[n_classes]`. Draws of each class in one epoch."""
    global_batch_rows: int
    """Rows of a full batch, over all ranks."""
    classes: tuple[object, ...]
    """The label value of each class id."""
    balance: str
    """The balance that was asked for, in words."""
    block_rows: int = BLOCK_ROWS
    """Positions planned and computed together, about: whole batches, at least one."""
    tail_rows: int = field(init=False)
    """Rows of the last, short batch of an epoch; 0 where there is none."""
    block_batches: int = field(init=False)
    """Full batches planned and computed together."""
    cumulative_quotas: np.ndarray = field(init=False, repr=False)
    """int64 `[n_classes + 1]`. Sums of the quotas before each class."""

    def __post_init__(self) -> None:
        cumulative = np.concatenate([[0], np.cumsum(self.quotas)]).astype(np.int64)
        epoch_rows = int(cumulative[-1])
        full = epoch_rows // self.global_batch_rows
        object.__setattr__(self, "cumulative_quotas", cumulative)
        object.__setattr__(self, "tail_rows", epoch_rows % self.global_batch_rows)
        object.__setattr__(self, "block_batches", max(1, min(full, self.block_rows // self.global_batch_rows)))
        for array in (self.class_counts, self.quotas, cumulative):
            array.setflags(write=False)

    @property
    def n_classes(self) -> int:
        return len(self.class_counts)

    @property
    def lanes(self) -> int:
        """Independent parts of an epoch: one where all rows are in memory."""
        return 1

    @property
    def layout(self) -> list[Any] | None:
        """What a state must hold, beside the seed, to give the same order again; None: the plan is enough."""
        return None

    @property
    def n_rows(self) -> int:
        """Rows of the data set."""
        return int(self.class_counts.sum())

    @property
    def epoch_rows(self) -> int:
        """Rows that one epoch delivers."""
        return int(self.cumulative_quotas[-1])

    @property
    def n_batches(self) -> int:
        """Batches of an epoch, a short last one included."""
        return -(-self.epoch_rows // self.global_batch_rows)

    @property
    def repeats(self) -> np.ndarray:
        """float64 `[n_classes]`. Draws of one row in one epoch, on average."""
        return self.quotas / self.class_counts

    @property
    def coverage(self) -> np.ndarray:
        """float64 `[n_classes]`. Share of the class's rows that one epoch draws at least once."""
        return np.minimum(self.repeats, 1.0)

    @property
    def epochs_to_cover(self) -> np.ndarray:
        """float64 `[n_classes]`. Epochs after which every row has been drawn; infinite for a quota of 0."""
        with np.errstate(divide="ignore"):
            return np.ceil(self.class_counts / self.quotas)

    @property
    def weights(self) -> np.ndarray:
        """float32 `[n_classes]`. Natural share over sampled share: the weight that undoes the resampling."""
        natural = self.class_counts / self.n_rows
        sampled = self.quotas / self.epoch_rows
        out = np.zeros(self.n_classes)
        return np.divide(natural, sampled, out=out, where=sampled > 0).astype(np.float32)

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides the order, the seed apart."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.array([self.global_batch_rows, self.block_batches], "<i8").tobytes())
        digest.update(self.class_counts.astype("<i8").tobytes())
        digest.update(self.quotas.astype("<i8").tobytes())
        return digest.hexdigest()

    def drawn(self, rows: int) -> np.ndarray:
        """How the first `rows` draws of an epoch split over the classes, int64 `[n_classes]`.

        Closed form, O(n_classes): `docs/order.md` section 3.
        """
        out = np.empty(self.n_classes, np.int64)
        cpu.drawn(rows, self.cumulative_quotas, out)
        return out

    def drawn_before(self, epoch: int) -> np.ndarray:
        """Draws of each class in the epochs before `epoch`, int64 `[n_classes]`.

        Raises:
            ArgumentError: So many epochs that a draw's number would not fit 63 bits.
        """
        if epoch * self.epoch_rows >= 1 << 62:
            raise ArgumentError(
                explain("epoch", got=epoch, allowed=f"less than {(1 << 62) // self.epoch_rows:,} with this plan")
            )
        return self.quotas * epoch

    def table(self, most: int = 20) -> list[tuple[str, ...]]:
        """The lines of the audit, largest class first: label, rows, share, quota, share, repeats, coverage, epochs.

        With more than `most` classes the middle is left out, and a line says how many.
        """
        order = np.argsort(-self.class_counts, kind="stable")
        shown = list(order) if len(order) <= most else [*order[: most // 2], None, *order[-(most // 2) :]]
        lines, repeats, coverage, epochs_to_cover = [], self.repeats, self.coverage, self.epochs_to_cover
        for c in shown:
            if c is None:
                lines.append((f"... {self.n_classes - most // 2 * 2} more", *[""] * 7))
                continue
            epochs = epochs_to_cover[c]
            lines.append(
                (
                    str(self.classes[c]),
                    f"{self.class_counts[c]:,}",
                    f"{self.class_counts[c] / self.n_rows:.4%}",
                    f"{self.quotas[c]:,}",
                    f"{self.quotas[c] / self.epoch_rows:.4%}",
                    f"{repeats[c]:,.3f}",
                    f"{coverage[c]:.2%}",
                    "never" if math.isinf(epochs) else f"{epochs:,.0f}",
                )
            )
        return lines

    def __str__(self) -> str:
        header = ("class", "rows", "share", "quota", "share drawn", "repeats", "coverage", "epochs to cover")
        lines = [header, *self.table()]
        widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
        body = "\n".join(
            "  ".join(
                [line[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True)]
            ).rstrip()
            for line in lines
        )
        tail = f", the last of {self.tail_rows:,} rows" if self.tail_rows else ""
        return (
            f"balance {self.balance}: {self.n_rows:,} rows of {self.n_classes:,} classes; an epoch of "
            f"{self.epoch_rows:,} rows in {self.n_batches:,} batches of {self.global_batch_rows:,}{tail}\n{body}"
        )


def make_plan(
    class_counts: Sequence[int] | np.ndarray,
    balance: str | _balance.Balance = "uniform",
    epoch_rows: int | Literal["over", "under"] | None = None,
    global_batch_size: int = 1,
    *,
    classes: Sequence[object] | None = None,
    tail: Tail = "keep",
    block_rows: int = BLOCK_ROWS,
) -> BalancePlan:
    """Turn class counts and a wanted balance into the integers of an epoch.

    An epoch is stretched to whole global batches, up (`epoch_rows="under"`: down), and its rows are shared out by
    the method of largest remainders. `balance="natural"` with `epoch_rows=None` delivers every row once instead,
    and `tail` says what becomes of the rows that fill no batch.

    Args:
        class_counts: int `[n_classes]`. Rows of each class, each >= 1.
        balance: A name or a value of `fastbalance.balance`.
        epoch_rows: Rows of an epoch. None: as many as the data set has. "over": as few as draw every row of every
            class at least once. "under": as many as draw no row twice.
        global_batch_size: Rows of a batch over all ranks.
        classes: Label value of each class id; None: the ids themselves.
        tail: "keep": a short last batch. "drop": none; those rows come first in the next epoch. "pad": filled with
            the first draws of the next epoch's pass.
        block_rows: Positions planned and computed together. Every row of a class is drawn equally often, +-1, after
            every block.

    Raises:
        PlanError: A class without rows, an epoch shorter than a batch, or a class whose share rounds to no draw.
        ArgumentError: A value outside what is allowed.
    """
    counts = _checked_counts(class_counts)
    labels = tuple(range(len(counts))) if classes is None else tuple(classes)
    _check_arguments(len(counts), labels, epoch_rows, global_batch_size, tail)
    wanted = _balance.resolve(balance)
    n_rows = int(counts.sum())
    every_row_once = wanted == _balance.natural and epoch_rows is None
    if every_row_once and (tail == "keep" or n_rows % global_batch_size == 0):
        return BalancePlan(counts, counts.copy(), global_batch_size, labels, str(wanted), block_rows)
    shares = _checked_weights(wanted.weights(counts, labels), wanted)
    weights = _integer_weights(shares)
    rows = _wanted_rows(counts, weights, epoch_rows)
    down = epoch_rows == "under" or (every_row_once and tail == "drop")
    batches = rows // global_batch_size if down else -(-rows // global_batch_size)
    if rows < global_batch_size:
        raise PlanError(
            explain(
                "batch_size",
                got=f"{global_batch_size:,} rows in a global batch, but an epoch of {rows:,} rows",
                allowed=f"at most {rows:,}",
                fix="Take a smaller batch_size, or give epoch_rows.",
            )
        )
    quotas = _largest_remainder(batches * global_batch_size, weights)
    _check_quotas(quotas, shares, labels)
    return BalancePlan(counts, quotas, global_batch_size, labels, str(wanted), block_rows)


def _checked_counts(class_counts: Sequence[int] | np.ndarray) -> np.ndarray:
    counts = np.array(class_counts)
    if counts.ndim != 1 or counts.size == 0 or not np.issubdtype(counts.dtype, np.integer):
        raise ArgumentError(
            explain(
                "class_counts",
                got=f"{counts.dtype} of shape {counts.shape}",
                allowed="a list of integers, one for each class",
            )
        )
    counts = counts.astype(np.int64)
    if counts.min() < 1:
        raise PlanError(
            explain(
                "class_counts",
                got=f"{counts.min()} rows in class {counts.argmin()}",
                allowed=">= 1 row in every class",
                fix="Leave classes without rows out; a row cannot be drawn from them.",
            )
        )
    if int(counts.sum()) > MAX_EPOCH_ROWS:
        raise PlanError(explain("class_counts", got=f"{counts.sum():,} rows", allowed=f"at most {MAX_EPOCH_ROWS:,}"))
    return counts


def _check_arguments(n_classes: int, labels: tuple, epoch_rows: object, batch: object, tail: object) -> None:
    if len(labels) != n_classes:
        raise ArgumentError(explain("classes", got=f"{len(labels)} labels", allowed=f"{n_classes}, one for each class"))
    whole("batch_size", batch, 1, MAX_BATCH_ROWS)
    if tail not in ("keep", "drop", "pad"):
        raise ArgumentError(explain("tail", got=repr(tail), allowed='"keep", "drop" or "pad"'))
    named = epoch_rows is None or epoch_rows in ("over", "under")
    if not named and not is_whole(epoch_rows, 1, MAX_EPOCH_ROWS + 1):
        raise ArgumentError(
            explain(
                "epoch_rows",
                got=repr(epoch_rows),
                allowed=f'None, "over", "under", or an integer in [1, {MAX_EPOCH_ROWS:,}]',
            )
        )


def _checked_weights(weights: np.ndarray, wanted: _balance.Balance) -> np.ndarray:
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.max() <= 0:
        raise PlanError(
            explain(
                f"balance {wanted}",
                got=f"weights from {weights.min():g} to {weights.max():g}",
                allowed="finite weights >= 0, at least one of them > 0",
                fix="Take an exponent nearer to [0, 1].",
            )
        )
    return weights


def _integer_weights(weights: np.ndarray) -> list[int]:
    """Weights as Python ints, so that every later sum is exact.

    Fractions are rounded to 40 bits of the largest: a last bit that two C libraries disagree on in `pow` then makes
    no other plan.
    """
    if np.all(weights == np.floor(weights)) and weights.max() < 1 << 53:
        return [int(w) for w in weights]
    return [round(w) for w in (weights / weights.max() * float(1 << 40)).tolist()]


def _wanted_rows(counts: np.ndarray, weights: list[int], epoch_rows: int | str | None) -> int:
    if epoch_rows is None:
        return int(counts.sum())
    if not isinstance(epoch_rows, str):
        return int(epoch_rows)
    total = sum(weights)
    pairs = [(int(n), w) for n, w in zip(counts, weights, strict=True) if w > 0]
    if epoch_rows == "over":
        return max(-(-n * total // w) for n, w in pairs)
    return min(n * total // w for n, w in pairs)


def _largest_remainder(rows: int, weights: list[int]) -> np.ndarray:
    """Share out `rows` in proportion to integer weights; what is left over goes to the largest remainders.

    Among equal remainders the lower class id comes first.
    """
    total = sum(weights)
    parts = [divmod(rows * w, total) for w in weights]
    quotas = [quota for quota, _ in parts]
    left = rows - sum(quotas)
    for c in sorted(range(len(weights)), key=lambda c: -parts[c][1])[:left]:
        quotas[c] += 1
    return np.array(quotas, np.int64)


def _check_quotas(quotas: np.ndarray, weights: np.ndarray, labels: tuple) -> None:
    starved = np.flatnonzero((weights > 0) & (quotas == 0))
    if starved.size:
        c = starved[weights[starved].argmin()]
        raise StarvedClassError(
            explain(
                "epoch_rows",
                got=f"{int(quotas.sum()):,} rows, of which class {labels[c]!r} would get none "
                f"({starved.size} such classes)",
                allowed=f"about {math.ceil(min(weights.sum() / weights[c], 2**63)):,} rows or more with this balance",
                fix="Raise epoch_rows, flatten the balance, or give the class the share 0 in balance.target.",
            )
        )
