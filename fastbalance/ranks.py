"""Which process of how many this one is, and what it learns from the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from .checks import whole
from .errors import ArgumentError, FastbalanceError, explain

T = TypeVar("T")
MAX_RANKS = 1 << 30


def given_ranks(rank: int | None, world_size: int | None, mesh: Any) -> tuple[int, int] | None:
    """Rank and world size as the arguments say; None: they say nothing, and `found_ranks` will be asked.

    Args:
        mesh: A `torch.distributed.DeviceMesh` of the data-parallel dimensions alone: processes that differ in another
            dimension have the same coordinate in it, and so the same rank.

    Raises:
        ArgumentError: Only one of rank and world_size, or they do not fit, or a mesh beside them; no mesh, or one that
            this process is not part of.
    """
    if mesh is not None:
        if rank is not None or world_size is not None:
            got = f"a mesh beside rank {rank}, world_size {world_size}"
            raise ArgumentError(explain("mesh", got=got, allowed="one or the other"))
        return _coordinate(mesh)
    if (rank is None) != (world_size is None):
        allowed = "both, or neither to find them"
        raise ArgumentError(explain("rank, world_size", got=f"{rank}, {world_size}", allowed=allowed))
    if rank is None or world_size is None:
        return None
    world_size = whole("world_size", world_size, 1, MAX_RANKS)
    return whole("rank", rank, 0, world_size, note=f", one of world_size {world_size}"), world_size


def found_ranks() -> tuple[int, int]:
    """Rank and world size of torch.distributed's process group; without one, of `torchrun`'s environment; else 0, 1.

    Raises:
        ArgumentError: RANK and WORLD_SIZE of the environment are no rank and world size.
    """
    if in_process_group():
        return dist.get_rank(), dist.get_world_size()
    names = ("RANK", "WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return 0, 1
    rank, world_size = (os.environ[name] for name in names)
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size) <= MAX_RANKS):
        got, fix = f"RANK={rank}, WORLD_SIZE={world_size}", "Unset them, or give rank and world_size."
        raise ArgumentError(explain("environment", got=got, allowed="a rank in [0, WORLD_SIZE)", fix=fix))
    return int(rank), int(world_size)


def in_process_group() -> bool:
    """Whether torch.distributed has a process group."""
    return dist.is_available() and dist.is_initialized()


def gathered(find: Callable[[], T]) -> list[T]:
    """What every rank of the process group finds, by rank. A collective: every rank must call it.

    Raises:
        FastbalanceError: Of the first rank that raised one; on all of them, so that none waits for another.
    """
    mine: T | FastbalanceError
    try:
        mine = find()
    except FastbalanceError as error:
        mine = error
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    for each in found:
        if isinstance(each, FastbalanceError):
            raise each
    return found


def _coordinate(mesh: Any) -> tuple[int, int]:
    if not hasattr(mesh, "get_coordinate"):
        allowed = 'a DeviceMesh of the data-parallel dimensions, as device_mesh["dp"], or None'
        raise ArgumentError(explain("mesh", got=type(mesh).__name__, allowed=allowed))
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        got = f"{mesh}, which this process is not part of"
        raise ArgumentError(explain("mesh", got=got, allowed="a mesh of this process"))
    rank = 0
    for at, size in zip(coordinate, mesh.shape, strict=True):  # the last dimension is the fastest, as in mesh.mesh
        rank = rank * size + at
    return rank, mesh.size()
