"""The loader through its public API: the laws of the batches, ranks, state, statistics, and what bad input gets."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbalance as fb
from fastbalance import BalancedLoader, Dataset, EpochOrder
from fastbalance.errors import ArgumentError, ColumnError, LabelError, PlanError, SourceError, StateError
from fastbalance.split import block_of

from . import oracle

ROOT = Path(__file__).parents[1]
Batch = dict[str, torch.Tensor]


def source_of(counts: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of classes "c0", "c1", ... in mixed order."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    return {"x": np.arange(len(labels), dtype=np.float32), "y": labels}


FLIGHTS = source_of([170, 60, 22])


def load(source: Any = FLIGHTS, batch_size: int = 12, **options: Any) -> BalancedLoader:
    return BalancedLoader(source, "y", batch_size, device="cpu", **{"extras": ("class_id", "row"), **options})


def rows_of(loader: BalancedLoader, epochs: int = 1) -> list[list[int]]:
    """Rows of every batch of the next epochs."""
    return [batch["row"].tolist() for _ in range(epochs) for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


# ------------------------------------------------------------------------------------------------- the laws


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Sources of few rows, batches that divide nothing, and every kind of epoch, as arguments of `load`."""
    counts = draw(st.lists(st.integers(1, 60), min_size=2, max_size=7))
    batch = draw(st.integers(1, 30))
    if draw(st.booleans()):
        options = {"balance": "natural", "tail": draw(st.sampled_from(["keep", "drop", "pad"]))}
        batch = min(batch, sum(counts))
        if options["tail"] == "drop":  # so that no class is left out altogether
            counts, batch = [n + 30 for n in counts], min(batch, 10)
    else:
        options = {
            "balance": draw(st.sampled_from(["uniform", "sqrt", fb.balance.ratio(3), fb.balance.power(0.3)])),
            "epoch_rows": draw(st.sampled_from(["over", 8 * sum(counts), 8 * sum(counts) + 77])),
        }
        batch = min(batch, 8 * sum(counts)) if options["epoch_rows"] != "over" else min(batch, sum(counts))
    return {"source": source_of(counts), "batch_size": batch, "seed": draw(st.integers(0, 2**64 - 1)), **options}


loaders = arguments().map(lambda options: load(**options))


@given(loaders, st.integers(0, 2**31))
def test_quotas_are_exact_and_labels_those_of_their_class(loader, epoch):
    loader.set_epoch(epoch)
    counts = np.zeros(len(loader.classes), np.int64)
    n_batches = 0
    for batch in loader:
        assert batch["y"].tolist() == [loader.classes[c] for c in batch["class_id"].tolist()]
        counts += np.bincount(batch["class_id"], minlength=len(counts))
        n_batches += 1
    assert counts.tolist() == loader.plan.quotas.tolist()
    assert n_batches == len(loader) == loader.plan.n_batches


@given(loaders)
def test_use_is_even_over_epochs(loader):
    labels = loader.data.source.read_group(0, ["y"]).column("y").to_numpy()
    used = np.zeros(len(labels), np.int64)
    for _ in range(3):
        used += np.bincount(flat(rows_of(loader)), minlength=len(used))
        for c in loader.classes:
            mine = used[labels == c]
            assert mine.max() - mine.min() <= 1


@given(st.integers(2, 100), st.integers(1, 100), st.integers(0, 2**64 - 1))
def test_coverage_is_full_after_as_few_epochs_as_possible(n_rows, quota, seed):
    quota = min(n_rows, quota)
    loader = load(source_of([n_rows, 1]), 2 * quota, epoch_rows=2 * quota, seed=seed)
    majority = set(loader.data.class_rows()[:n_rows].tolist())
    seen: set[int] = set()
    for epoch in range(math.ceil(n_rows / quota)):
        assert len(seen) == epoch * quota
        seen |= majority & set(flat(rows_of(loader)))
    assert seen == majority


@given(loaders)
def test_batches_and_slices_of_batches_are_even(loader):
    plan = loader.plan
    for b, batch in enumerate(loader):
        block = block_of(plan, b)
        share = (plan.drawn(block.end_position) - plan.drawn(block.first_position)) / block.n_batches
        hits = batch["class_id"].numpy()[:, None] == np.arange(plan.n_classes)
        assert len(hits) == block.batch_rows
        assert np.abs(hits.sum(0) - share).max() <= 2
        sums = np.concatenate([np.zeros((1, plan.n_classes)), hits.cumsum(0)])
        for m in range(1, len(hits) + 1):
            slices = sums[m:] - sums[:-m]
            assert np.abs(slices - share * m / len(hits)).max() <= 2 + math.log2(m) / 2


@pytest.mark.parametrize("epoch", [0, 3])
def test_batches_are_those_of_the_order_and_of_the_oracle(epoch):
    loader = load(seed=2**63 + 5, epoch_rows=300)
    loader.set_epoch(epoch)
    rows = flat(rows_of(loader))
    class_rows = loader.data.class_rows().copy()
    order = EpochOrder(class_rows, loader.plan, 2**63 + 5, epoch)
    assert rows == order[:].tolist()
    assert rows[31:77] == order[31:77].tolist()
    plain = loader.class_counts.tolist(), loader.plan.quotas.tolist(), 12, loader.plan.epoch_rows, 2**63 + 5, epoch
    assert rows == class_rows[oracle.places(*plain)].tolist()


def test_an_order_takes_a_data_set():
    loader = load()
    assert EpochOrder(loader.data, loader.plan, 0)[:50].tolist() == flat(rows_of(loader))[:50]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads):
    source = source_of([60_000, 3_000, 17])
    torch.set_num_threads(1)
    wanted = rows_of(load(source, 20_000, epoch_rows=60_000))
    torch.set_num_threads(threads)
    loader = load(source, 20_000, epoch_rows=60_000)
    assert [(b["row"].tolist(), b["x"].tolist()) for b in loader] == [(rows, rows) for rows in wanted]


