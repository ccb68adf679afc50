"""Which interpretation runs on which device."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import torch

from . import cpu, torch_ops
from .bijection import grid
from .cpu import round_keys

__all__ = ["grid", "kernels_for", "round_keys"]


def kernels_for(device: torch.device) -> ModuleType:
    """The module whose `order_block`, `gather` and `take` run on a device.

    CPU: numba. CUDA: numba-cuda where it is installed (extras `cuda12`, `cuda13`), else torch. Anything else: torch.
    """
    if device.type == "cpu":
        return cpu
    if device.type == "cuda" and find_spec("numba_cuda") is not None:
        from . import cuda  # imported here: it initialises numba's CUDA target

        return cuda
    return torch_ops
