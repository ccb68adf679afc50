"""Windows go up on a stream of their own, and overwrite nothing that is being gathered. A fake stream notes waits."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import fastbalance as fb
from fastbalance.arena import Arena


class Traffic:
    """What was gathered since the uploads last waited for the consumer's stream, and what is put there."""

    def __init__(self) -> None:
        self.unfinished: set[int] = set()
        self.waits = self.puts = self.overwritten = 0
        self.entered = threading.local()

    def wait_stream(self, stream: object) -> None:
        assert stream == "the consumer's"
        self.waits += 1
        self.unfinished.clear()

    @contextmanager
    def on(self, stream: object):
        assert stream is self
        self.entered.yes = True
        yield
        self.entered.yes = False


@pytest.fixture
def traffic(monkeypatch) -> Traffic:
    """Every arena gets an upload stream, as on a GPU; its memory is the host's."""
    traffic = Traffic()
    plain = {name: getattr(Arena, name) for name in ("__init__", "gather", "put")}

    def make(arena: Arena, *arguments: Any) -> None:
        plain["__init__"](arena, *arguments)
        arena._uploads = traffic

    def gather(arena: Arena, places: torch.Tensor) -> Any:
        traffic.unfinished.update(places.tolist())  # queued: on a GPU it may run at any time from now on
        return plain["gather"](arena, places)

    def pack(records: torch.Tensor, places: np.ndarray, *rest: Any) -> None:
        assert traffic.entered.yes, "packed on the stream of the uploads"
        traffic.puts += 1
        traffic.overwritten += len(traffic.unfinished & set(places[places >= 0].tolist()))

    def put(arena: Arena, *arguments: Any) -> Any:
        monkeypatch.setattr(arena, "_kernels", _Kernels(arena._kernels, pack))
        return plain["put"](arena, *arguments)

    for name, function in (("__init__", make), ("gather", gather), ("put", put)):
        monkeypatch.setattr(Arena, name, function)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the consumer's")
    monkeypatch.setattr(torch.cuda, "stream", traffic.on)
    return traffic


class _Kernels:
    def __init__(self, plain: Any, pack: Any) -> None:
        self.gather, self.order_block, self.take = plain.gather, plain.order_block, plain.take
        self.pack = pack


def streamed_epochs() -> fb.BalancedLoader:
    data = {"x": np.arange(40_000, dtype=np.float32), "y": (np.arange(40_000) % 20 == 0).astype(np.int8)}
    tables = fb.Dataset.open(_in_groups(data), "y")
    loader = fb.BalancedLoader(tables, batch_size=32, memory="150KiB", device="cpu")
    assert not loader.plan.kept.all()
    for _ in range(2):
        for _ in loader:
            pass
    loader.close()
    return loader


def _in_groups(data: dict[str, np.ndarray]):
    import pyarrow as pa

    from fastbalance.shards import MemoryShard
    from fastbalance.source import _join

    table = pa.table(data)
    return _join([MemoryShard("<table>", table.to_batches(max_chunksize=500), table.schema)])


def test_windows_do_not_overwrite_what_is_being_gathered(traffic):
    streamed_epochs()
    assert traffic.puts > 50
    assert traffic.waits > 4
    assert traffic.overwritten == 0


def test_the_check_sees_an_upload_that_does_not_wait(traffic, monkeypatch):
    monkeypatch.setattr(Arena, "rest", lambda arena: None)
    streamed_epochs()
    assert traffic.overwritten > 0