def test_several_blocks_and_chunks():
    """More positions than a block, and more bytes than are gathered at once."""
    loader = load(source_of([5000, 300]), 4096, epoch_rows=3 * 2**19, extras=("row", "class_id", "weight"))
    assert block_of(loader.plan, len(loader) - 1).number == 1
    used = np.zeros(5300, np.int64)
    for batch in loader:
        assert torch.equal(batch["x"], batch["row"].float())
        used += np.bincount(batch["row"], minlength=5300)
        assert abs(int(batch["class_id"].sum()) - 2048) <= 2
    classes = loader.data.class_rows()
    for mine in (used[classes[:5000]], used[classes[5000:]]):
        assert mine.max() - mine.min() <= 1
        assert mine.sum() == 3 * 2**18


def test_seeds_and_epochs_differ():
    runs = [rows_of(load(seed=seed), epochs=2) for seed in (0, 1, 2**32, 2**64 - 1)]
    halves = [flat(half) for run in runs for half in (run[: len(run) // 2], run[len(run) // 2 :])]
    assert len({tuple(half) for half in halves}) == 8
    assert rows_of(load(seed=1), epochs=2) == runs[1]


def test_natural_delivers_every_row_once():
    for tail, n_rows in [("keep", 252), ("drop", 250), ("pad", 260)]:
        loader = load(FLIGHTS, 10, balance="natural", tail=tail)
        batches = rows_of(loader)
        assert len(flat(batches)) == n_rows
        assert [len(batch) for batch in batches[:-1]] == [10] * (len(batches) - 1)
        assert len(set(flat(batches))) == min(n_rows, 252)


# ------------------------------------------------------------------------------------------------ the ranks


@pytest.mark.parametrize("balance", ["uniform", "natural"])
@pytest.mark.parametrize("world_size", range(1, 8))
def test_ranks_share_the_global_batches(world_size, balance):
    size = 85 if world_size == 5 else 84  # of the global batch: 84 is a multiple of the others
    tail = "keep" if 252 % size >= world_size or 252 % size == 0 else "pad"
    options = {"balance": balance, "tail": tail, "seed": 3, "extras": ("class_id", "row", "weight")}
    whole = load(FLIGHTS, size, rank=0, world_size=1, **options)
    parts = [
        load(FLIGHTS, size // world_size, rank=rank, world_size=world_size, **options) for rank in range(world_size)
    ]
    assert {len(part) for part in parts} == {len(whole)}
    assert {part.plan.fingerprint for part in parts} == {whole.plan.fingerprint}
    for _ in range(2):
        for batch, *shares in zip(whole, *parts, strict=True):
            lengths = [len(share["row"]) for share in shares]
            full = len(batch["row"]) == size
            assert max(lengths) - min(lengths) <= (0 if full else 1)
            for name, tensor in batch.items():
                assert torch.equal(torch.cat([share[name] for share in shares]), tensor), name


DISTRIBUTED = """
import json, sys
import torch, torch.distributed as dist
import fastbalance as fb

folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
x = torch.arange(252)
found = {}
for world_size in (3, 2):
    if rank < world_size:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet{world_size}", rank=rank, world_size=world_size)
        data = {"x": x, "y": (x % 11 == 0).long()}
        loader = fb.BalancedLoader(data, "y", 12 // world_size, columns=["x"], extras=(), device="cpu", seed=1)
        sampler = fb.BalancedBatchSampler(data["y"], 12 // world_size, seed=1)
        length = torch.tensor([len(loader), len(sampler), loader.plan.global_batch_rows])
        lengths = [torch.zeros_like(length) for _ in range(world_size)]
        dist.all_gather(lengths, length)
        assert all(torch.equal(length, other) for other in lengths)
        found[world_size] = [[batch["x"].tolist() for _ in range(2) for batch in loader], [*sampler, *sampler]]
        dist.barrier()
        dist.destroy_process_group()
json.dump(found, open(f"{folder}/rank{rank}.json", "w"))
"""


def run_script(text: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", text, *map(str, arguments)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else dict(os.environ)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_processes_find_their_rank_themselves(tmp_path):
    """Two and three processes of torch.distributed; nobody tells the loaders their ranks."""
    processes = [run_script(DISTRIBUTED, tmp_path, rank) for rank in range(3)]
    for process in processes:
        finish(process)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(3)]
    x = np.arange(252)
    alone = load({"x": x, "y": (x % 11 == 0).astype(int)}, 12, columns=["x"], seed=1)
    wanted = rows_of(alone, epochs=2)
    assert len(wanted) == 42
    for world_size in ("2", "3"):
        shares = [rank[world_size] for rank in found if world_size in rank]
        assert len(shares) == int(world_size)
        for which in (0, 1):
            assert [flat(parts) for parts in zip(*(share[which] for share in shares), strict=True)] == wanted


# ---------------------------------------------------------------------------------------------- the weights


@given(loaders)
def test_weights_are_natural_over_sampled_share(loader):
    loader = load(loader.data, 6, extras=("weight", "class_id"), epoch_rows=40 * loader.data.n_rows, balance="sqrt")
    plan = loader.plan
    natural, sampled = plan.class_counts / plan.n_rows, plan.quotas / plan.epoch_rows
    batch = next(iter(loader))
    assert batch["weight"].dtype == torch.float32
    np.testing.assert_allclose(batch["weight"].numpy(), (natural / sampled)[batch["class_id"].numpy()], rtol=1e-6)


@pytest.mark.parametrize(
    ("counts", "balance", "epoch_rows", "epochs"),
    [([12, 4], "uniform", 24, 1), ([90, 10], "uniform", 20, 9), ([50, 25, 5], fb.balance.ratio(2), 25, 5)],
)
def test_the_weighted_mean_is_the_natural_mean(counts, balance, epoch_rows, epochs):
    """Over epochs that use all rows of a class equally often there is nothing random left."""
    x = np.random.default_rng(0).standard_normal(sum(counts))
    source = {**source_of(counts), "x": x}
    loader = load(source, 5 if epoch_rows % 4 else 4, balance=balance, epoch_rows=epoch_rows, extras=("weight",))
    batches = [batch for _ in range(epochs) for batch in loader]
    weights = torch.cat([batch["weight"] for batch in batches]).double()
    values = torch.cat([batch["x"] for batch in batches])
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)
    np.testing.assert_allclose((weights * values).mean(), x.mean(), rtol=1e-5)
    assert list(batches[0]) == ["x", "y", "weight"]


def test_log_prior_correction_is_the_log_of_the_weights():
    loader = load(extras=("weight", "class_id"))
    correction = fb.log_prior_correction(loader)
    assert correction.dtype == torch.float32
    assert correction.shape == (3,)
    batch = next(iter(loader))
    torch.testing.assert_close(correction[batch["class_id"]].exp(), batch["weight"])
    assert fb.log_prior_correction(load(balance="natural")).tolist() == [0, 0, 0]


def test_log_prior_correction_of_a_class_that_is_never_drawn():
    """A model cannot be put right about a class that it never saw; but nothing may become NaN, or warn."""
    loader = load(balance=fb.balance.target({0: 1, 1: 1, 2: 0}))
    correction = fb.log_prior_correction(loader)
    assert torch.isfinite(correction[:2]).all()
    assert not torch.isnan(correction).any()
    assert all(2 not in batch["class_id"] for batch in loader)


def test_the_extras_are_those_asked_for():
    for extras in [(), ("row",), ["class_id"], ("weight",), ("weight", "row"), ("row", "class_id", "weight")]:
        batch = next(iter(load(extras=extras)))
        assert set(batch) == {"x", "y", *extras}
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items() if name not in "xy"}
    assert kinds == {
        "row": (torch.int64, (12,)), "class_id": (torch.int64, (12,)), "weight": (torch.float32, (12,)),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ the state


def run_resume(make: Callable[[int, int], BalancedLoader], midpoint: int, worlds: tuple[int, ...] = (1,)) -> None:
    """Stop after `midpoint` batches, and go on with the state: the rest of three epochs must be that of a run that was
    never stopped, in the same loader, in another one, twice in a row, and with other numbers of ranks.

    Args:
        make: Makes a loader from rank and world size.
        midpoint: Batches before the stop; more than an epoch is possible.
    """
    n_batches = len(make(0, 1))
    wanted = rows_of(make(0, 1), epochs=3)
    loader, got, states = make(0, 1), [], []
    while len(got) < midpoint:
        for batch in loader:
            got.append(batch["row"].tolist())
            states.append(loader.state_dict())
            if len(got) == midpoint:
                break
    state = json.loads(json.dumps(states[-1] if states else loader.state_dict()))
    assert (state["epoch"], state["batch"]) == divmod(midpoint, n_batches)
    assert got == wanted[:midpoint]
    left = 3 - midpoint // n_batches

    for again in (make(0, 1), loader):
        again.load_state_dict(state)
        assert again.state_dict() == state
        assert rows_of(again, epochs=left) == wanted[midpoint:]

    again = make(0, 1)  # stopped once more
    again.load_state_dict(state)
    more = [batch["row"].tolist() for _, batch in zip(range(2), again, strict=False)]
    state2 = again.state_dict()
    again = make(0, 1)
    again.load_state_dict(state2)
    assert more + rows_of(again, epochs=left + 1)[: len(wanted) - midpoint - len(more)] == wanted[midpoint:]

    for world_size in worlds:
        parts = [make(rank, world_size) for rank in range(world_size)]
        for part in parts:
            part.load_state_dict(state)
            part.set_epoch(state["epoch"])  # as trainers do
        shares = [rows_of(part, epochs=left) for part in parts]
        assert [flat(list(batch)) for batch in zip(*shares, strict=True)] == wanted[midpoint:]


@pytest.mark.parametrize("midpoint", [0, 1, 7, 20, 21, 22, 33, 41, 42])
def test_resume(midpoint):
    def make(rank, world_size):
        return load(FLIGHTS, 12 // world_size, rank=rank, world_size=world_size, seed=5)

    assert len(make(0, 1)) == 21
    run_resume(make, midpoint, worlds=(2, 3, 4, 6, 12))


@pytest.mark.parametrize("midpoint", [0, 3, 25, 26, 27, 40])
@pytest.mark.parametrize("tail", ["keep", "drop", "pad"])
def test_resume_with_a_tail(midpoint, tail):
    def make(rank, world_size):
        options = {"balance": "natural", "tail": tail, "rank": rank, "world_size": world_size}
        return load(FLIGHTS, 10 // world_size, seed=2**63, **options)

    run_resume(make, midpoint, worlds=(1, 2))


@given(arguments(), st.integers(0, 40))
@settings(max_examples=25)
def test_resume_anywhere(options, midpoint):
    data = Dataset.open(options.pop("source"), "y")

    def make(rank, world_size):
        return load(data, rank=rank, world_size=world_size, **options)

    run_resume(make, min(midpoint, 3 * len(make(0, 1))))


def test_state_in_the_last_step_is_the_next_full_epoch():
    loader = load()
    for batch in loader:
        last = batch, loader.state_dict()
    assert (last[1]["epoch"], last[1]["batch"]) == (1, 0)
    assert loader.state_dict() == last[1]
    again = load(seed=99)
    again.load_state_dict(last[1])
    assert rows_of(again) == rows_of(loader)


def test_state_is_small_json():
    state = load(seed=2**64 - 1).state_dict()
    assert json.loads(json.dumps(state)) == state
    assert set(state) == {"version", "epoch", "batch", "seed", "lanes", "stream", "plan", "data"}
    assert state["seed"] == 2**64 - 1
    assert len(json.dumps(state)) < 300


def test_state_carries_the_seed():
    loader = load(seed=1)
    loader.load_state_dict(load(seed=2).state_dict())
    assert loader.seed == loader.state_dict()["seed"] == 2
    assert rows_of(loader) == rows_of(load(seed=2))


def test_state_before_the_first_batch_of_an_iteration():
    loader = load()
    wanted = rows_of(load(), epochs=3)
    next(iter(loader))
    iter(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 1)
    for _ in loader:
        break
    state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (1, 1)
    loader.load_state_dict(state)
    assert rows_of(loader) == wanted[22:42]


def test_state_of_the_same_data_in_other_files(tmp_path):
    """The fingerprint is that of the content: moved files are the same data."""
    table = pa.table(FLIGHTS)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "rows.parquet", row_group_size=100)
    loader = load(tmp_path / "a")
    next(iter(loader))
    again = load(tmp_path / "b", extras=("row", "weight"), columns=["x"])
    again.load_state_dict(loader.state_dict())
    assert rows_of(again) == rows_of(load(tmp_path / "a"))[1:]


KILLED = """
import json, os, sys
import fastbalance as fb

data, state_path, rows_path, n_batches, world_size = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
loaders = [
    fb.BalancedLoader(data, "y", 12 // world_size, extras=("row",), device="cpu", rank=r, world_size=world_size, seed=8)
    for r in range(world_size)
]
if os.path.exists(state_path):
    for loader in loaders:
        with open(state_path) as file:
            loader.load_state_dict(json.load(file))
with open(rows_path, "w") as out:
    while n_batches:
        for batches in zip(*loaders):
            print(json.dumps([row for batch in batches for row in batch["row"].tolist()]), file=out, flush=True)
            with open(state_path + ".new", "w") as file:
                json.dump(loaders[0].state_dict(), file)
            os.replace(state_path + ".new", state_path)
            n_batches -= 1
            if n_batches == 0:
                print("ready", flush=True)
                sys.stdin.read() if world_size == 1 else None
                break
"""


def test_resume_in_a_fresh_process_after_a_kill(tmp_path):
    """The first process is killed in the middle of an epoch; the second goes on with three ranks."""
    pq.write_table(pa.table(FLIGHTS), tmp_path / "rows.parquet", row_group_size=64)
    command = [tmp_path / "rows.parquet", tmp_path / "state.json"]
    first = subprocess.Popen(
        [sys.executable, "-c", KILLED, *map(str, [*command, tmp_path / "first", 28, 1])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None
    assert first.stdin is not None
    assert first.stdout.readline() == "ready\n"
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait(timeout=60) == -signal.SIGKILL
    first.stdout.close()
    first.stdin.close()
    finish(run_script(KILLED, *command, tmp_path / "second", 35, 3))
    got = [json.loads(line) for name in ("first", "second") for line in (tmp_path / name).read_text().splitlines()]
    assert len(got) == 63
    loader = load(tmp_path / "rows.parquet", seed=8)
    assert got == rows_of(loader, epochs=3)
    assert loader.state_dict() == json.loads((tmp_path / "state.json").read_text())


# ----------------------------------------------------------------------------------------- epochs and loops


def test_iterations_give_consecutive_epochs():
    loader, wanted = load(), []
    for epoch in range(4):
        fresh = load()
        fresh.set_epoch(epoch)
        wanted += rows_of(fresh)
    assert rows_of(loader, epochs=4) == wanted


def test_set_epoch_may_be_repeated():
    wanted = rows_of(load(), epochs=3)
    loader = load()
    for epoch in (0, 0, 2, 1, 1, 0, 2):
        for _ in range(3):
            loader.set_epoch(epoch)
        loader.sampler.set_epoch(epoch)
        assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (epoch, 0)
        assert rows_of(loader) == wanted[21 * epoch : 21 * epoch + 21]
        assert loader.state_dict()["epoch"] == epoch + 1


def test_set_epoch_keeps_a_loaded_position_of_that_epoch_only():
    loader = load()
    loader.load_state_dict({**loader.state_dict(), "epoch": 2, "batch": 5})
    loader.set_epoch(2)
    loader.sampler.set_epoch(2)
    assert loader.state_dict()["batch"] == 5
    loader.set_epoch(3)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (3, 0)
    loader.set_epoch(2)
    assert loader.state_dict()["batch"] == 0


def test_set_epoch_after_a_break_starts_that_epoch_again():
    loader = load()
    wanted = rows_of(load())
    for _ in range(2):
        assert next(iter(loader))["row"].tolist() == wanted[0]
        loader.set_epoch(0)
    assert rows_of(loader) == wanted


@pytest.mark.parametrize("stop", ["break", "raise", "close"])
def test_a_loop_that_was_left_is_followed_by_the_next_epoch(stop):
    loader, wanted = load(), rows_of(load(), epochs=2)

    def loop():
        for i, _ in enumerate(loader):
            if i == 3 and stop == "raise":
                raise KeyError("the user's own")
            if i == 3:
                break

    if stop == "raise":
        with pytest.raises(KeyError):
            loop()
    elif stop == "close":
        batches = iter(loader)
        for _ in range(4):
            next(batches)
        batches.close()
    else:
        loop()
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 4)
    assert rows_of(loader) == wanted[21:]


def test_iter_alone_does_nothing(monkeypatch):
    monkeypatch.setattr("fastbalance.loader.load_arena", lambda *_: pytest.fail("the data was read"))
    loader = load(seed=None)
    state = torch.get_rng_state()
    for _ in range(3):
        iter(loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 0)


def test_a_trainer_that_stops_at_len_and_sets_the_epoch_after_iter():
    """Lightning: an `iter` thrown away, another one, `set_epoch` after it, exactly `len` batches, no StopIteration."""
    loader, wanted = load(), rows_of(load(), epochs=3)
    got = []
    iter(loader)
    for epoch in range(2):
        batches = iter(loader)
        loader.sampler.set_epoch(epoch)
        got += [next(batches)["row"].tolist() for _ in range(len(loader))]
        saved = loader.state_dict()
    assert got == wanted[:42]
    assert (saved["epoch"], saved["batch"]) == (2, 0)

    loader = load()  # resumed in the middle of epoch 1
    loader.load_state_dict({**saved, "epoch": 1, "batch": 9})
    iter(loader)
    batches = iter(loader)
    loader.sampler.set_epoch(1)
    assert [next(batches)["row"].tolist() for _ in range(12)] == wanted[30:42]
    batches = iter(loader)
    loader.sampler.set_epoch(2)
    assert [batch["row"].tolist() for batch in batches] == wanted[42:]


def test_what_frameworks_probe():
    loader = load()
    assert not isinstance(loader, torch.utils.data.DataLoader)
    for name in ("dataset", "_iterator"):
        assert not hasattr(loader, name)
    assert loader.batch_sampler is None
    assert callable(loader.sampler.set_epoch)
    assert callable(loader.state_dict)
    assert callable(loader.load_state_dict)
    assert iter(loader) is not iter(loader)
    assert len(loader) == 21
    next(iter(loader))
    assert not hasattr(loader, "_iterator")


def test_a_failed_first_batch_skips_no_epoch(monkeypatch):
    """An error on the way to an epoch's first batch, as a Ctrl-C is, leaves the epoch for the next try."""
    loader, wanted = load(), rows_of(load(), epochs=2)
    next(iter(loader))
    with monkeypatch.context() as patch:
        patch.setattr("fastbalance.arena.Arena.gather", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                next(iter(loader))
    assert rows_of(loader) == wanted[21:]


def test_batches_that_are_kept_stay_as_they_were():
    loader = load(epoch_rows=3000)
    kept = list(loader)
    copies = [batch["row"].clone() for batch in kept]
    rows_of(loader)
    assert all(torch.equal(batch["row"], copy) for batch, copy in zip(kept, copies, strict=True))
    assert all(torch.equal(batch["x"], batch["row"].float()) for batch in kept)


def test_loaders_of_one_data_set_are_independent():
    data = Dataset.open(FLIGHTS, "y")
    a, b = load(data, seed=1), load(data, seed=2, columns=["x"])
    pairs = [(p["row"].tolist(), q["row"].tolist()) for p, q in zip(a, b, strict=True)]
    assert [p for p, _ in pairs] == rows_of(load(seed=1))
    assert [q for _, q in pairs] == rows_of(load(seed=2))
    assert rows_of(BalancedLoader(data, batch_size=12, seed=1, device="cpu", extras=("row",))) == [p for p, _ in pairs]


def test_an_index_saves_the_scan(tmp_path, monkeypatch):
    pq.write_table(pa.table(FLIGHTS), tmp_path / "rows.parquet", row_group_size=64)
    Dataset.open(tmp_path / "rows.parquet", "y").save_index(tmp_path / "y.index")
    wanted = rows_of(load(tmp_path / "rows.parquet"))
    monkeypatch.setattr("fastbalance.dataset.scan_labels", lambda *_: pytest.fail("the labels were scanned"))
    assert rows_of(load(tmp_path / "rows.parquet", index=tmp_path / "y.index")) == wanted


# ------------------------------------------------------------------------------------------------- the seed


def test_a_seed_of_none_is_drawn_from_torch_at_the_first_iteration():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loader = load(seed=None)
    len(loader)
    iter(loader)
    assert torch.equal(torch.get_rng_state(), before)
    first = rows_of(loader)
    assert not torch.equal(torch.get_rng_state(), before)
    after = torch.get_rng_state()
    second = rows_of(loader)
    assert torch.equal(torch.get_rng_state(), after)

    torch.manual_seed(5)
    assert rows_of(load(seed=None), epochs=2) == first + second
    torch.manual_seed(6)
    assert rows_of(load(seed=None)) != first
    torch.manual_seed(7)
    again = load(seed=None)
    again.load_state_dict({**loader.state_dict(), "epoch": 0})
    assert rows_of(again) == first
    assert rows_of(load(seed=loader.seed)) == first


def test_the_state_of_a_seed_of_none_holds_the_drawn_one():
    torch.manual_seed(5)
    loader = load(seed=None)
    state = loader.state_dict()
    assert isinstance(state["seed"], int)
    again = load(seed=None)
    again.load_state_dict(state)
    assert rows_of(again) == rows_of(loader)


# ------------------------------------------------------------------------------------------- the statistics


def test_stats_of_nothing():
    stats = load().stats()
    assert (stats.rows, stats.batches, stats.bytes, stats.load_s, stats.wait_s, stats.rows_per_s) == (0, 0, 0, 0, 0, 0)
    assert stats.class_rows == {0: 0, 1: 0, 2: 0}


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 3)])
@pytest.mark.parametrize("options", [{}, {"balance": "natural", "batch_size": 10}], ids=str)
def test_stats_count_what_was_yielded(rank, world_size, options):
    options = dict(options)
    loader = load(FLIGHTS, options.pop("batch_size", 12), rank=rank, world_size=world_size, **options)
    counts, rows, batches = np.zeros(3, np.int64), 0, 0
    state = None

    def check():
        stats = loader.stats()
        assert (stats.rows, stats.batches) == (rows, batches)
        assert stats.bytes == rows * 32  # float32 and its padding, and three times int64
        assert stats.class_rows == dict(enumerate(counts.tolist()))
        assert stats.load_s > 0
        assert stats.wait_s > stats.load_s
        assert stats.rows_per_s == pytest.approx(rows / (stats.wait_s - stats.load_s))

    def step(batch):
        nonlocal counts, rows, batches
        counts += np.bincount(batch["class_id"], minlength=3)
        rows += len(batch["row"])
        batches += 1

    for epoch in range(3):
        for i, batch in enumerate(loader):
            step(batch)
            if i in (0, 3):
                check()
            if epoch == 1 and i == 4:
                state = loader.state_dict()
                break
        check()
    loader.load_state_dict(state)
    for batch in loader:
        step(batch)
    loader.set_epoch(7)
    step(next(iter(loader)))
    check()


def test_stats_by_label_value():
    source = {"y": ["no", "no", "yes", "no"], "x": [1, 2, 3, 4]}
    loader = load(source, 2)
    list(loader)
    assert loader.stats().class_rows == {"no": 2, "yes": 2}


def test_stats_survive_a_state_of_another_seed():
    """What was delivered before stays as it was, whatever seed the loader goes on with."""
    for seed in range(12):
        loader = load(FLIGHTS, 5, seed=seed)
        counts = np.bincount(next(iter(loader))["class_id"], minlength=3)
        loader.load_state_dict({**loader.state_dict(), "seed": 1000})
        assert loader.stats().class_rows == dict(enumerate(counts.tolist()))


def test_seconds_in_the_loop_are_not_the_loaders(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    loader = load()
    for _ in loader:
        clock[0] += 100.0
    assert loader.stats().wait_s == 0


# ------------------------------------------------------------------------------------------- wrong states


def test_a_state_of_other_data():
    loader = load()
    other = load({**FLIGHTS, "y": FLIGHTS["y"] + 1}, 12)
    state = other.state_dict()
    with pytest.raises(StateError) as caught:
        loader.load_state_dict(state)
    assert str(caught.value) == (
        f"state: got data {state['data']}; allowed: data {loader.data.fingerprint}, which this loader reads. "
        "Give the loader the data set that the state was saved with."
    )


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 14}, {"batch_size": 6}, {"balance": "sqrt"}, {"epoch_rows": 300}, {"rank": 0, "world_size": 2}],
    ids=str,
)
def test_a_state_of_another_plan(options):
    loader, options = load(), dict(options)
    state = load(FLIGHTS, options.pop("batch_size", 12), **options).state_dict()
    with pytest.raises(StateError) as caught:
        loader.load_state_dict(state)
    assert str(caught.value) == (
        f"state: got plan {state['plan']}; allowed: plan {loader.plan.fingerprint} (uniform, global batch of 12 rows, "
        "epoch of 252). Balance, epoch_rows and the global batch (batch_size times world size) must be as they were."
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "state version: got 2; allowed: 1."),
        ({"version": None}, "state version: got None; allowed: 1."),
        ({"batch": 21}, "state['batch']: got 21; allowed: an integer in [0, 21)."),
        ({"batch": -1}, "state['batch']: got -1; allowed: an integer in [0, 21)."),
        ({"epoch": -1}, "state['epoch']: got -1; allowed: an integer in [0, 4294967296)."),
        ({"epoch": "0"}, "state['epoch']: got '0'; allowed: an integer in [0, 4294967296)."),
        ({"epoch": 0.0}, "state['epoch']: got 0.0; allowed: an integer in [0, 4294967296)."),
    ],
    ids=str,
)
def test_a_damaged_state(change, text):
    loader = load()
    with pytest.raises(StateError) as caught:
        loader.load_state_dict({**loader.state_dict(), **change})
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "change",
    [{"seed": "x"}, {"seed": -1}, {"seed": 2**64}, {"seed": 1.0}, {"seed": None}, {"lanes": 7}, {"lanes": "x"},
     {"epoch": 2**32}, {"epoch": True}, {"batch": True}],
    ids=str,
)  # fmt: skip
def test_a_damaged_state_is_refused_and_changes_nothing(change):
    loader = load(seed=3)
    next(iter(loader))
    before = loader.state_dict()
    with pytest.raises(StateError, match="|".join(change)):
        loader.load_state_dict({**before, "epoch": 4, "batch": 7, **change})
    assert loader.state_dict() == before


