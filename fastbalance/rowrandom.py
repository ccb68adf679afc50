"""Random numbers of each drawn row: the same on any number of ranks and after any resume, on any device."""

from __future__ import annotations

import math

import torch

from .checks import whole
from .errors import ArgumentError, explain
from .kernels import draws
from .split import BlockRange


class RowRandom:
    """Random numbers for a batch, of which each row's depend on its seed alone.

    Every call gives further numbers; the same calls with the same seeds give the same ones, whatever rows are beside.

    Args:
        seeds: int64 `[B]`: `batch["seed"]` of a loader with `extras=("seed",)`.

    Raises:
        ArgumentError: Seeds of another type or shape.

    >>> random = RowRandom(torch.tensor([3, 4]))
    >>> random.uniform(2).shape, random.integers(10).shape
    (torch.Size([2, 2]), torch.Size([2]))
    """

    def __init__(self, seeds: torch.Tensor) -> None:
        if not isinstance(seeds, torch.Tensor) or seeds.dtype != torch.int64 or seeds.ndim != 1:
            got = f"{seeds.dtype} {list(seeds.shape)}" if isinstance(seeds, torch.Tensor) else type(seeds).__name__
            fix = 'Give batch["seed"] of a loader with extras=("seed",).'
            raise ArgumentError(explain("seeds", got=got, allowed="int64 [B]", fix=fix))
        self._seeds = seeds
        self._calls = 0

    def uniform(self, *shape: int) -> torch.Tensor:
        """Numbers of [0, 1), multiples of 2^-24, float32 `[B, *shape]`."""
        return (self._words(shape) >> 8).to(torch.float32) * 2.0**-24

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers, float32 `[B, *shape]`.

        Source: Box & Muller, "A note on the generation of random normal deviates" (1958).
        """
        words = self._words((2, *shape)).to(torch.float64)
        u, v = (words[:, 0] + 1) * 2.0**-32, words[:, 1] * 2.0**-32
        return (torch.sqrt(-2 * torch.log(u)) * torch.cos(2 * math.pi * v)).to(torch.float32)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Integers of [0, high), int64 `[B, *shape]`; each as likely as any other within high / 2^32 of itself.

        Raises:
            ArgumentError: `high` outside [1, 2^31).
        """
        return self._words(shape) * whole("high", high, 1, 1 << 31) >> 32

    def _words(self, shape: tuple[int, ...]) -> torch.Tensor:
        """32-bit words, int64 `[B, *shape]`."""
        n = math.prod(whole("shape", size, 0, 1 << 31) for size in shape)
        words = draws.words(self._seeds, self._calls, n)
        self._calls += 1
        return words.reshape(len(self._seeds), *shape)


def draw_seeds(
    seed: int, epoch: int, block: BlockRange, batch: int, n_batches: int, places: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """The seeds of what batches of one block draw, int64 `[n_batches, stop - start]`: `docs/order.md`, section 1.

    Args:
        seed: Of the order: the run's, or a lane's.
        places: The half-open range `start, stop` of a batch that is asked for.
    """
    start, stop = places
    first = block.first_position + (batch - block.first_batch) * block.batch_rows + start
    return draws.seeds(first, block.batch_rows, n_batches, stop - start, epoch, seed, device)
