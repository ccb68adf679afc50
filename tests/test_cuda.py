"""The CUDA kernels without a GPU: what torch and numba hand to the device, the PTX that is made, and the simulator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fastbalance.kernels import cuda as kernels

import fastbalance as fb

from . import simulator
from .device import Launch, replace_driver
from .sass import ARCHITECTURES, VARIANTS, ptx_of

ROOT = Path(__file__).parents[1]
PACKS = [name for name in VARIANTS if name.startswith("pack")]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ptx_of_the_order_has_32_bit_multiplies_and_no_local_memory(architecture):
    ptx = ptx_of(*VARIANTS["order_kernel"], architecture)
    assert f".target {architecture}" in ptx
    assert ".local" not in ptx, "spills or arrays in local memory"
    assert len(re.findall(r"\bmul(?:\.lo|\.wide)\.[us]32|\bmad\.lo\.s32", ptx)) > 30
    assert not re.findall(r"\bmul\.hi\.[us]64|\b(?:div|rem)\.[us]64", ptx), "64-bit multiplies or divisions"
    assert not re.findall(r"\bcvt\.[a-z.]*f(?:32|64)", ptx), "an integer went through floating point"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ptx_of_the_gather_moves_16_bytes_at_a_time(architecture):
    ptx = ptx_of(*VARIANTS["gather_kernel"], architecture)
    assert re.search(r"\bld(?:\.global)?\.v2\.[ub]64", ptx)
    assert re.search(r"\bst(?:\.global)?\.v2\.[ub]64", ptx)
    assert ".local" not in ptx


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", PACKS)
def test_ptx_of_the_pack_stores_one_word(name, architecture):
    ptx = ptx_of(*VARIANTS[name], architecture)
    bits = 8 * int(name.split()[1])
    stores = re.findall(r"\bst\.\S+", ptx)
    assert len(stores) == 1
    assert re.fullmatch(rf"st(\.global)?\.[bus]{bits}", stores[0])
    assert not re.findall(r"\b(?:div|rem)\.[us]64", ptx)
    assert ".local" not in ptx


@cache
def simulated() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulator"],
        capture_output=True, text=True, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("check", [check.__name__ for check in simulator.CHECKS])
def test_simulator(check):
    assert simulated()[check] == "ok", simulated()[check]


# What reaches the device, from the calls on. The kernels themselves are executed in test_ptx.py.


@pytest.fixture
def launches(monkeypatch):
    """What is launched on two GPUs that are not there, and their streams."""
    found: list[Launch] = []
    return found, replace_driver(monkeypatch, found.append)


def gather(n: int = 300) -> None:
    records = torch.zeros((n, 48), dtype=torch.uint8)
    kernels.gather(records, records, torch.arange(n))


def test_ptx_that_is_read_here_is_of_the_types_that_are_launched(launches):
    order = fb.EpochOrder(None, fb.make_plan([500, 3], "uniform", 800, 4), 0)
    order._kernels = kernels
    order.places(0, 2, 0, 4)
    gather()
    for size in (1, 2, 4, 8):
        columns = [np.zeros(5, f"u{size}"), np.zeros((5, 3), f"u{size}")]
        kernels.pack(torch.zeros((9, 48), dtype=torch.uint8), np.arange(5), columns, [0, size])
    assert [(launch.kernel, launch.types) for launch in launches[0]] == list(VARIANTS.values())


def test_ptx_of_other_types_is_launched_for_places_with_gaps(launches):
    records = torch.zeros((5, 16), dtype=torch.uint8)
    kernels.gather(records, records, torch.arange(10)[::2])
    assert str(launches[0][0].types[2]) == "array(int64, 1d, A)"


@pytest.mark.parametrize(("n", "blocks"), [(0, 0), (1, 1), (85, 1), (86, 2), (256, 3), (257, 4)])
def test_simulator_of_the_driver_gets_as_many_blocks_as_there_is_work(launches, n, blocks):
    gather(n)  # three threads a record
    assert sum(launch.blocks for launch in launches[0]) == blocks
    assert all(launch.threads == kernels.THREADS for launch in launches[0])


def test_simulator_of_the_driver_gets_torchs_current_stream_and_device(launches):
    found, streams = launches
    gather()
    streams.current[0] = 99
    gather()
    kernels._launch(kernels.gather_kernel, 1, torch.device("cuda", 1), torch.arange(8))
    assert [(launch.device, launch.stream) for launch in found] == [(0, 7), (0, 99), (1, 8)]


@pytest.mark.filterwarnings("error")
def test_simulator_of_the_driver_warns_of_no_small_grid(launches):
    gather(1)
    assert len(launches[0]) == 1
