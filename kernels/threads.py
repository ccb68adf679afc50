"""Sharing a kernel call over threads. Kernels let go of the GIL; here is who runs the parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import torch


@lru_cache(maxsize=4)
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    # Keyed by the process: after a fork the parent's threads do not exist in the child.
    return ThreadPoolExecutor(n_threads, thread_name_prefix="fastbalance")


def shared_out(function: Callable[[int, int], None], size: int, least: int) -> None:
    """Call `function(start, stop)` for ranges that make up [0, size), at once on as many threads as torch uses.

    Args:
        least: No range is shorter; work that is smaller runs in the calling thread alone (a hand-over costs ~20 us).
    """
    parts = min(torch.get_num_threads(), size // max(1, least))
    if parts <= 1:
        function(0, size)
        return
    bounds = [size * part // parts for part in range(parts + 1)]
    pool = _pool(parts - 1, os.getpid())
    others = [pool.submit(function, bounds[p], bounds[p + 1]) for p in range(1, parts)]
    function(bounds[0], bounds[1])
    for other in others:
        other.result()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: products of small batches take longer on two, far longer when a
    core is busy.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
