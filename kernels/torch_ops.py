"""The torch interpretation: the same bodies on int64 tensors. It runs on every device that torch knows.

A word is an int64 in [0, 2^32). Products of two words wrap at 2^64, which keeps their low 64 bits, and a mask after
a shift undoes the sign: so all of it is exact.

It runs eagerly and under `torch.compile(fullgraph=True)`. All numbers are read from the block's tensors, so another
block is no other program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from . import bijection as _bijection
from . import cpu_rows
from . import locate as at
from . import philox as _philox
from .bijection import LARGE_ROUNDS, SMALL_ROUNDS, SMALL_ROWS, TINY_ROWS
from .locate import Block
from .philox import SLOT_TWEAK, STRATUM_TWEAK


def _identity(value: Any) -> Any:
    return value


def _word(value: Any) -> Any:
    return value & 0xFFFFFFFF


def _where(condition: Any, x: Any, y: Any) -> Any:
    return torch.where(condition, x, y) if isinstance(condition, torch.Tensor) else (x if condition else y)


_PART_ROUNDS = 4  # rounds that a captured loop does at a time: both numbers of rounds are multiples

_jit: Callable = _identity
mulhi, philox = _philox.make(_jit, _word, _identity)
_body = _bijection.make(_jit, _word, _identity, _where, mulhi)
_find = at.make(_jit, _word, _identity, _where, mulhi)


def _permute(
    x: torch.Tensor,
    sizes: torch.Tensor,
    which: torch.Tensor,
    keys: torch.Tensor,
    t0: torch.Tensor,
    t1: torch.Tensor,
    may_be_tiny: bool = True,
) -> torch.Tensor:
    """The bijection of [0, n), element by element.

    Args:
        x: int64, any shape.
        sizes: int64 `[3, k]`: n, and the sides of its grid.
        which: int64, of the shape of `x`. The column of `sizes` that an element belongs to.
        keys: int64 `[24]`.
        t0, t1: int64, of a shape that expands to that of `x`. The tweaks.
        may_be_tiny: Whether some n may be <= 16.
    """
    captured = torch.compiler.is_compiling()
    y = (_network_captured if captured else _network)(x, sizes, which, keys, t0, t1)
    if may_be_tiny:
        y = (_unranked_captured if captured else _unranked)(y, x, sizes, which, t0, t1)
    return y


# What follows comes in pairs. Eagerly, a regime of which there is no element is left out, and the few elements that
# walk on are picked out: both wait for the device. A captured graph has one shape, so there all elements take part.


def _network(
    x: torch.Tensor, sizes: torch.Tensor, which: torch.Tensor, keys: torch.Tensor, t0: torch.Tensor, t1: torch.Tensor
) -> torch.Tensor:
    """The network, again and again for what leaves [0, n). Where n <= 16, the value means nothing."""
    n, a, r = sizes[:, which]
    y = _body.rounds(x, a, r, keys, t0, t1, 0, LARGE_ROUNDS)
    small = n < SMALL_ROWS
    if small.any():
        y = torch.where(small, _body.rounds(y, a, r, keys, t0, t1, LARGE_ROUNDS, SMALL_ROUNDS), y)
    some = ((y >= n) & (n > TINY_ROWS)).nonzero(as_tuple=True)
    if len(some[0]):
        y[some] = _network(y[some], sizes, which[some], keys, t0.expand_as(y)[some], t1.expand_as(y)[some])
    return y


def _network_captured(
    x: torch.Tensor, sizes: torch.Tensor, which: torch.Tensor, keys: torch.Tensor, t0: torch.Tensor, t1: torch.Tensor
) -> torch.Tensor:
    """A loop in the graph, over parts of the network and over its repetitions.

    A loop of 4 rounds compiles in 5 s, one of 8 in 12; 2^20 values take 28 ms for 4 rounds and 32 for 8, most of them
    to read and write memory (Zen 3, 2 cores). The tensors that the loop reads must not share memory.
    """
    parts = keys.view(-1, 2 * _PART_ROUNDS)
    large_parts, small_parts = LARGE_ROUNDS // _PART_ROUNDS, SMALL_ROUNDS // _PART_ROUNDS
    n_parts = torch.where((sizes[0][which] < SMALL_ROWS).any(), small_parts, large_parts)

    def part(y: torch.Tensor, walks: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
        n, a, r = sizes[0][which], sizes[1][which], sizes[2][which]  # unpacked, they would be views from outside
        takes = walks & ((i < large_parts) | (n < SMALL_ROWS))
        y = torch.where(takes, _body.rounds(y, a, r, parts[i][0], t0, t1, 0, _PART_ROUNDS), y)
        i = torch.where(i + 1 < n_parts, i + 1, 0)
        return y, walks & ((i > 0) | (y >= n)), i

    first = torch.zeros(1, dtype=torch.int64, device=x.device)
    return torch.while_loop(lambda _y, walks, _i: walks.any(), part, (x.clone(), sizes[0][which] > TINY_ROWS, first))[0]


def _unranked(
    y: torch.Tensor, x: torch.Tensor, sizes: torch.Tensor, which: torch.Tensor, t0: torch.Tensor, t1: torch.Tensor
) -> torch.Tensor:
    """`y`, and the exact unranking where n <= 16."""
    n = sizes[0][which]
    some = (n <= TINY_ROWS).nonzero(as_tuple=True)
    if len(some[0]):
        y[some] = _body.unrank(x[some], n[some], t0.expand_as(y)[some], t1.expand_as(y)[some])
    return y


def _unranked_captured(
    y: torch.Tensor, x: torch.Tensor, sizes: torch.Tensor, which: torch.Tensor, t0: torch.Tensor, t1: torch.Tensor
) -> torch.Tensor:
    """A branch in the graph: unranking costs as much as 8 rounds."""

    def unrank(y: torch.Tensor) -> torch.Tensor:
        n = sizes[0][which]
        tiny = n <= TINY_ROWS
        return torch.where(tiny, _body.unrank(torch.where(tiny, x, 0), torch.where(tiny, n, 1), t0, t1), y)

    return torch.cond((sizes[0][which] <= TINY_ROWS).any(), unrank, lambda y: y.clone(), (y,))


def order_block(out: torch.Tensor, block: Block) -> None:
    """As `cpu.order_block`; one position an element, as the CUDA kernel."""
    height, width = out.shape
    classes, numbers, keys = block.classes, block.numbers, block.keys.to(torch.int64)
    n_batches, seed = numbers[at.BATCHES], (numbers[at.SEED_LOW], numbers[at.SEED_HIGH])
    j = block.strata.index_select(0, numbers[at.COLUMN] + torch.arange(width, device=out.device)).to(torch.int64)
    b = numbers[at.FIRST] + torch.arange(height, device=out.device)
    cumulative = block.draws[at.CUMULATIVE].contiguous()
    ticket = j * n_batches + b[:, None]
    # A mixed stratum holds a class's first ticket, so at most n_classes - 1 are mixed: only so many are shuffled.
    n_mixed = min(width, len(cumulative) - 1)
    if n_mixed:
        low = torch.searchsorted(cumulative, j * n_batches, right=True)
        high = torch.searchsorted(cumulative, (j + 1) * n_batches - 1, right=True)
        mixed, columns = torch.topk((low < high).to(torch.int32), n_mixed)
        j = j[columns]
        t0, t1, _, _ = philox(j, numbers[at.NUMBER], numbers[at.EPOCH], STRATUM_TWEAK, *seed)
        x = b[:, None].expand(height, n_mixed)
        grid = numbers[[at.BATCHES, at.BATCH_GRID, at.BATCH_SHIFT]][:, None]
        shuffled = _permute(x, grid, torch.zeros_like(x), keys[1].clone(), t0, t1, may_be_tiny=height <= TINY_ROWS)
        ticket[:, columns] = j * n_batches + torch.where(mixed > 0, shuffled, x)
    c = torch.searchsorted(cumulative, ticket, right=True) - 1
    drawn = block.draws[at.OFFSET][c] + ticket - cumulative[c]
    turn, offset = _find.divide(drawn, classes[at.ROWS][c], classes[at.MAGIC][c])
    turn = turn + block.draws[at.PASS][c]
    t0, t1, _, _ = philox(classes[at.CLASS_ID][c], _word(turn), turn >> 32, SLOT_TWEAK, *seed)
    sizes = classes[[at.ROWS, at.GRID, at.SHIFT]]
    out.copy_(classes[at.START][c] + _permute(offset, sizes, c, keys[0].clone(), t0, t1))


def gather(out: torch.Tensor, records: torch.Tensor, places: torch.Tensor) -> None:
    """`out[k] = records[places[k]]`: uint8 `[n, record_bytes]`, a multiple of 16 bytes a record."""
    target, source = out.view(torch.int64), records.view(torch.int64)
    if torch.compiler.is_compiling():
        target.copy_(source.index_select(0, places))  # fused; `out=` cannot be captured
    else:
        torch.index_select(source, 0, places, out=target)


def pack(records: torch.Tensor, places: np.ndarray, columns: Sequence[np.ndarray], offsets: Sequence[int]) -> None:
    """As `cpu_rows.pack`, into records on any device: they are put together on the host."""
    wanted = np.flatnonzero(places >= 0)
    staged = torch.empty((len(places), records.shape[1]), dtype=torch.uint8)
    cpu_rows.pack(staged, np.arange(len(places)), columns, offsets)
    words = staged.view(torch.int64)[torch.from_numpy(wanted)].to(records.device)
    records.view(torch.int64).index_copy_(0, torch.from_numpy(places[wanted]).to(records.device), words)
    if records.device.type != "cpu":  # on return everything is written, whatever stream reads it next
        torch.accelerator.synchronize(records.device)


def take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`values[places]` as int64; values are unsigned 32- or 64-bit integers below 2^63."""
    signed = values.view(torch.int32 if values.element_size() == 4 else torch.int64)
    taken = signed.index_select(0, places).to(torch.int64)
    return taken & 0xFFFFFFFF if values.element_size() == 4 else taken