@pytest.mark.parametrize(
    ("state", "got"),
    [
        (None, "NoneType"),
        ([], "list"),
        ("x", "str"),
        (b"", "bytes"),
        ({}, "without ['batch', 'data', 'epoch', 'lanes', 'plan', 'seed', 'stream', 'version']"),
        ({"version": 1, "epoch": 0, "batch": 0}, "without ['data', 'lanes', 'plan', 'seed', 'stream']"),
    ],
    ids=str,
)
def test_what_is_no_state(state, got):
    with pytest.raises(StateError) as caught:
        load().load_state_dict(state)
    assert str(caught.value) == f"state: got {got}; allowed: what state_dict() returned."


# ---------------------------------------------------------------------------------------- other bad input


def refused(error: type[Exception], text: str, source: Any = FLIGHTS, label: Any = "y", size: Any = 12, **options):
    with pytest.raises(error) as caught:
        BalancedLoader(source, label, size, **{"device": "cpu", **options})
    assert str(caught.value) == text


@pytest.mark.parametrize("size", [0, -1, 2.0, "8", None, 2**31, True], ids=str)
def test_batch_sizes(size):
    refused(ArgumentError, f"batch_size: got {size!r}; allowed: an integer in [1, 2^30).", size=size)


def test_batches_larger_than_the_epoch():
    text = (
        "batch_size: got 300 rows in a global batch, but an epoch of 252 rows; allowed: at most 252. "
        "Take a smaller batch_size, or give epoch_rows."
    )
    refused(PlanError, text, size=300)


