"""Peak memory: of a piece of code, and of a feed in a process of its own, where no freed memory hides what is taken.

Linux only. The kernel keeps the peak; a thread that looks now and then misses what is taken while another one holds
the interpreter.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from . import _feeds

T = TypeVar("T")


def status_bytes(key: str) -> int:
    """VmRSS, what this process holds now, or VmHWM, the most that it has held."""
    (kib,) = re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kib)


class Peak:
    """Most that this process grows by while it runs, in MB."""

    def __enter__(self) -> Peak:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        self._before = status_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.mb = (status_bytes("VmHWM") - self._before) / 1e6


def grew_by(feed: str, f: float, n_rows: int, batch_rows: int) -> float:
    """MB by which this process grows at most while a feed makes an epoch of row numbers, these included."""
    torch.set_num_threads(1)
    labels = _feeds.two_class_labels(n_rows, f)
    _feeds.FEEDS[feed](labels[-2 * round(f * n_rows) :], batch_rows, 1, 0)  # what is compiled is not the feed's
    with Peak() as peak:
        _feeds.FEEDS[feed](labels, batch_rows, n_rows // batch_rows, 0)
    return peak.mb


def of_feed(feed: str, f: float, n_rows: int, batch_rows: int, processes: int) -> float:
    """The largest of some fresh processes: the allocator does not always give back as soon."""
    return max(in_fresh_process(grew_by, feed, f, n_rows, batch_rows) for _ in range(processes))


def in_fresh_process(work: Callable[..., T], *args: Any) -> T:
    """What a function of a module returns in a process that has done nothing else."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)
