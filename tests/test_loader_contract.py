"""What loops, trainers and checkpoints may rely on: once for rows in memory, for a stream, and for both samplers.

docs/contract.md lists the whole of it, with what is tested elsewhere.
"""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import random
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

import fastbalance as fb
from fastbalance.errors import ColumnError

from .test_stream import grouped, layout_of, streaming

ROOT = Path(__file__).parents[1]
GROUPS = [np.random.default_rng(k).choice(3, 42, p=[0.7, 0.2, 0.1]).tolist() for k in range(6)]
LABELS = np.concatenate(GROUPS)
N_ROWS, N_BATCHES = 252, 21
KINDS = ["resident", "stream", "batches", "rows"]
pytestmark = pytest.mark.filterwarnings("ignore::fastbalance.errors.ReadWarning")

Run = fb.BalancedLoader | fb.BalancedBatchSampler | fb.BalancedSampler


def make(kind: str, streamed: Sequence[int] = (0, 1), **options: Any) -> Run:
    """21 batches of 12 rows, or 252 single rows. A stream keeps class 2 in memory."""
    options = {"seed": 5} | options
    if kind == "stream":
        return streaming(grouped(GROUPS), layout_of(48, 2, streamed), lanes=options.get("world_size", 1), **options)
    if kind == "rows":
        return fb.BalancedSampler(LABELS, **{name: value for name, value in options.items() if name != "batch_size"})
    options = {"batch_size": 12} | options
    if kind == "batches":
        return fb.BalancedBatchSampler(LABELS, **options)
    return fb.BalancedLoader(grouped(GROUPS), device="cpu", extras=("row", "class_id"), **options)


def rows_in(item: Any) -> list[int]:
    return item["row"].tolist() if isinstance(item, dict) else [item] if isinstance(item, int) else item


def rows_of(run: Run, epochs: int = 1) -> list[list[int]]:
    return [rows_in(item) for _ in range(epochs) for item in run]


def take(run: Run, n: int) -> list[list[int]]:
    """The first `n` items of an iteration that is then left."""
    return [rows_in(item) for _, item in zip(range(n), run, strict=False)]


def position(run: Run) -> tuple[int, int]:
    state = run.state_dict()
    return state["epoch"], state["batch"]


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


# ------------------------------------------------------------------------------------------------- the state


def test_a_state_of_the_last_step_and_one_after_the_loop_give_the_next_full_epoch(kind):
    """In the last step torchdata saves an epoch with nothing left; here both states are the next epoch's start."""
    run = make(kind)
    for _ in run:
        last = run.state_dict()
    after = run.state_dict()
    wanted = rows_of(run)
    assert last == after
    assert len(wanted) == len(run)
    again = make(kind)
    again.load_state_dict(after)
    assert rows_of(again) == wanted


def test_two_epochs_a_state_and_two_epochs_are_four(kind):
    run, again = make(kind), make(kind, seed=99)
    got = rows_of(run, 2)
    again.load_state_dict(json.loads(json.dumps(run.state_dict())))
    got += rows_of(again, 2)
    assert got == rows_of(make(kind), 4)
    n = len(run)
    assert all(got[:n] != got[n * epoch : n * epoch + n] for epoch in (1, 2, 3))


def test_a_state_taken_before_the_start_rewinds(kind):
    run = make(kind)
    start = run.state_dict()
    wanted = rows_of(run, 2)
    take(run, 3)
    run.load_state_dict(start)
    assert rows_of(run, 2) == wanted


def test_states_of_one_loop_are_loaded_back_and_forth(kind):
    run = make(kind)
    start, wanted = run.state_dict(), rows_of(make(kind))
    got = take(run, 4)
    middle = run.state_dict()
    for state, rest in ((middle, wanted[4:]), (start, wanted), (middle, wanted[4:])):
        run.load_state_dict(state)
        assert rows_of(run) == rest
    assert got == wanted[:4]