def test_ranks_that_are_given_are_checked_at_once():
    """Nothing that is known when the loader is made waits for the first batch."""
    with pytest.raises(PlanError, match="batch_size: got 300 rows in a global batch, but an epoch of 252 rows"):
        load(FLIGHTS, 100, rank=1, world_size=3)


def test_ranks_that_are_found_are_checked_when_they_are_known(monkeypatch):
    loader = load(FLIGHTS, 100)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    with pytest.raises(PlanError, match="batch_size: got 300 rows in a global batch, but an epoch of 252 rows"):
        len(loader)
    assert len(load(FLIGHTS, 28)) == 3


def test_a_plan_that_is_printed_before_there_is_a_process_group_settles_nothing(monkeypatch):
    loader = load(FLIGHTS, 28, extras=("row",))
    assert (len(loader), loader.plan.global_batch_rows) == (9, 28)
    state = loader.state_dict()
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    assert (len(loader), loader.plan.global_batch_rows) == (3, 84)
    assert loader.state_dict()["plan"] != state["plan"]
    batches = iter(loader)
    rows = [next(batches)["row"].tolist()]
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)  # the run ends with the group
    rows += [batch["row"].tolist() for batch in batches]
    assert len(loader) == 3
    assert rows == rows_of(load(FLIGHTS, 28, extras=("row",), rank=1, world_size=3))


