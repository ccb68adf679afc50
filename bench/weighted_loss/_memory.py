"""Peak memory of a feed, in a process of its own: in one that has run before, freed memory hides what is taken.

Linux only. The kernel keeps the peak; a thread that looks now and then misses what is taken while another one holds
the interpreter.
"""

from __future__ import annotations

import gc
import re
from multiprocessing import get_context
from pathlib import Path

import torch

from . import _feeds


def status_bytes(key: str) -> int:
    """VmRSS, what this process holds now, or VmHWM, the most that it has held."""
    (kib,) = re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kib)


def grew_by(feed: str, f: float, n_rows: int, batch_rows: int) -> float:
    """MB by which this process grows at most while a feed makes an epoch of row numbers, these included."""
    torch.set_num_threads(1)
    labels = _feeds.two_class_labels(n_rows, f)
    _feeds.FEEDS[feed](labels[-2 * round(f * n_rows) :], batch_rows, 1, 0)  # what is compiled is not the feed's
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = status_bytes("VmRSS")
    _feeds.FEEDS[feed](labels, batch_rows, n_rows // batch_rows, 0)
    return (status_bytes("VmHWM") - before) / 1e6


def of_feed(feed: str, f: float, n_rows: int, batch_rows: int, processes: int) -> float:
    """The largest of some fresh processes: the allocator does not always give back as soon."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return max(pool.apply(grew_by, (feed, f, n_rows, batch_rows)) for _ in range(processes))
