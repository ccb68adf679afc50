"""Random words of draws, by numba on the CPU and by torch on other devices: `docs/order.md`, section 1."""

from __future__ import annotations

import numba
import torch
from numba import uint32 as u32
from numba import uint64 as u64

from . import torch_ops
from .cpu import philox
from .philox import DRAW_SEED, DRAW_WORDS
from .threads import shared_out

_kernel = numba.njit(nogil=True, cache=True)
_WORD = 0xFFFFFFFF
_LEAST = 4096  # words for a thread of its own: about 100 us


def seeds(
    first: int, batch_rows: int, n_batches: int, rows: int, epoch: int, seed: int, device: torch.device
) -> torch.Tensor:
    """The seeds of the draws at positions `first + batch * batch_rows + k`, int64 `[n_batches, rows]`."""
    if device.type != "cpu":
        return seeds_of_tensors(first, batch_rows, n_batches, rows, epoch, seed, device)
    out = torch.empty((n_batches, rows), dtype=torch.int64)
    target, low, high = out.numpy().view("u8"), u32(seed & _WORD), u32(seed >> 32)

    def fill(start: int, stop: int) -> None:
        _fill_seeds(target, first, batch_rows, epoch, low, high, start, stop)

    shared_out(fill, n_batches, -(-_LEAST // max(1, rows)))
    return out


def seeds_of_tensors(
    first: int, batch_rows: int, n_batches: int, rows: int, epoch: int, seed: int, device: torch.device
) -> torch.Tensor:
    """The same, by torch operations."""
    batches = torch.arange(n_batches, device=device) * batch_rows + first
    positions = batches.unsqueeze(1) + torch.arange(rows, device=device)
    low, high, *_ = torch_ops.philox(positions & _WORD, positions >> 32, epoch, DRAW_SEED, seed & _WORD, seed >> 32)
    return low | high << 32


def words(of_draws: torch.Tensor, call: int, n: int) -> torch.Tensor:
    """The first n words of a call of each draw, int64 `[B, n]`, by their seeds, int64 `[B]`."""
    if of_draws.device.type != "cpu":
        return words_of_tensors(of_draws, call, n)
    out = torch.empty((len(of_draws), -(-n // 4) * 4), dtype=torch.int64)
    target, keys = out.numpy(), of_draws.contiguous().numpy().view("u8")
    shared_out(lambda start, stop: _fill_words(target, keys, call, start, stop), len(keys), -(-_LEAST // max(1, n)))
    return out[:, :n]


def words_of_tensors(of_draws: torch.Tensor, call: int, n: int) -> torch.Tensor:
    """The same, by torch operations."""
    low, high = (of_draws & _WORD).unsqueeze(1), (of_draws >> 32 & _WORD).unsqueeze(1)
    counters = torch.arange(-(-n // 4), device=of_draws.device).expand(len(of_draws), -1)
    found = torch_ops.philox(counters, call, 0, DRAW_WORDS, low, high)
    return torch.stack(found, dim=2).flatten(1)[:, :n]


@_kernel
def _fill_seeds(out, first, batch_rows, epoch, low, high, start, stop):
    for batch in range(start, stop):
        for k in range(out.shape[1]):
            position = u64(first + batch * batch_rows + k)
            found = philox(u32(position), u32(position >> u64(32)), u32(epoch), u32(DRAW_SEED), low, high)
            out[batch, k] = u64(found[0]) | u64(found[1]) << u64(32)


@_kernel
def _fill_words(out, keys, call, start, stop):
    for row in range(start, stop):
        low, high = u32(keys[row]), u32(keys[row] >> u64(32))
        for i in range(out.shape[1] >> 2):
            found = philox(u32(i), u32(call), u32(0), u32(DRAW_WORDS), low, high)
            for w in range(4):
                out[row, i * 4 + w] = found[w]