def test_a_state_is_loaded_inside_a_loop_that_is_then_left(kind):
    run, wanted = make(kind), rows_of(make(kind))
    for n, _ in enumerate(run, start=1):
        if n == 2:
            early = run.state_dict()
        if n == 9:
            run.load_state_dict(early)
            break
    assert position(run) == (0, 2)
    assert rows_of(run) == wanted[2:]


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_state_is_loaded_beside_an_open_iteration(kind, goes_on):
    """That one is not forgotten, as torchdata does it: if it goes on, it moves the position again."""
    run, wanted = make(kind), rows_of(make(kind), 2)
    items = iter(run)
    next(items)
    state = run.state_dict()
    for _ in range(6):
        next(items)
    run.load_state_dict(state)
    assert position(run) == (0, 1)
    if goes_on:
        assert rows_in(next(items)) == wanted[7]
        assert position(run) == (0, 8)
    assert rows_of(run) == (wanted[len(run) :] if goes_on else wanted[1 : len(run)])


def test_asking_for_the_state_in_every_step_changes_nothing(kind):
    run, got = make(kind), []
    for n, item in enumerate(run, start=1):
        got.append(rows_in(item))
        for _ in range(2):
            assert position(run) == divmod(n, len(run))
    assert got == rows_of(make(kind))


def test_a_loaded_state_is_there_before_the_first_batch(kind):
    """Asked for again at once, after an `iter` of which nothing was taken, and after one more step."""
    run, wanted = make(kind), rows_of(make(kind))
    take(run, 6)
    state = run.state_dict()
    again = make(kind)
    again.load_state_dict(state)
    assert again.state_dict() == state
    items = iter(again)
    assert again.state_dict() == state
    next(items)
    third = make(kind)
    third.load_state_dict(again.state_dict())
    assert rows_of(third) == wanted[7:]


def test_a_state_is_a_copy(kind):
    """What the caller does to it, or the loader to itself, does not reach the other."""
    run, wanted = make(kind), rows_of(make(kind))
    take(run, 2)
    state = run.state_dict()
    saved = copy.deepcopy(state)
    again = make(kind)
    again.load_state_dict(state)
    rows_of(run)
    assert state == saved
    if state["stream"] is not None:
        state["stream"][2].clear()
    state.clear()
    assert again.state_dict() == saved
    assert rows_of(again) == wanted[2:]


def test_a_state_is_small_json_and_loads_without_pickle(kind, tmp_path):
    run = make(kind, seed=2**64 - 1)
    take(run, 5)
    state = run.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert len(json.dumps(state)) < 400
    torch.save({"loader": state}, tmp_path / "checkpoint.pt")
    again = make(kind)
    again.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["loader"])
    assert again.state_dict() == state


