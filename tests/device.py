"""A GPU that is not there: it takes the place of the driver, and of nothing above it.

torch describes its tensors, numba takes and types them, and makes streams and launches, as on a GPU. The tensors are
the host's, and what would go to the driver goes to the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fastbalance.kernels import cuda as kernels
from numba import cuda
from numba.cuda import api, dispatcher
from numba.cuda.cudadrv import devices, driver


class Launch(NamedTuple):
    """What reached the device."""

    kernel: Any
    blocks: int
    threads: int  # of a block
    stream: int
    device: int
    types: tuple[Any, ...]  # numba's, of the arguments: what the kernel is compiled for
    arguments: list[np.ndarray | int]


class GpuTensor(torch.Tensor):
    """A tensor of the host that says that it lies on a GPU."""

    is_cuda = True


class Streams:
    """torch's current device, and its current stream on each of two devices: 7 and 8 to begin with."""

    def __init__(self) -> None:
        self.current, self.device = {0: 7, 1: 8}, 0
        self.under_way = self.most_under_way = 0  # events that nobody has waited for

    def stream(self, device: torch.device | None = None) -> SimpleNamespace:
        """Stands in for `torch.cuda.current_stream`."""
        index = self._index(device)
        place = SimpleNamespace(index=index)
        return SimpleNamespace(cuda_stream=self.current[index], device=place, record_event=lambda event: event)

    def event(self, blocking: bool) -> SimpleNamespace:
        """Stands in for `torch.cuda.Event`."""
        assert blocking, "a thread that waits lets others work"
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        return SimpleNamespace(synchronize=self._wait)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Stands in for `torch.cuda.device`."""
        before, self.device = self.device, self._index(device)
        yield
        self.device = before

    def _index(self, device: torch.device | None) -> int:
        return self.device if device is None or device.index is None else device.index

    def _wait(self) -> None:
        self.under_way -= 1


def replace_torch(patch: pytest.MonkeyPatch) -> Streams:
    """Take the place of torch's CUDA runtime, also where numba is a simulator."""
    streams = Streams()
    patch.setattr(torch.cuda, "current_stream", streams.stream)
    patch.setattr(torch.cuda, "device", streams.on)
    patch.setattr(torch.cuda, "Event", streams.event)
    patch.setattr(kernels, "_pinned", partial(torch.empty, dtype=torch.uint8))
    return streams


def replace_driver(patch: pytest.MonkeyPatch, run: Callable[[Launch], None]) -> Streams:
    """Take the place of the driver: launches go to `run`."""
    streams = replace_torch(patch)
    context = object.__new__(driver.Context)
    entered: list[int] = []

    class Gpus:
        @contextmanager
        def __getitem__(self, index: int) -> Iterator[None]:
            entered.append(index)
            yield
            entered.pop()

    def call(kernel: Any, arguments: tuple[Any, ...], configuration: Any) -> None:
        assert configuration.griddim[1:] == configuration.blockdim[1:] == (1, 1)
        assert entered == [streams.device], "numba works on torch's device"
        types = tuple(dispatcher.typeof(a, dispatcher.Purpose.argument) for a in arguments)
        stream, blocks, threads = int(configuration.stream.handle), configuration.griddim[0], configuration.blockdim[0]
        run(Launch(kernel, blocks, threads, stream, entered[-1], types, [_of_host(a) for a in arguments]))

    as_cuda_array = cuda.as_cuda_array
    patch.setattr(cuda, "as_cuda_array", lambda t, sync: as_cuda_array(t.as_subclass(GpuTensor), sync=sync))
    patch.setattr(cuda, "gpus", Gpus())
    patch.setattr(devices._runtime, "ensure_context", nullcontext)
    patch.setattr(api, "current_context", lambda: context)
    patch.setattr(dispatcher.CUDADispatcher, "call", call)
    return streams


def _of_host(argument: Any) -> np.ndarray | int:
    """The memory of an argument: of the tensor that numba was given."""
    if isinstance(argument, int):
        return argument
    assert argument.device_ctypes_pointer.value == argument.gpu_data.owner.data_ptr()
    return argument.gpu_data.owner.as_subclass(torch.Tensor).numpy()