@pytest.mark.parametrize(
    ("rank", "world_size", "text"),
    [
        (0, None, "rank, world_size: got 0, None; allowed: both, or neither to find them."),
        (None, 2, "rank, world_size: got None, 2; allowed: both, or neither to find them."),
        (2, 2, "rank: got 2; allowed: an integer in [0, 2), one of world_size 2."),
        (-1, 2, "rank: got -1; allowed: an integer in [0, 2), one of world_size 2."),
        (0, 0, "world_size: got 0; allowed: an integer in [1, 2^30)."),
    ],
)
def test_ranks_out_of_range(rank, world_size, text):
    refused(ArgumentError, text, rank=rank, world_size=world_size)


@pytest.mark.parametrize(("rank", "world_size"), [("0", 1), (0, "1"), (0.0, 1), (0, 2.0)], ids=str)
def test_ranks_that_are_no_integers(rank, world_size):
    with pytest.raises(ArgumentError, match=r"rank|world_size"):
        load(rank=rank, world_size=world_size)


def test_more_ranks_than_rows_in_the_tail():
    options = {"balance": "natural", "size": 125, "rank": 0, "world_size": 2}
    source = source_of([200, 51])
    refused(
        PlanError,
        'tail: got "keep": a last batch of 1 rows for 2 ranks; allowed: at least one row for each rank. '
        'Take tail="drop" or tail="pad", or another batch_size.',
        source,
        **options,
    )
    assert len(load(source, 125, balance="natural", rank=0, world_size=2, tail="pad")) == 2


