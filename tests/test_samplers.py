"""Samplers in a real `DataLoader`: the loader's order, as row numbers, for data of the user's own."""

from __future__ import annotations

import doctest
import json
import math
import pickle
from itertools import islice

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, TensorDataset

import fastbalance as fb
from fastbalance import BalancedBatchSampler, BalancedLoader, BalancedSampler, EpochOrder
from fastbalance.errors import ArgumentError, LabelError, PlanError, StateError

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [170, 60, 22]))


class Rows(Dataset):
    """Data of the user's own: what comes back says which row it was, and how it was asked for."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, row: int) -> int:
        assert type(row) is int
        return row


class ManyRows(Rows):
    """`DataLoader` asks for whole batches where it can."""

    def __getitems__(self, rows: list[int]) -> list[int]:
        assert type(rows) is list
        assert all(type(row) is int for row in rows)
        return rows


def batches_of(sampler: BalancedBatchSampler, epochs: int = 1) -> list[list[int]]:
    return [batch for _ in range(epochs) for batch in sampler]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


# -------------------------------------------------------------------------------------------- the same laws


@given(
    st.lists(st.integers(1, 50), min_size=2, max_size=6),
    st.integers(1, 20),
    st.sampled_from(["uniform", "sqrt", "natural"]),
    st.integers(0, 2**64 - 1),
)
def test_quotas_even_use_and_even_batches(counts, size, balance, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    size = min(size, len(labels))
    epoch_rows = None if balance == "natural" else 8 * len(labels)
    sampler = BalancedBatchSampler(labels, size, balance=balance, epoch_rows=epoch_rows, seed=seed)
    used = np.zeros(len(labels), np.int64)
    for _ in range(2):
        batches = batches_of(sampler)
        assert len(batches) == len(sampler)
        rows = np.array(flat(batches))
        assert np.bincount(labels[rows]).tolist() == sampler.plan.quotas.tolist()
        used += np.bincount(rows, minlength=len(labels))
        for c in range(len(counts)):
            assert np.ptp(used[labels == c]) <= 1
        share = sampler.plan.quotas / sampler.plan.epoch_rows
        for batch in batches[: sampler.plan.epoch_rows // size]:
            got = np.bincount(labels[batch], minlength=len(counts)) - share * size
            assert np.abs(got).max() <= 2 + 2 * math.log2(len(counts))


def test_batches_are_those_of_the_loader_and_of_the_order():
    loader = BalancedLoader({"y": LABELS}, "y", 12, seed=7, device="cpu", extras=("row",))
    sampler = BalancedBatchSampler(LABELS, 12, seed=7)
    got = batches_of(sampler, 3)
    assert got == [batch["row"].tolist() for _ in range(3) for batch in loader]
    class_rows = np.argsort(LABELS, kind="stable").astype(np.uint32)
    assert EpochOrder(class_rows, sampler.plan, 7)[:].tolist() == flat(got[:21])


def test_single_rows_are_the_order_of_batches_of_one():
    sampler = BalancedSampler(LABELS, seed=3)
    rows = list(sampler)
    assert len(rows) == len(sampler) == 252
    assert all(type(row) is int for row in rows)
    class_rows = np.argsort(LABELS, kind="stable").astype(np.uint32)
    assert rows == EpochOrder(class_rows, fb.make_plan([170, 60, 22]), 3)[:].tolist()
    assert np.bincount(LABELS[rows]).tolist() == [84, 84, 84]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("balance", ["uniform", "natural"])
def test_ranks_share_the_global_batches(world_size, balance):
    whole = batches_of(BalancedBatchSampler(LABELS, 24, balance=balance), 2)
    samplers = [
        BalancedBatchSampler(LABELS, 24 // world_size, balance=balance, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {len(sampler) for sampler in samplers} == {11}
    shares = [batches_of(sampler, 2) for sampler in samplers]
    assert [flat(list(parts)) for parts in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_single_rows(world_size):
    samplers = [BalancedSampler(LABELS, rank=rank, world_size=world_size, seed=4) for rank in range(world_size)]
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(sampler) for sampler in samplers} == {252 // world_size}
    assert np.bincount(LABELS[flat(shares)]).tolist() == [84, 84, 84]
    whole = BalancedBatchSampler(LABELS, world_size, seed=4)
    assert [list(rows) for rows in zip(*shares, strict=True)] == batches_of(whole)


def test_more_rows_than_multinomial_takes():
    """`WeightedRandomSampler` refuses more than 2^24."""
    labels = np.zeros(2**24 + 5, np.uint8)
    labels[::1000] = 1
    batch = next(iter(BalancedBatchSampler(labels, 256)))
    assert len(batch) == 256
    assert labels[batch].sum() == 128
    assert len({row for row in batch if row % 1000}) == 128


# --------------------------------------------------------------------------------------- in a DataLoader


@pytest.mark.parametrize("rows", [Rows, ManyRows])
@pytest.mark.parametrize("kind", [BalancedBatchSampler, BalancedSampler])
def test_in_a_data_loader(rows, kind):
    if kind is BalancedBatchSampler:
        loader = DataLoader(rows(252), batch_sampler=BalancedBatchSampler(LABELS, 12, seed=1))
        wanted = batches_of(BalancedBatchSampler(LABELS, 12, seed=1), 3)
    else:
        loader = DataLoader(rows(252), batch_size=12, sampler=BalancedSampler(LABELS, seed=1))
        alone = BalancedSampler(LABELS, seed=1)
        wanted = np.array([list(alone) for _ in range(3)]).reshape(63, 12).tolist()
    assert len(loader) == 21
    assert [batch.tolist() for _ in range(3) for batch in loader] == wanted


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_in_a_data_loader_with_workers(persistent):
    """Workers fetch ahead; the epochs are the same, and one that was left is followed by the next."""
    wanted = batches_of(BalancedBatchSampler(LABELS, 12, seed=1), 4)
    sampler = BalancedBatchSampler(LABELS, 12, seed=1)
    loader = DataLoader(ManyRows(252), batch_sampler=sampler, num_workers=2, persistent_workers=persistent)
    assert [batch.tolist() for _ in range(2) for batch in loader] == wanted[:42]
    for batch in loader:
        assert batch.tolist() == wanted[42]
        break
    assert [batch.tolist() for batch in loader] == wanted[63:]
    sampler.set_epoch(1)
    assert [batch.tolist() for batch in loader] == wanted[21:42]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_single_rows_in_a_data_loader_with_workers():
    alone = BalancedSampler(LABELS, seed=1)
    wanted = np.array([list(alone) for _ in range(2)]).reshape(-1, 12).tolist()
    sampler = BalancedSampler(LABELS, seed=1)
    loader = DataLoader(Rows(252), batch_size=12, sampler=sampler, num_workers=2)
    assert [batch.tolist() for _ in range(2) for batch in loader] == wanted


def test_both_are_torch_samplers():
    for sampler in (BalancedSampler(LABELS), BalancedBatchSampler(LABELS, 4)):
        assert isinstance(sampler, Sampler)
        assert sampler.classes == [0, 1, 2]
        assert sampler.class_counts.tolist() == [170, 60, 22]


# ------------------------------------------------------------------------------------ epochs, state and seed


@pytest.mark.parametrize("midpoint", [0, 1, 7, 20, 21, 22, 41])
@pytest.mark.parametrize("world_size", [1, 2, 6])
def test_resume(midpoint, world_size):
    wanted = batches_of(BalancedBatchSampler(LABELS, 12, seed=5), 3)
    sampler, got, state = BalancedBatchSampler(LABELS, 12, seed=5), [], None
    state = sampler.state_dict()
    while len(got) < midpoint:
        for batch in sampler:
            got.append(batch)
            state = json.loads(json.dumps(sampler.state_dict()))
            if len(got) == midpoint:
                break
    assert got == wanted[:midpoint]
    assert (state["epoch"], state["batch"]) == divmod(midpoint, 21)
    shares = []
    for rank in range(world_size):
        again = BalancedBatchSampler(LABELS, 12 // world_size, rank=rank, world_size=world_size)
        again.load_state_dict(state)
        again.set_epoch(state["epoch"])
        shares.append(batches_of(again, 3 - midpoint // 21))
    assert [flat(list(parts)) for parts in zip(*shares, strict=True)] == wanted[midpoint:]


def test_resume_of_single_rows():
    sampler = BalancedSampler(LABELS, seed=5)
    wanted = [*sampler, *sampler]
    sampler.set_epoch(0)
    rows = [row for _, row in zip(range(100), sampler, strict=False)]
    again = BalancedSampler(LABELS)
    again.load_state_dict(sampler.state_dict())
    assert rows + list(again) + list(again) == wanted


# --------------------------------------------------------------------------- the state that training has seen


@given(
    first=st.integers(0, 20),
    ahead=st.integers(0, 21),
    seen=st.integers(0, 21),
    world_size=st.sampled_from([1, 2, 6]),
    epoch=st.integers(0, 2),
)
def test_a_state_of_what_was_seen_is_that_of_a_sampler_that_stopped_there(first, ahead, seen, world_size, epoch):
    """For every n, however far the sampler was asked ahead, from the start of an epoch or from inside it."""
    ahead = min(ahead, 21 - first)
    seen = min(seen, ahead)

    def ranks() -> list[BalancedBatchSampler]:
        options = {"world_size": world_size, "seed": 3}
        samplers = [BalancedBatchSampler(LABELS, 12 // world_size, rank=rank, **options) for rank in range(world_size)]
        for sampler in samplers:
            sampler.load_state_dict(sampler.state_dict() | {"epoch": epoch, "batch": first})
        return samplers

    samplers = ranks()
    iterations = [iter(sampler) for sampler in samplers]
    for items in iterations:
        assert len(list(islice(items, ahead))) == ahead
    states = [json.loads(json.dumps(sampler.state_dict(seen=seen))) for sampler in samplers]
    assert all(state == states[0] for state in states)
    assert (states[0]["epoch"], states[0]["batch"]) == (epoch + (first + seen) // 21, (first + seen) % 21)
    plain = BalancedBatchSampler(LABELS, 12, seed=3)
    plain.load_state_dict(plain.state_dict() | {"epoch": epoch, "batch": first})
    if seen:
        list(islice(plain, seen))
    assert states[0] == plain.state_dict()
    for wrong in (-1, ahead + 1):
        with pytest.raises(ArgumentError, match=f"seen: got {wrong}; "):
            samplers[0].state_dict(seen=wrong)


def test_a_state_of_what_was_seen_by_single_rows_counts_rows():
    sampler = BalancedSampler(LABELS, seed=3)
    rows = list(sampler)
    again = BalancedSampler(LABELS)
    again.load_state_dict(sampler.state_dict(seen=36))
    assert list(again) == rows[36:]
    assert (sampler.state_dict(seen=252)["epoch"], sampler.state_dict(seen=252)["batch"]) == (1, 0)


@pytest.mark.parametrize("seen", [-1, 6, 1.0, "5", True], ids=str)
def test_what_was_not_yielded_cannot_have_been_seen(seen):
    sampler = BalancedBatchSampler(LABELS, 12)
    list(islice(sampler, 5))
    before = sampler.state_dict()
    with pytest.raises(ArgumentError) as caught:
        sampler.state_dict(seen=seen)
    assert str(caught.value) == (
        f"seen: got {seen!r}; allowed: an integer in [0, 6): no more than the iteration begun last has yielded."
    )
    assert sampler.state_dict() == before == sampler.state_dict(seen=5)


def test_which_iteration_is_counted():
    """The one begun last; one that was made, but has not begun, counts with 0 where it will begin."""

    def place(seen: int) -> tuple[int, int]:
        state = sampler.state_dict(seen=seen)
        return state["epoch"], state["batch"]

    sampler = BalancedBatchSampler(LABELS, 12)
    assert place(0) == (0, 0)
    items = iter(sampler)
    assert place(0) == (0, 0)
    list(islice(items, 5))
    assert [place(n) for n in (0, 5)] == [(0, 0), (0, 5)]
    iter(sampler)  # Lightning makes one and throws it away
    assert place(0) == (1, 0)
    with pytest.raises(ArgumentError, match=r"seen: got 5; allowed: an integer in \[0, 1\)"):
        place(5)
    next(items)
    assert [place(n) for n in (0, 6)] == [(0, 0), (0, 6)]
    later = iter(sampler)
    next(later)
    next(items)
    assert [place(n) for n in (0, 1)] == [(1, 0), (1, 1)]
    sampler.set_epoch(1)  # Lightning names the epoch that has begun
    assert place(1) == (1, 1)
    sampler.set_epoch(4)
    assert place(0) == (4, 0)
    sampler.load_state_dict(sampler.state_dict() | {"epoch": 2, "batch": 9})
    assert place(0) == (2, 9)
    assert len(batches_of(sampler)) == 12
    assert [place(n) for n in (0, 11, 12)] == [(2, 9), (2, 20), (3, 0)]
    sampler.load_state_dict(sampler.state_dict(seen=3))
    assert place(0) == (2, 12)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("n_workers", "persistent"), [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_data_loader_is_stopped_and_goes_on_twice(n_workers, persistent, world_size):
    """Stopped in its second epoch, and again after that resume in the same epoch: the run that never stopped."""

    def loaders(state: dict | None) -> list[DataLoader]:
        out = []
        for rank in range(world_size):
            sampler = BalancedBatchSampler(LABELS, 12 // world_size, seed=3, rank=rank, world_size=world_size)
            if state is not None:
                sampler.load_state_dict(state)
            workers = {"num_workers": n_workers, "persistent_workers": persistent}
            out.append(DataLoader(ManyRows(252), batch_sampler=sampler, **workers))
        return out

    def train(runs: list[DataLoader], n_epochs: int, stop: int) -> dict:
        for epoch in range(n_epochs):
            for seen, parts in enumerate(zip(*runs, strict=True), start=1):
                got.append(flat([part.tolist() for part in parts]))
                states = [run.batch_sampler.state_dict(seen=seen) for run in runs]
                if epoch == n_epochs - 1 and seen == stop:
                    assert all(state == states[0] for state in states)
                    return states[0]
        raise AssertionError("the loop was not stopped")

    got: list[list[int]] = []
    state = train(loaders(None), 2, 4)
    assert (state["epoch"], state["batch"]) == (1, 4)
    state = train(loaders(state), 1, 7)
    assert (state["epoch"], state["batch"]) == (1, 11)
    state = train(loaders(state), 1, 10)
    assert (state["epoch"], state["batch"]) == (2, 0)
    train(loaders(state), 1, 21)
    assert got == batches_of(BalancedBatchSampler(LABELS, 12, seed=3), 3)


def test_the_docstrings_are_true():
    done = doctest.testmod(fb.samplers)
    assert done.attempted >= 4
    assert done.failed == 0


def test_state_and_loader_share_a_form():
    state = BalancedBatchSampler(LABELS, 12).state_dict()
    loader = BalancedLoader({"y": LABELS}, "y", 12, device="cpu").state_dict()
    assert set(state) == set(loader)
    assert {**state, "data": ""} == {**loader, "data": ""}


def test_states_of_others_are_refused():
    sampler = BalancedBatchSampler(LABELS, 12)
    other = LABELS.copy()
    i, j = np.flatnonzero(other == 0)[0], np.flatnonzero(other == 1)[0]
    other[i], other[j] = 1, 0  # as many rows of each class, but not the same ones
    state = BalancedBatchSampler(other, 12).state_dict()
    with pytest.raises(
        StateError, match=f"state: got data {state['data']}; allowed: data {sampler.state_dict()['data']}"
    ):
        sampler.load_state_dict(state)
    state = BalancedBatchSampler(LABELS, 6).state_dict()
    with pytest.raises(StateError, match=f"state: got plan {state['plan']}; allowed: plan {sampler.plan.fingerprint}"):
        sampler.load_state_dict(state)
    for state in (None, {}, "x"):
        with pytest.raises(StateError, match="allowed: what state_dict"):
            sampler.load_state_dict(state)
    before = sampler.state_dict()
    with pytest.raises(StateError, match="seed"):
        sampler.load_state_dict({**before, "epoch": 5, "seed": "x"})
    assert sampler.state_dict() == before


def test_epochs():
    sampler = BalancedBatchSampler(LABELS, 12)
    wanted = batches_of(BalancedBatchSampler(LABELS, 12), 3)
    iter(sampler)
    next(iter(sampler))
    assert batches_of(sampler) == wanted[21:42]
    for epoch in (2, 0, 1):
        sampler.set_epoch(epoch)
        sampler.set_epoch(epoch)
        assert batches_of(sampler) == wanted[21 * epoch : 21 * epoch + 21]
    with pytest.raises(ArgumentError, match="epoch: got -1; allowed: an integer "):
        sampler.set_epoch(-1)


def test_a_seed_of_none_is_drawn_from_torch():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sampler = BalancedBatchSampler(LABELS, 12, seed=None)
    len(sampler)
    assert torch.equal(torch.get_rng_state(), before)
    got = batches_of(sampler)
    torch.manual_seed(3)
    assert batches_of(BalancedBatchSampler(LABELS, 12, seed=None)) == got
    assert batches_of(BalancedBatchSampler(LABELS, 12, seed=sampler.seed)) == got
    assert batches_of(BalancedBatchSampler(LABELS, 12, seed=None)) != got


# ----------------------------------------------------------------------------------------------- the labels

WORDS = ["no", "yes", "no", "maybe", "no", "yes"]
HF = datasets.Dataset.from_dict({"y": [0, 1, 0, 2, 0, 1], "word": WORDS, "x": [float(row) for row in range(6)]})


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 0, 2, 0, 1],
        (0, 1, 0, 2, 0, 1),
        np.array([0, 1, 0, 2, 0, 1], np.uint8),
        np.array([-5, 7, -5, 2**40, -5, 7]),
        torch.tensor([0, 1, 0, 2, 0, 1]),
        torch.tensor([0, 1, 0, 2, 0, 1], dtype=torch.int8),
        np.array([0, 9, 1, 9, 0, 9, 2, 9, 0, 9, 1, 9])[::2],
        pa.array([0, 1, 0, 2, 0, 1]),
        pa.chunked_array([[0, 1, 0], [], [2, 0, 1]]),
        pd.Series([0, 1, 0, 2, 0, 1]),
        pd.Series([0, 1, 0, 2, 0, 1], index=[5, 3, 1, 0, 2, 4]),
        pd.Series([0, 1, 0, 2, 0, 1], dtype="Int8"),
        HF["y"],
        HF.with_format("torch")["y"],
        np.array([0, 2**63, 0, 2**64 - 1, 0, 2**63], np.uint64),
        np.array(["2020-01-01", "2020-01-02", "2020-01-01", "2020-01-03", "2020-01-01", "2020-01-02"], "M8[D]"),
        [b"a", b"b", b"a", b"c", b"a", b"b"],
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', '')}",
)
def test_labels_of_any_kind(labels):
    sampler = BalancedBatchSampler(labels, 3, seed=1)
    assert sampler.class_counts.tolist() == [3, 2, 1]
    assert batches_of(sampler) == batches_of(BalancedBatchSampler([0, 1, 0, 2, 0, 1], 3, seed=1))


@pytest.mark.parametrize(
    "labels",
    [
        WORDS,
        np.array(WORDS),
        np.array(WORDS, dtype=object),
        pa.array(WORDS),
        pa.array(WORDS).dictionary_encode(),
        pa.chunked_array([WORDS[:2], WORDS[2:]]).dictionary_encode(),
        pd.Series(WORDS),
        pd.Series(WORDS, dtype="category"),
        HF["word"],
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', '')}",
)
def test_labels_that_are_strings(labels):
    sampler = BalancedBatchSampler(labels, 3, seed=1)
    assert sampler.classes == ["maybe", "no", "yes"]
    assert sampler.class_counts.tolist() == [1, 3, 2]
    target = fb.balance.target({"no": 1, "yes": 1, "maybe": 0})
    rows = flat(batches_of(BalancedBatchSampler(labels, 2, balance=target, epoch_rows=12)))
    assert np.bincount(rows, minlength=6).tolist() == [2, 3, 2, 0, 2, 3]


def test_labels_that_are_bools():
    for labels in ([True, False, False], np.array([True, False, False]), torch.tensor([True, False, False])):
        sampler = BalancedBatchSampler(labels, 2)
        assert sampler.classes == [False, True]
        assert sampler.class_counts.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([], "shape (0,)"),
        (np.zeros((3, 2), int), "shape (3, 2)"),
        (torch.tensor(1), "shape ()"),
        ([0.0, 1.0], "float64"),
        (torch.tensor([0.0, 1.0]), "float32"),
        (np.array([1, np.nan]), "float64"),
        ([{}, {}], "objects of type dict"),
        (None, "one NoneType"),
        (7, "one int"),
        ("yes", "one str"),
        (b"yes", "one bytes"),
        (pa.array([0.0, 1.0]), "float64"),
        (pa.array([[0], [1]]), "shape (2, 1)"),
    ],
    ids=str,
)
def test_labels_that_are_refused(labels, got):
    for make in (lambda: BalancedSampler(labels), lambda: BalancedBatchSampler(labels, 1)):
        with pytest.raises(LabelError) as caught:
            make()
        assert str(caught.value) == (
            f"labels: got {got}; allowed: integers, bools or strings, one for each row. "
            "Map them to class numbers first; a float label needs bins."
        )


@pytest.mark.parametrize(
    "labels",
    [
        [[1], [1, 2]],
        torch.tensor([1, 2], dtype=torch.bfloat16),
        np.array(["2020-01-01", "NaT"], "M8[D]"),
        [1, "1", 2],
        np.array([1 + 2j, 3]),
    ],
    ids=["ragged", "bfloat16", "NaT", "numbers and strings", "complex"],
)
def test_labels_that_are_no_labels(labels):
    """Not even the int 1 and the string "1" as one class: nothing is mended in silence."""
    with pytest.raises(LabelError, match="labels"):
        BalancedBatchSampler(labels, 1)


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([1, None, 2], "1 null in 3 rows, first in row 1"),
        ([None, "a", None], "2 nulls in 3 rows, first in row 0"),
        (np.array(["a", None], object), "1 null in 2 rows, first in row 1"),
        (pa.array([3, 1, None]), "1 null in 3 rows, first in row 2"),
        (pa.array([True, None, None]), "2 nulls in 3 rows, first in row 1"),
        (pa.array(["a", None, "b"]).dictionary_encode(), "1 null in 3 rows, first in row 1"),
        (pa.DictionaryArray.from_arrays([0, 1], ["a", None]), "1 null in 2 rows, first in row 1"),
        (pa.nulls(2), "2 nulls in 2 rows, first in row 0"),
        (pa.chunked_array([[0, 1], [None]]), "1 null in 3 rows, first in row 2"),
        (pd.Series([0, None, 1]), "1 null in 3 rows, first in row 1"),
        (pd.Series([0, None, 1], dtype="Int64"), "1 null in 3 rows, first in row 1"),
        (pd.Series([True, None], dtype="boolean"), "1 null in 2 rows, first in row 1"),
        (pd.Series(["a", None]), "1 null in 2 rows, first in row 1"),
        (pd.Series(["a", None, "b"], dtype="category"), "1 null in 3 rows, first in row 1"),
        (datasets.Dataset.from_dict({"y": [0, None, 1]})["y"], "1 null in 3 rows, first in row 1"),
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', getattr(labels, 'type', ''))}",
)
def test_labels_with_nulls(labels, got):
    with pytest.raises(LabelError) as caught:
        BalancedBatchSampler(labels, 1)
    assert str(caught.value) == (
        f"labels: got {got}; allowed: integers, bools or strings, one for each row. "
        "Drop these rows, or give them a label of their own."
    )


def test_labels_of_one_class():
    with pytest.raises(LabelError) as caught:
        BalancedSampler([1, 1])
    assert str(caught.value) == (
        "labels: got one class only, 1; allowed: two classes or more: one has nothing to balance."
    )
    with pytest.raises(LabelError, match=r"labels: got one class only, 'a'; allowed"):
        BalancedSampler(["a", "a"])


# ---------------------------------------------------------------------------------- labels of a data set


class Undecoded(Rows):
    """Items that cost too much to be looked at for their labels."""

    targets = (0, 1, 0, 2, 0, 1)

    def __getitem__(self, row: int) -> int:
        raise AssertionError("an item was decoded")


TABLE = pa.table({"y": [0, 1, 0, 2, 0, 1], "word": WORDS})


@pytest.mark.parametrize(
    ("data", "label"),
    [
        ({"y": [0, 1, 0, 2, 0, 1], "x": None}, "y"),
        ({"y": torch.tensor([0, 1, 0, 2, 0, 1])}, "y"),
        (TABLE, "y"),
        (TABLE.to_batches()[0], "y"),
        (TABLE.to_pandas(), "word"),
        (HF, "y"),
        (HF.with_format("torch"), "word"),
        (HF.with_format("numpy", columns=["x"]), "y"),
        (HF.with_transform(lambda rows: 1 / 0), "y"),
        (HF.select([5, 4, 3, 2, 1, 0]).select([5, 4, 3, 2, 1, 0]), "y"),
        (Undecoded(6), lambda data: data.targets),
        (TensorDataset(torch.arange(6), torch.tensor(Undecoded.targets)), lambda data: data.tensors[1]),
        (Subset(Rows(9), [3, 4, 5, 6, 7, 8]), lambda data: [[0, 1, 0, 2, 0, 1][row - 3] for row in data.indices]),
        (HF, lambda data: data["y"]),
        (HF, lambda data: (row % 2 and 1 + (row == 3) for row in range(len(data)))),
        ([("a", 0), ("b", 1), ("c", 0), ("d", 2), ("e", 0), ("f", 1)], lambda data: [y for _, y in data]),
        ({"y": [0, 1, 0, 2, 0, 1]}, lambda data: data["y"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_labels_of_a_data_set(data, label):
    sampler = BalancedBatchSampler(data, 3, seed=1, label=label)
    assert sorted(sampler.class_counts.tolist()) == [1, 2, 3]
    same = WORDS if "no" in sampler.classes else [0, 1, 0, 2, 0, 1]
    assert batches_of(sampler) == batches_of(BalancedBatchSampler(same, 3, seed=1))
    assert list(BalancedSampler(data, label=label)) == list(BalancedSampler(same))


def test_a_function_that_finds_labels_is_not_kept():
    """It may be a lambda, which cannot be sent to another process; nor is the data set kept."""
    sampler = BalancedBatchSampler(Undecoded(6), 3, label=lambda data: data.targets)
    assert batches_of(pickle.loads(pickle.dumps(sampler))) == batches_of(sampler)


def test_columns_as_a_transform_makes_them():
    """A column of a transformed data set is what the transform says; its name means what is stored."""
    data = HF.with_transform(lambda rows: {"y": [-y for y in rows["y"]]})
    assert BalancedBatchSampler(data["y"], 3).classes == [-2, -1, 0]
    assert BalancedBatchSampler(data, 3, label="y").classes == [0, 1, 2]


NO_COLUMNS = "the name of a column of a dict, pyarrow.Table, pandas.DataFrame or datasets.Dataset"


@pytest.mark.parametrize(
    ("data", "label", "text"),
    [
        *(
            (
                data,
                None,
                f"labels: got a data set ({name}) without label=; allowed: the label of each row, or a data set with "
                'label=. Say where its labels are: label="y", or label=lambda data: data.targets.',
            )
            for data, name in [
                ({"y": [0, 1]}, "dict"), (TABLE, "Table"), (TABLE.to_pandas(), "DataFrame"), (HF, "Dataset"),
                (Undecoded(6), "Undecoded"), (Subset(Undecoded(6), [0]), "Subset"),
            ]
        ),
        (TABLE, "z", "label: got no column 'z'; allowed: one of ['y', 'word']."),
        ({"y": [0, 1]}, "z", "label: got no column 'z'; allowed: one of ['y']."),
        (HF, "z", "label: got no column 'z'; allowed: one of ['y', 'word', 'x']."),
        (
            pa.table([[0, 1], [0, 1]], ["y", "y"]),
            "y",
            "label: got 2 columns 'y'; allowed: one of ['y', 'y'].",
        ),
        (
            Undecoded(6),
            "labels",
            f"label: got 'labels' for Undecoded, which has no columns; allowed: {NO_COLUMNS}. "
            "Give a function, as in label=lambda data: data.labels.",
        ),
        (
            [0, 1],
            "a b",
            f"label: got 'a b' for list, which has no columns; allowed: {NO_COLUMNS}. "
            "Give a function, as in label=lambda data: data.targets.",
        ),
        (
            HF.to_iterable_dataset(),
            "y",
            f"label: got 'y' for IterableDataset, which has no columns; allowed: {NO_COLUMNS}. "
            "Give a function, as in label=lambda data: data.y.",
        ),
        *(
            (
                HF,
                label,
                f"label: got {label!r}; allowed: the name of a column, or a function of the data set that returns the "
                "label of each row.",
            )
            for label in (1, ("y", "word"))
        ),
        (
            Subset(Undecoded(6), [0, 1]),
            lambda data: data.dataset.targets,
            "label: got 6 labels for a data set (Subset) of 2 rows; allowed: one for each row. "
            "Of a Subset: label=lambda data: [data.dataset.targets[row] for row in data.indices].",
        ),
        (
            Undecoded(6),
            lambda data: None,
            "label: got one NoneType; allowed: integers, bools or strings, one for each row. "
            "Map them to class numbers first; a float label needs bins.",
        ),
        (
            HF,
            "x",
            "label 'x': got float64; allowed: integers, bools or strings, one for each row. "
            "Map them to class numbers first; a float label needs bins.",
        ),
        (
            {"y": pa.array([1, None])},
            "y",
            "label 'y': got 1 null in 2 rows, first in row 1; allowed: integers, bools or strings, one for each row. "
            "Drop these rows, or give them a label of their own.",
        ),
        (
            {"y": [1, 1]},
            "y",
            "label 'y': got one class only, 1; allowed: two classes or more: one has nothing to balance.",
        ),
    ],
    ids=lambda value: value.partition(";")[0] if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_data_sets_that_have_no_labels(data, label, text):
    with pytest.raises(LabelError) as caught:
        BalancedBatchSampler(data, 1, label=label)
    assert str(caught.value) == text


# ----------------------------------------------------------------------------------------- other bad input


@pytest.mark.parametrize("size", [0, -1, 2.0, "8", None, True], ids=str)
def test_batch_sizes(size):
    with pytest.raises(ArgumentError) as caught:
        BalancedBatchSampler(LABELS, size)
    assert str(caught.value) == f"batch_size: got {size!r}; allowed: an integer in [1, 2^30)."


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_size": 300}, PlanError, "batch_size: got 300 rows in a global batch, but an epoch of 252 rows"),
        ({"balance": "even"}, ArgumentError, "balance: got 'even'; allowed: "),
        ({"epoch_rows": 0}, ArgumentError, "epoch_rows: got 0; allowed: "),
        ({"tail": "cut"}, ArgumentError, "tail: got 'cut'; allowed: "),
        ({"seed": -1}, ArgumentError, "seed: got -1; allowed: "),
        ({"seed": 1.5}, ArgumentError, "seed: got 1.5; allowed: "),
        ({"rank": 0}, ArgumentError, "rank, world_size: got 0, None; allowed: both, or neither"),
        ({"rank": 2, "world_size": 2}, ArgumentError, "rank: got 2; allowed: an integer in [0, 2)"),
        ({"rank": 0, "world_size": 0}, ArgumentError, "world_size: got 0; allowed: "),
        ({"rank": 0, "world_size": 30}, PlanError, "batch_size: got 360 rows in a global batch"),
    ],
    ids=str,
)
def test_arguments_are_checked_when_the_sampler_is_made(options, error, text):
    with pytest.raises(error) as caught:
        BalancedBatchSampler(LABELS, **{"batch_size": 12, **options})
    assert str(caught.value).startswith(text)


def test_a_plan_that_only_several_ranks_can_have():
    """9 rows for 10 classes are too few, but with two ranks an epoch has 12: that is no mistake."""
    sampler = BalancedBatchSampler(np.arange(40) % 10, 3, epoch_rows=7, rank=0, world_size=2)
    assert sampler.plan.quotas.tolist() == [2, 2, *[1] * 8]
    assert [len(batch) for batch in sampler] == [3, 3]
