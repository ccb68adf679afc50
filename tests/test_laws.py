"""The laws of the order, on awkward sizes, for every interpretation that runs here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastbalance.kernels import cpu, dispatch, torch_ops
from hypothesis import given
from hypothesis import strategies as st

from fastbalance import BalancedLoader, EpochOrder, arena, make_plan, stream
from fastbalance.plan import BalancePlan
from fastbalance.split import block_of, rank_places

from . import oracle
from .test_loader import Batch, arguments


class Interpretation(NamedTuple):
    kernels: ModuleType
    device: str = "cpu"


INTERPRETATIONS = {"cpu": Interpretation(cpu), "torch": Interpretation(torch_ops)}
if torch.cuda.is_available():
    INTERPRETATIONS["cuda"] = Interpretation(dispatch.kernels_for(torch.device("cuda")), "cuda")
    INTERPRETATIONS["torch on cuda"] = Interpretation(torch_ops, "cuda")
    if find_spec("triton") is not None:
        INTERPRETATIONS["triton on cuda"] = Interpretation(import_module("fastbalance.kernels.triton_ops"), "cuda")
# Every law holds for all of them if it holds for one, and all give the same numbers, which the first laws say. Yet what
# runs on a GPU is put to every law.
DEVICES = ["cpu", *(name for name in INTERPRETATIONS if "cuda" in name)]
on_devices = pytest.mark.parametrize("interpretation", DEVICES)


@st.composite
def plans(draw: st.DrawFn, max_classes: int = 12, max_rows: int = 60, max_batch: int = 40) -> BalancePlan:
    """Plans of tiny classes, batches that divide nothing, several blocks, and every tail."""
    counts = draw(st.lists(st.integers(1, max_rows), min_size=1, max_size=max_classes))
    batch = draw(st.integers(1, max_batch))
    balance = draw(st.sampled_from(["uniform", "sqrt", "natural"]))
    tail = draw(st.sampled_from(["keep", "drop", "pad"]))
    block_rows = draw(st.sampled_from([1, 64, 300, 1 << 20]))
    rows = draw(st.one_of(st.none(), st.integers(max(batch, 8 * sum(counts)), 8 * sum(counts) + 500)))
    if rows is None and (sum(counts) < batch or balance != "natural"):
        rows = max(batch, 4 * sum(counts) * max_classes)
    return make_plan(counts, balance, rows, batch, tail=tail, block_rows=block_rows)


seeds = st.integers(0, 2**64 - 1)
epochs = st.one_of(st.integers(0, 5), st.integers(0, 2**20))


def order_of(plan: BalancePlan, seed: int, epoch: int, interpretation: str = "cpu") -> EpochOrder:
    kernels, device = INTERPRETATIONS[interpretation]
    order = EpochOrder(None, plan, seed, epoch, device)
    order._kernels = kernels
    return order


def places_of(plan: BalancePlan, seed: int, epoch: int, interpretation: str = "cpu") -> np.ndarray:
    return order_of(plan, seed, epoch, interpretation).positions(0, plan.epoch_rows).cpu().numpy()


def classes_of(plan: BalancePlan, places: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(plan.class_counts), places, side="right")


@pytest.mark.parametrize("interpretation", INTERPRETATIONS)
@given(plan=plans(max_batch=12, max_rows=25), seed=seeds, epoch=epochs)
def test_pure_every_interpretation_equals_the_oracle(interpretation, plan, seed, epoch):
    wanted = [
        oracle.place_at(
            p, plan.class_counts.tolist(), plan.quotas.tolist(), plan.global_batch_rows, plan.epoch_rows, seed, epoch,
            plan.block_rows,
        )
        for p in range(0, plan.epoch_rows, 1 + plan.epoch_rows // 200)
    ]  # fmt: skip
    got = places_of(plan, seed, epoch, interpretation)[:: 1 + plan.epoch_rows // 200]
    assert got.tolist() == wanted


@pytest.mark.parametrize("n_classes", [1, 2, 3, 17, 400, 5000])
@pytest.mark.parametrize("batch", [1, 2, 31, 1000, 4097])
def test_pure_many_classes(n_classes, batch):
    rng = np.random.default_rng(n_classes * 10_007 + batch)
    counts = rng.integers(1, 18, n_classes)
    counts[0] = 5000
    plan = make_plan(counts, "sqrt", max(batch, 40 * n_classes + 20_000), batch, block_rows=8192)
    fast = places_of(plan, 7, 2)
    for interpretation in INTERPRETATIONS:
        np.testing.assert_array_equal(fast, places_of(plan, 7, 2, interpretation))
    plain = plan.class_counts.tolist(), plan.quotas.tolist(), batch, plan.epoch_rows, 7, 2, plan.block_rows
    for position in rng.integers(0, plan.epoch_rows, 12).tolist():
        assert fast[position] == oracle.place_at(position, *plain)


@pytest.mark.parametrize("n", [2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 7, 2**48])
def test_pure_huge_classes(n):
    plan = make_plan([n, 3, 2**20 + 1], "uniform", 3 << 20, 4096)
    plain = plan.class_counts.tolist(), plan.quotas.tolist(), 4096, plan.epoch_rows, 2**64 - 1, 10**6
    orders = [order_of(plan, 2**64 - 1, 10**6, name) for name in INTERPRETATIONS]
    for batch in (0, 255, 256, plan.n_batches - 1):
        rows = [order.places(batch, 1, 0, 4096).cpu().numpy()[0] for order in orders]
        for others in rows[1:]:
            np.testing.assert_array_equal(others, rows[0])
        for i in (0, 1, 2048, 4095):
            assert rows[0][i] == oracle.place_at(batch * 4096 + i, *plain)


@on_devices
@given(plan=plans(), seed=seeds, epoch=epochs, data=st.data())
def test_pure_any_slice_equals_the_whole(interpretation, plan, seed, epoch, data):
    whole = places_of(plan, seed, epoch, interpretation)
    start = data.draw(st.integers(0, plan.epoch_rows))
    stop = data.draw(st.integers(start, plan.epoch_rows))
    part = order_of(plan, seed, epoch, interpretation).positions(start, stop)
    assert part.device.type == INTERPRETATIONS[interpretation].device
    np.testing.assert_array_equal(part.cpu(), whole[start:stop])


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_pure_any_number_of_threads(threads):
    plan = make_plan([100_000, 1_000, 17, 1], "uniform", 1 << 19, 1024)
    whole = places_of(plan, 3, 1)
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(places_of(plan, 3, 1), whole)


@on_devices
@given(plan=plans(), seed=seeds, epoch=epochs)
def test_exact_quota(interpretation, plan, seed, epoch):
    classes = classes_of(plan, places_of(plan, seed, epoch, interpretation))
    np.testing.assert_array_equal(np.bincount(classes, minlength=plan.n_classes), plan.quotas)


@on_devices
@given(plan=plans(max_classes=5, max_rows=30, max_batch=20), seed=seeds)
def test_even_use_after_every_block_since_the_first_epoch(interpretation, plan, seed):
    used = np.zeros(plan.n_rows, np.int64)
    starts = np.cumsum(plan.class_counts) - plan.class_counts
    for epoch in range(3):
        order, batch = order_of(plan, seed, epoch, interpretation), 0
        while batch < plan.n_batches:
            block = block_of(plan, batch)
            places = order.positions(block.first_position, block.end_position).cpu().numpy()
            used += np.bincount(places, minlength=plan.n_rows)
            spread = np.maximum.reduceat(used, starts) - np.minimum.reduceat(used, starts)
            assert spread.max() <= 1
            batch = block.end_batch


@on_devices
@given(n=st.integers(1, 200), quota=st.integers(1, 200), seed=seeds)
def test_full_coverage_takes_no_more_epochs_than_it_must(interpretation, n, quota, seed):
    quota = min(n, quota)
    plan = make_plan([n, 3], "uniform", 2 * quota, 2 * quota if quota % 2 else quota)
    quota = int(plan.quotas[0])
    seen: set[int] = set()
    for epoch in range(math.ceil(n / quota)):
        assert len(seen) == min(n, epoch * quota)
        places = places_of(plan, seed, epoch, interpretation)
        seen.update(places[places < n].tolist())
    assert len(seen) == n
    assert plan.epochs_to_cover[0] == math.ceil(n / quota)


@on_devices
@given(plan=plans(max_batch=300), seed=seeds, epoch=epochs)
def test_even_batches_and_slices(interpretation, plan, seed, epoch):
    order, batch = order_of(plan, seed, epoch, interpretation), 0
    while batch < plan.n_batches:
        block = block_of(plan, batch)
        places = order.positions(block.first_position, block.end_position).cpu().numpy()
        classes = classes_of(plan, places).reshape(block.n_batches, block.batch_rows)
        hits = classes[:, :, None] == np.arange(plan.n_classes)
        share = hits.sum((0, 1)) / block.n_batches
        assert np.abs(hits.sum(1) - share).max() <= 2
        prefix = np.concatenate([np.zeros((block.n_batches, 1, plan.n_classes)), hits.cumsum(1)], axis=1)
        for m in {1, 2, 3, 7, 16, block.batch_rows // 2} - {0}:
            if m <= block.batch_rows:
                slices = prefix[:, m:] - prefix[:, :-m]
                assert np.abs(slices - share * m / block.batch_rows).max() <= 2 + math.log2(m) / 2
        batch = block.end_batch


@given(plan=plans(max_classes=40, max_rows=1000))
def test_a_blocks_share_is_near_the_epochs(plan):
    batch = 0
    while batch < plan.n_batches:
        block = block_of(plan, batch)
        share = plan.drawn(block.end_position) - plan.drawn(block.first_position)
        ideal = plan.quotas * (share.sum() / plan.epoch_rows)
        assert (share >= 0).all()
        assert np.abs(share - ideal).max() <= 2 * math.log2(plan.n_classes) + 1e-9
        batch = block.end_batch


@on_devices
@pytest.mark.parametrize("world_size", range(1, 8))
@pytest.mark.parametrize("per_rank", [1, 5, 12])
def test_partition(interpretation, world_size, per_rank):
    size = 420 * per_rank  # 420 is a multiple of 1 .. 7: the same global batch for every number of ranks
    plan = make_plan([3000, 200, 17, 1], "uniform", 4 * size, size)
    whole = order_of(plan, 5, 1, interpretation).places(0, 4, 0, size)
    parts = []
    for rank in range(world_size):
        start, stop = rank_places(size, rank, world_size)
        assert stop - start == size // world_size
        parts.append(order_of(plan, 5, 1, interpretation).places(0, 4, start, stop))
    assert torch.equal(torch.cat(parts, 1), whole)


@on_devices
def test_independent_seeds_epochs_and_neighbours(interpretation):
    plan = make_plan([10_000, 10_000], "uniform", 20_000, 1000)
    runs = {(s, e): places_of(plan, s, e, interpretation) for s, e in [(0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0)]}
    keys = list(runs)
    for a in range(len(keys)):
        for b in range(a):
            same = (runs[keys[a]] == runs[keys[b]]).sum()  # about Poisson(2): every place has one partner in 10,000
            assert same < 20, (keys[a], keys[b])


@pytest.mark.parametrize("interpretation", INTERPRETATIONS)
def test_the_order_is_frozen(interpretation):
    """A change of these numbers breaks every state that users have saved."""
    plan = make_plan([1_000_000, 4_095, 17, 16, 1], "sqrt", 1 << 17, 512)
    places = places_of(plan, 2**40 + 3, 9, interpretation)
    assert places[[0, 1, 1000, 131071]].tolist() == [818045, 267775, 38883, 247976]
    assert int(places.sum()) == 70079006792


# Batches of the loader. tests/test_loader.py puts them to the laws on the CPU; elsewhere they are the same batches.

ELSEWHERE = [name for name in INTERPRETATIONS if name != "cpu"]


@contextmanager
def used(interpretation: str) -> Iterator[None]:
    """Every device has the kernels of an interpretation."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (dispatch, arena, stream):
            patch.setattr(module, "kernels_for", lambda device: INTERPRETATIONS[interpretation].kernels)
        yield