def test_a_plan_that_only_several_ranks_can_have():
    """9 rows for 10 classes are too few, but with two ranks an epoch has 12: that is no mistake."""
    source = {"y": np.arange(40) % 10, "x": np.arange(40)}
    loader = load(source, 3, epoch_rows=7, rank=0, world_size=2)
    assert loader.plan.quotas.tolist() == [2, 2, *[1] * 8]
    assert [len(batch["x"]) for batch in loader] == [3, 3]


def test_shares_that_round_to_nothing():
    with pytest.raises(PlanError, match=r"of which class 1 would get none \(2 such classes\); allowed: about 102 rows"):
        load(epoch_rows=12, balance=fb.balance.target({0: 100, 1: 1, 2: 1}), rank=0, world_size=1).plan.quotas.sum()


def test_targets_for_classes_without_rows():
    refused(
        PlanError,
        "target shares: got shares for 'maybe', which no row has; allowed: the labels of the data: 0, 1, 2. "
        "Check spelling and type of the label; a class without rows cannot be drawn.",
        balance=fb.balance.target({"maybe": 1, 0: 1, 1: 1, 2: 1}),
    )
    refused(
        PlanError,
        "target shares: got no share for 2; allowed: a share for every class. "
        "Give a class the share 0 to leave it out on purpose.",
        balance=fb.balance.target({0: 1, 1: 1}),
    )


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "0", True, [1]], ids=str)
def test_seeds(seed):
    refused(ArgumentError, f"seed: got {seed!r}; allowed: an integer in [0, 2^64), or None to draw one.", seed=seed)


