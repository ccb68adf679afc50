"""The torch interpretation: the same bodies on int64 tensors. It runs on every device that torch knows.

A word is an int64 in [0, 2^32). Products of two words wrap at 2^64, which keeps their low 64 bits, and a mask after
a shift undoes the sign: so all of it is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import bijection as _bijection
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


def _is_any(condition: Any) -> bool:
    return bool(torch.as_tensor(condition).any())


_jit: Callable = _identity
mulhi, philox = _philox.make(_jit, _word, _identity)
_body = _bijection.make(_jit, _word, _identity, _where, _is_any, mulhi)
_find = at.make(_jit, _word, _identity, _where, mulhi)


def _permute(
    x: torch.Tensor, n: torch.Tensor, a: torch.Tensor, r: torch.Tensor, keys: torch.Tensor, t0: Any, t1: Any
) -> torch.Tensor:
    """The bijection of [0, n), element by element; `n` may differ between elements.

    A size takes part in every regime that is present, with a harmless n where it does not belong.
    """
    out = torch.zeros_like(x)
    large, tiny = n >= SMALL_ROWS, n <= TINY_ROWS
    for regime, n_rounds in ((large, LARGE_ROUNDS), (~(large | tiny), SMALL_ROUNDS)):
        if _is_any(regime):
            # 1 << 62: nothing walks; the values of the other regimes are thrown away
            y = _body.feistel(x, torch.where(regime, n, 1 << 62), a, r, keys, t0, t1, n_rounds)
            out = torch.where(regime, y, out)
    if _is_any(tiny):
        y = _body.unrank(torch.where(tiny, x, 0), torch.where(tiny, n, 1), t0, t1)
        out = torch.where(tiny, y, out)
    return out


def order_block(out: torch.Tensor, block: Block) -> None:
    """As `cpu.order_block`; one position an element, as the CUDA kernel."""
    height, width = out.shape
    numbers = block.numbers
    n_batches, seed = numbers[at.BATCHES], (numbers[at.SEED_LOW], numbers[at.SEED_HIGH])
    j = block.strata.index_select(0, numbers[at.COLUMN] + torch.arange(width, device=out.device)).to(torch.int64)
    cumulative = block.draws[at.CUMULATIVE].contiguous()
    low = torch.searchsorted(cumulative, j * n_batches, right=True) - 1
    high = torch.searchsorted(cumulative, (j + 1) * n_batches - 1, right=True) - 1
    b = (numbers[at.FIRST] + torch.arange(height, device=out.device))[:, None].expand(height, width).contiguous()
    inside = b
    if _is_any(low < high):
        t0, t1, _, _ = philox(j, numbers[at.NUMBER], numbers[at.EPOCH], STRATUM_TWEAK, *seed)
        n, a, r = (number.expand_as(b) for number in (n_batches, numbers[at.BATCH_GRID], numbers[at.BATCH_SHIFT]))
        shuffled = _permute(b, n, a, r, block.keys[1].to(torch.int64), t0, t1)
        inside = torch.where(low < high, shuffled, b)
    ticket = j * n_batches + inside
    c = torch.searchsorted(cumulative, ticket, right=True) - 1
    n, start, a, r, reciprocal, class_id = block.classes[:, c]
    k = ticket - cumulative[c]
    turn, offset = _find.divide(block.draws[at.OFFSET][c] + k, n, reciprocal)
    turn = turn + block.draws[at.PASS][c]
    t0, t1, _, _ = philox(class_id, _word(turn), turn >> 32, SLOT_TWEAK, *seed)
    slot = _permute(offset, n, a, r, block.keys[0].to(torch.int64), t0, t1)
    out.copy_(start + slot)


def gather(out: torch.Tensor, records: torch.Tensor, places: torch.Tensor) -> None:
    """`out[k] = records[places[k]]`: uint8 `[n, record_bytes]`, a multiple of 16 bytes a record."""
    torch.index_select(records.view(torch.int64), 0, places, out=out.view(torch.int64))


def take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`values[places]` as int64; values are unsigned 32- or 64-bit integers below 2^63."""
    signed = values.view(torch.int32 if values.element_size() == 4 else torch.int64)
    taken = signed.index_select(0, places).to(torch.int64)
    return taken & 0xFFFFFFFF if values.element_size() == 4 else taken