def batches_of(options: dict[str, Any], interpretation: str, state: dict | None = None) -> list[Batch]:
    """What is left of the epoch of a state, and the next one; every tensor as it was yielded."""
    with used(interpretation):
        loader = BalancedLoader(**options, label="y", device=INTERPRETATIONS[interpretation].device)
        if state is not None:
            loader.load_state_dict(state)
        return [batch for _ in range(2) for batch in loader]


def assert_same(mine: list[Batch], wanted: list[Batch], interpretation: str) -> None:
    for batch, expected in zip(mine, wanted, strict=True):
        assert list(batch) == list(expected)
        for name, tensor in batch.items():
            assert tensor.device.type == INTERPRETATIONS[interpretation].device
            assert tensor.dtype == expected[name].dtype
            assert torch.equal(tensor.cpu(), expected[name]), name


@pytest.mark.parametrize("interpretation", ELSEWHERE)
@given(options=arguments())
def test_pure_batches_are_the_same_on_every_device(interpretation, options):
    options |= {"extras": ("class_id", "row", "weight")}
    assert_same(batches_of(options, interpretation), batches_of(options, "cpu"), interpretation)


@pytest.mark.parametrize("interpretation", ELSEWHERE)
@pytest.mark.parametrize("world_size", [1, 3])
def test_partition_of_batches_is_the_same_on_every_device(interpretation, world_size):
    columns = {"x": ["a", "b"], "flag": "flag", "y": "y"}
    rng = np.random.default_rng(1)
    data = {"a": rng.random(300), "b": rng.random(300), "flag": rng.random(300) < 0.5}
    data["y"] = rng.integers(0, 9, 300) // 4
    for rank in range(world_size):
        options = {"source": data, "batch_size": 10, "rank": rank, "world_size": world_size, "columns": columns}
        assert_same(batches_of(options, interpretation), batches_of(options, "cpu"), interpretation)


@pytest.mark.parametrize("interpretation", ELSEWHERE)
def test_pure_batches_of_a_stream_are_the_same_on_every_device(interpretation, tmp_path):
    """Windows are overwritten while batches are gathered from others: on a GPU, on streams of their own."""
    rng = np.random.default_rng(2)
    table = pa.table({"x": rng.random(20_000), "y": (rng.random(20_000) < 0.05).astype(np.int64)})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=250)
    options = {"source": tmp_path, "batch_size": 64, "memory": 300_000, "extras": ("row",)}
    assert "are streamed" in str(BalancedLoader(**options, label="y", device="cpu").plan)
    assert_same(batches_of(options, interpretation), batches_of(options, "cpu"), interpretation)


@pytest.mark.parametrize("interpretation", ELSEWHERE)
def test_resume_on_another_device(interpretation):
    data = {"x": np.arange(120.0), "y": np.arange(120) % 10 // 9}
    options = {"source": data, "batch_size": 8, "seed": 3}
    loader = BalancedLoader(**options, label="y", device="cpu")
    for _ in islice(loader, 5):
        state = loader.state_dict()
    assert_same(batches_of(options, interpretation, state), batches_of(options, "cpu", state), interpretation)