@pytest.mark.parametrize("epoch", [-1, 1.0, "0", True, None], ids=str)
def test_epochs(epoch):
    loader = load()
    for target in (loader, loader.sampler):
        with pytest.raises(ArgumentError) as caught:
            target.set_epoch(epoch)
        assert str(caught.value).startswith(f"epoch: got {epoch!r}; allowed: an integer ")
    assert loader.state_dict()["epoch"] == 0


def test_epochs_beyond_the_last():
    """As early as possible: not at the first batch."""
    loader = load()
    loader.set_epoch(2**32 - 1)
    assert len(next(iter(loader))["row"]) == 12
    with pytest.raises(ArgumentError, match="epoch"):
        loader.set_epoch(2**32)


@pytest.mark.parametrize("memory", [0, -5, "x", "4GB", "", None, True, "nanB", "infGiB", float("inf")], ids=str)
def test_memory(memory):
    text = (
        f"memory: got {memory!r}; allowed: bytes as an integer > 0, "
        'or as "512MiB" or "4GiB", or "auto".'
    )  # fmt: skip
    refused(ArgumentError, text, memory=memory)


def test_memory_that_is_too_small():
    refused(
        PlanError,
        "memory: got 4,096 bytes for 252 rows of 32 bytes; allowed: at least 50,112 to stream them. Raise memory, load "
        "fewer columns or narrower types, or rewrite the data in smaller groups.",
        memory="4KiB",
    )
    assert len(load(memory="7.875KiB", extras=("class_id",))) == len(load(memory=8064, extras=())) == 21


