"""Which interpretation runs on which device."""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from . import cpu, torch_ops
from .bijection import grid
from .cpu import round_keys

__all__ = ["grid", "kernels_for", "round_keys"]


def kernels_for(device: torch.device) -> ModuleType:
    """The module whose `order_block`, `gather`, `take` and `pack` run on a device.

    CPU: numba. CUDA: numba-cuda where it is installed (extras `cuda12`, `cuda13`). Else, and on ROCm and XPU: Triton,
    which comes with torch, where it can build what it needs. Anything else: torch.
    """
    return _kernels_for(device.type)


@lru_cache  # asked at every call of an operator, and looking for a package takes 50 us
def _kernels_for(device_type: str) -> ModuleType:
    if device_type == "cpu":
        return cpu
    if device_type == "cuda" and torch.version.hip is None and find_spec("numba_cuda") is not None:
        from . import cuda  # imported here: it initialises numba's CUDA target

        return cuda
    if device_type in ("cuda", "xpu") and _has_triton():
        from . import triton_ops  # imported here: it takes 0.3 s

        return triton_ops
    return torch_ops


def _has_triton() -> bool:
    """Whether Triton is installed, with the C compiler and the headers of Python from which it builds its launcher."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_config_var("INCLUDEPY"), "Python.h")
    return find_spec("triton") is not None and compiler is not None and headers.exists()