def test_an_error_while_reading_leaves_the_state_at_what_was_yielded():
    """A value that cannot be decoded, in a window that is read later: what was handed out counts, no more."""
    options = {"streamed": (0, 1, 2)}  # what fills a kept class reads every group at once
    wanted = rows_of(make("stream", **options))
    bad = list(dict.fromkeys(row // 42 for row in itertools.chain(*wanted)))[-1] * 42  # in the group that is read last

    def decode(value: float) -> torch.Tensor:
        if bad is not None and bad <= value < bad + 42:
            raise RuntimeError("broken")
        return torch.tensor(value)

    run, got = make("stream", decode={"x": decode}, **options), []
    with pytest.raises(ColumnError, match="broken"):
        got.extend(rows_in(item) for item in run)
    assert 0 < len(got) < N_BATCHES
    assert position(run) == (0, len(got))
    bad = None
    run.load_state_dict(run.state_dict())
    assert got + rows_of(run) == wanted


# ------------------------------------------------------------------------------------------ epochs and loops


def test_len_is_that_of_an_epoch_at_any_time(kind):
    run = make(kind)
    n = len(run)
    for step, _ in enumerate(run):
        if step in (0, n // 2, n - 1):
            assert len(run) == n
    assert step + 1 == n
    take(run, 3)
    run.load_state_dict(run.state_dict())
    assert len(run) == n
    assert len(rows_of(run)) == n - 3
    assert n == (N_ROWS if kind == "rows" else N_BATCHES)


def test_an_iteration_is_an_iterator_that_stays_at_its_end(kind):
    run = make(kind)
    items = iter(run)
    assert iter(items) is items
    assert len(list(items)) == len(run)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(items)
    assert position(run) == (1, 0)


@pytest.mark.parametrize("kind", ["resident", "batches", "rows"])
def test_iterations_side_by_side_are_consecutive_epochs(kind):
    """A stream has windows for one only, and says so."""
    run, wanted = make(kind), rows_of(make(kind), 3)
    pairs = [(rows_in(one), rows_in(other)) for one, other in zip(run, run, strict=True)]
    n = len(run)
    assert [one for one, _ in pairs] == wanted[:n]
    assert [other for _, other in pairs] == wanted[n : 2 * n]
    assert rows_of(run) == wanted[2 * n :]


def test_an_iteration_that_nothing_was_taken_of_uses_up_no_epoch(kind):
    run, wanted = make(kind), rows_of(make(kind), 2)
    kept = [iter(run), iter(run)]
    assert rows_of(run) == wanted[: len(run)]
    del kept
    iter(run)
    assert rows_of(run) == wanted[len(run) :]


@pytest.mark.parametrize("stop", ["break", "raise", "close", "del"])
def test_a_loop_that_was_left_is_followed_by_the_next_epoch(kind, stop):
    run, wanted = make(kind), rows_of(make(kind), 2)

    def leave():
        items = iter(run)
        for n, _ in enumerate(items):
            if n == 3 and stop == "raise":
                raise KeyError("the user's own")
            if n == 3:
                break
        if stop == "close":
            items.close()

    if stop == "raise":
        with pytest.raises(KeyError):
            leave()
    else:
        leave()
    assert position(run) == (0, 4)
    assert rows_of(run) == wanted[len(run) :]


def test_set_epoch_may_be_repeated_and_keeps_a_loaded_position(kind):
    run, wanted = make(kind), rows_of(make(kind), 3)
    n = len(run)
    for epoch in (1, 1, 0, 2):
        for _ in range(2):
            run.set_epoch(epoch)
        assert rows_of(run) == wanted[n * epoch : n * epoch + n]
    run.load_state_dict(run.state_dict() | {"epoch": 1, "batch": 7})
    for _ in range(2):
        run.set_epoch(1)
    assert rows_of(run) == wanted[n + 7 : 2 * n]


def test_runs_at_the_same_time_do_not_disturb_each_other(kind):
    one, other = make(kind, seed=1), make(kind, seed=2)
    pairs = [(rows_in(a), rows_in(b)) for a, b in zip(one, other, strict=True)]
    assert [a for a, _ in pairs] == rows_of(make(kind, seed=1))
    assert [b for _, b in pairs] == rows_of(make(kind, seed=2))
    assert [a for a, _ in pairs] != [b for _, b in pairs]


def test_another_thread_may_iterate(kind):
    """As prefetchers do."""
    run, got = make(kind), []
    thread = threading.Thread(target=lambda: got.extend(rows_of(run)))
    thread.start()
    thread.join(timeout=60)
    assert got == rows_of(make(kind))
    assert position(run) == (1, 0)


LEFT_OPEN = """
from tests.test_loader_contract import make
batches = iter(make("stream"))
next(batches)
print("left", flush=True)
"""


@pytest.mark.slow
def test_a_process_ends_with_a_stream_left_open():
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


# ------------------------------------------------------------------------------------------- copies and seeds


@pytest.mark.parametrize("copied", [lambda run: pickle.loads(pickle.dumps(run)), copy.deepcopy], ids=["pickle", "deep"])
def test_a_copy_goes_on_by_itself(kind, copied):
    """As it is sent to another process: from the same position, without moving the one that was copied."""
    run, wanted = make(kind), rows_of(make(kind), 2)
    n = len(run)
    take(run, 5)
    state = run.state_dict()
    run.load_state_dict(state)
    other = copied(run)
    assert other.state_dict() == state
    assert rows_of(other) == wanted[5:n]
    assert run.state_dict() == state
    other.set_epoch(1)
    assert rows_of(other) == wanted[n:]
    assert rows_of(run) == wanted[5:n]


@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_the_sampler_of_a_copy_sets_the_epoch_of_the_copy(kind):
    run = make(kind)
    other = pickle.loads(pickle.dumps(run))
    other.sampler.set_epoch(3)
    assert (position(other), position(run)) == ((3, 0), (0, 0))


def test_a_run_with_a_seed_leaves_the_global_generators_alone(kind):
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    rows_of(make(kind), 2)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert before[0].equal(after[0])
    assert before[1:] == after[1:]


def test_without_a_seed_torch_manual_seed_decides(kind):
    def run(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return rows_of(make(kind, seed=None), 2)

    first = run(3)
    assert run(3) == first
    assert run(4) != first


def test_epochs_and_seeds_differ(kind):
    run = make(kind)
    epochs = [rows_of(run), rows_of(run), rows_of(make(kind, seed=6))]
    assert len({json.dumps(rows) for rows in epochs}) == 3


@pytest.mark.parametrize("kind", ["batches", "rows"])
def test_labels_that_change_afterwards_change_nothing(kind):
    labels = LABELS.copy()
    options = {"batch_size": 12} if kind == "batches" else {}
    sampler = (fb.BalancedBatchSampler if kind == "batches" else fb.BalancedSampler)(labels, seed=5, **options)
    labels[:] = 0
    assert rows_of(sampler) == rows_of(make(kind))


# ------------------------------------------------------------------------------------------------- the ranks


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_are_disjoint_and_together_every_row(kind, world_size):
    """Where a stream keeps a class in memory, several lanes draw from all of its rows: here it keeps none."""
    options = {"balance": "natural", "batch_size": 6, "streamed": (0, 1, 2), "world_size": world_size}
    parts = [make(kind, rank=rank, **options) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    for _ in range(2):
        shares = [[row for rows in rows_of(part) for row in rows] for part in parts]
        assert {len(share) for share in shares} == {N_ROWS // world_size}
        assert sorted(itertools.chain(*shares)) == list(range(N_ROWS))


# --------------------------------------------------------------------------------- samplers in a DataLoader


class Rows(Dataset):
    """Data that says which row it was asked for, a batch at a time, and may fail at one of them."""

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return N_ROWS

    def __getitem__(self, row: int) -> int:
        if row == self.bad:
            raise RuntimeError(f"row {row} is broken")
        return row


class ManyRows(Rows):
    def __getitems__(self, rows: list[int]) -> list[int]:
        return [self[row] for row in rows]


def of(loader: DataLoader, epochs: int = 1) -> list[list[int]]:
    return [batch.tolist() for _ in range(epochs) for batch in loader]


in_workers = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_data_loader_cuts_single_rows_into_batches(drop_last):
    """252 rows in batches of 50: the last 2 are a short batch or none, and the next epoch goes on behind them."""
    rows = [row for (row,) in rows_of(make("rows"), 2)]
    wanted = [epoch[at : at + 50] for epoch in (rows[:N_ROWS], rows[N_ROWS:]) for at in range(0, N_ROWS, 50)]
    wanted = [batch for batch in wanted if len(batch) == 50 or not drop_last]
    loader = DataLoader(Rows(), batch_size=50, sampler=make("rows"), drop_last=drop_last)
    assert len(loader) == len(wanted) // 2 == (5 if drop_last else 6)
    assert of(loader, 2) == wanted
    assert list(BatchSampler(make("rows"), 50, drop_last)) == wanted[: len(loader)]


def test_a_data_loader_without_batches_gives_rows():
    loader = DataLoader(Rows(), batch_size=None, sampler=make("rows"))
    assert [[row] for row in loader] == rows_of(make("rows"))


@in_workers
@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 0},
        {"num_workers": 2, "prefetch_factor": 1},
        {"num_workers": 2, "prefetch_factor": 7, "persistent_workers": True},
        {"num_workers": 1, "persistent_workers": True, "pin_memory": False},
    ],
    ids=str,
)
def test_a_data_loader_reads_ahead_without_changing_the_order(options):
    loader = DataLoader(ManyRows(), batch_sampler=make("batches"), **options)
    assert of(loader, 3) == rows_of(make("batches"), 3)


@in_workers
def test_workers_out_of_order_give_the_same_batches():
    loader = DataLoader(ManyRows(), batch_sampler=make("batches"), num_workers=2, in_order=False)
    assert sorted(of(loader)) == sorted(rows_of(make("batches")))


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_spawned_workers(persistent):
    loader = DataLoader(
        ManyRows(), batch_sampler=make("batches"), num_workers=2,
        multiprocessing_context="spawn", persistent_workers=persistent,
    )  # fmt: skip
    assert of(loader, 2) == rows_of(make("batches"), 2)


@in_workers
def test_the_state_of_a_sampler_is_ahead_of_training_and_the_count_of_batches_mends_it():
    """What workers were asked for counts as yielded. The batches of the loop are the position to save."""
    sampler, wanted = make("batches"), rows_of(make("batches"))
    loader = DataLoader(ManyRows(), batch_sampler=sampler, num_workers=2, prefetch_factor=2)
    for trained, batch in enumerate(loader, start=1):
        assert batch.tolist() == wanted[trained - 1]
        if trained == 5:
            break
    state = sampler.state_dict()
    assert 5 < state["batch"] <= 5 + 2 * 2
    again = make("batches")
    again.load_state_dict(sampler.state_dict(seen=trained))
    assert of(DataLoader(ManyRows(), batch_sampler=again)) == wanted[5:]


@in_workers
@pytest.mark.parametrize("n_workers", [0, 2])
def test_an_error_in_the_data_set_costs_its_batch_and_the_next_loop_is_the_next_epoch(n_workers):
    wanted = rows_of(make("batches"), 2)
    data = ManyRows(bad=next(row for row in wanted[8] if LABELS[row] == 0))
    loader = DataLoader(data, batch_sampler=make("batches"), num_workers=n_workers)
    items = iter(loader)
    assert [next(items).tolist() for _ in range(8)] == wanted[:8]
    with pytest.raises(RuntimeError, match=f"row {data.bad} is broken"):
        next(items)
    assert [batch.tolist() for batch in items] == wanted[9:N_BATCHES]
    data.bad = None
    assert of(loader) == wanted[N_BATCHES:]


@in_workers
def test_without_a_seed_a_data_loader_repeats_what_manual_seed_says():
    """The DataLoader draws a seed for its workers from the same generator, whatever their number."""

    def run(seed: int, n_workers: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return of(DataLoader(ManyRows(), batch_sampler=make("batches", seed=None), num_workers=n_workers), 2)

    first = run(3, 0)
    assert run(3, 0) == run(3, 2) == first
    assert run(4, 0) != first


# ---------------------------------------------------------------------------------- in torchdata's own loader


def stateful(run: Run, n_workers: int = 0) -> DataLoader:
    from torchdata.stateful_dataloader import StatefulDataLoader

    options = {"batch_sampler": run} if isinstance(run, fb.BalancedBatchSampler) else {"sampler": run, "batch_size": 12}
    return StatefulDataLoader(ManyRows(), num_workers=n_workers, **options)


@in_workers
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it
@pytest.mark.parametrize("kind", ["batches", "rows"])
@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 8, 20, 21])
def test_a_stateful_data_loader_counts_what_training_has_seen(kind, n_workers, stop):
    wanted = of(stateful(make(kind)), 2)
    loader = stateful(make(kind), n_workers)
    items, got = iter(loader), []
    while len(got) < stop:
        got.append(next(items).tolist())
    state = loader.state_dict()
    again = stateful(make(kind, seed=99), n_workers)
    again.load_state_dict(state)
    assert got + of(again, 2 - stop // N_BATCHES) == wanted


# -------------------------------------------------------------------------------------------- the list of it


def test_the_page_names_tests_that_exist():
    page = (ROOT / "docs" / "contract.md").read_text()
    named = re.findall(r"`(test_\w+)::(test_\w+)`", page)
    assert len(named) > 30
    for module, name in named:
        assert f"\ndef {name}(" in (ROOT / "tests" / f"{module}.py").read_text(), f"{module}::{name}"
    here = set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.MULTILINE))
    assert here - {name for _, name in named} == {"test_the_page_names_tests_that_exist"}