@pytest.mark.parametrize(
    ("extras", "got"), [("row", "'row'"), (("rows",), "('rows',)"), (["class_id", 3], "3")], ids=str
)
def test_extras(extras, got):
    allowed = "a sequence of names from ('class_id', 'row', 'weight', 'seed')"
    refused(ArgumentError, f"extras: got {got}; allowed: {allowed}.", extras=extras)


@pytest.mark.parametrize("extras", [None, 3])
def test_extras_of_a_wrong_kind(extras):
    with pytest.raises(ArgumentError, match=f"extras: got {extras}"):
        load(extras=extras)


def test_extras_of_an_iterator_are_not_lost():
    assert "row" in next(iter(load(extras=iter(["row"]))))


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_devices_that_do_not_exist(device):
    with pytest.raises(ArgumentError, match="device"):
        BalancedLoader(FLIGHTS, "y", 12, device=device)


@pytest.mark.parametrize("balance", ["even", None, 3], ids=str)
def test_balances(balance):
    with pytest.raises(ArgumentError, match=re.escape(f"balance: got {balance!r}; allowed: ")):
        load(balance=balance)


@pytest.mark.parametrize("epoch_rows", [0, -1, "all", 1.5, True], ids=str)
def test_epoch_rows(epoch_rows):
    with pytest.raises(ArgumentError, match=re.escape(f"epoch_rows: got {epoch_rows!r}; allowed: ")):
        load(epoch_rows=epoch_rows)


def test_tails():
    refused(ArgumentError, 'tail: got \'cut\'; allowed: "keep", "drop" or "pad".', tail="cut")


def test_labels():
    refused(LabelError, "label: got no column 'z'; allowed: one of ['y', 'x'].", label="z")
    refused(ArgumentError, "label: got None; allowed: the name of the label column, or several names.", label=None)
    data = Dataset.open(FLIGHTS, "y")
    refused(ArgumentError, "label: got ('x',); allowed: ('y',), the data set's own, or None.", data, "x")
    one = {"y": [1, 1], "x": [1, 2]}
    refused(
        LabelError,
        "label column 'y': got one class, 1; allowed: two or more classes. "
        "There is nothing to balance; is it the right column?",
        one,
    )  # fmt: skip
    with pytest.raises(LabelError, match="label column 'y': got double"):
        load({"y": [0.5, 1.5]})
    with pytest.raises(LabelError, match="label column 'y': got 1 nulls"):
        load({"y": [0, 1, None]})


@pytest.mark.parametrize("opened", [False, True])
def test_labels_of_a_wrong_kind(opened):
    source = Dataset.open(FLIGHTS, "y") if opened else FLIGHTS
    with pytest.raises((ArgumentError, LabelError), match="label"):
        BalancedLoader(source, 5, 12, device="cpu")


def test_sources(tmp_path):
    with pytest.raises(SourceError, match=re.escape(f"source '{tmp_path}/none.parquet': got no such file; allowed: ")):
        load(tmp_path / "none.parquet")
    with pytest.raises(SourceError, match="got no rows; allowed: at least one row"):
        load({"y": np.zeros(0, int)})
    pq.write_table(pa.table({"y": [0, 1], "x": [1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"y": [0, 1], "x": [1.0, 2.0]}), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=re.escape(f"{tmp_path}/b.parquet, column 'x': got double; allowed: int64")):
        load(tmp_path)


def test_a_damaged_page_names_shard_and_group(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table(
        {"y": [0, 1] * 50, "x": [f"{i:050}" for i in range(100)], "z": np.random.default_rng(0).random(100)}
    )
    pq.write_table(table, path, row_group_size=50, compression="zstd", use_dictionary=False)
    place = pq.read_metadata(path).row_group(1).column(2)
    whole = bytearray(path.read_bytes())
    loader = load(tmp_path, 4)
    start = place.data_page_offset
    whole[start : start + place.total_compressed_size] = bytes(place.total_compressed_size)
    path.write_bytes(whole)
    with pytest.raises(SourceError, match=re.escape(f"{path}, groups [1]")):
        next(iter(loader))


def test_what_reading_finds_is_said_at_the_first_batch_and_can_be_tried_again():
    loader = load({"y": [0, 0, 1, 1], "x": [1, None, 3, 4]}, 2)
    for _ in range(2):
        with pytest.raises(ColumnError, match=re.escape("column 'x': got 1 nulls")):
            next(iter(loader))
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 0)
    assert loader.stats().rows == 0


def test_every_error_is_a_fastbalance_error_and_a_value_error():
    from fastbalance import errors

    for error in (ArgumentError, ColumnError, LabelError, PlanError, SourceError, StateError):
        assert issubclass(error, errors.FastbalanceError)
        assert issubclass(error, ValueError)
