"""Hooks of a batch, and the random numbers of its rows: pure functions of the draw."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import torch
from fastbalance.kernels import draws
from hypothesis import given
from hypothesis import strategies as st

import fastbalance as fb
from fastbalance.errors import ArgumentError

from . import oracle
from .regrouped import write

DATA = {"x": torch.arange(300.0), "y": torch.arange(300) % 10 == 0}
WORD = 1 << 32


def load(source=DATA, batch_size=12, **options):
    return fb.BalancedLoader(source, "y", batch_size, **{"device": "cpu", "extras": ("row", "seed")} | options)


def signed(value):
    return value - (1 << 64) if value >> 63 else value


def seed_of(position, epoch, seed):
    words = oracle.philox4x32_10((position % WORD, position // WORD, epoch, 10), (seed % WORD, seed // WORD))
    return signed(words[0] + words[1] * WORD)


def words_of(seed, call, n):
    key = seed % WORD, (seed >> 32) % WORD
    return [word for i in range(-(-n // 4)) for word in oracle.philox4x32_10((i, call, 0, 11), key)][:n]


# ------------------------------------------------------------------------------------------------ seeds


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1), st.sampled_from([1, 2, 3, 4, 6]))
def test_seeds_are_those_of_the_contract(seed, epoch, world_size):
    loaders = [load(batch_size=12 // world_size, seed=seed, rank=r, world_size=world_size) for r in range(world_size)]
    for loader in loaders:
        loader.set_epoch(epoch)
    for number, shares in enumerate(zip(*loaders, strict=True)):
        seeds = torch.cat([share["seed"] for share in shares]).tolist()
        assert seeds == [seed_of(number * 12 + place, epoch, seed) for place in range(12)]


def test_every_draw_has_its_own():
    loader = load()
    pairs = [(b["row"], b["seed"]) for _ in range(3) for b in loader]
    rows, seeds = (torch.cat(line) for line in zip(*pairs, strict=True))
    assert len(seeds.unique()) == len(seeds)
    assert len(rows.unique()) == 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("transforms") / "data", np.arange(20_000) % 10 == 0, group_rows=200)


def drawn(loaders):
    """What all ranks get: (row, seed) of each batch, sorted."""
    return [
        sorted(pair for share in shares for pair in zip(share["row"].tolist(), share["seed"].tolist(), strict=True))
        for shares in zip(*loaders, strict=True)
    ]


def test_seeds_of_a_stream_hang_on_neither_ranks_nor_a_resume(folder):
    options = {"memory": "200KiB", "lanes": 6}
    alone = load(folder, 120, memory="600KiB", lanes=6)
    start = [load(folder, 60, rank=r, world_size=2, **options) for r in range(2)]
    state = start[0].state_dict()
    assert state["stream"] is not None
    alone.load_state_dict(state)
    wanted = drawn([alone])
    assert drawn(start) == wanted
    seeds = [seed for batch in wanted for _, seed in batch]
    assert len(set(seeds)) == len(seeds) == 20_040
    resumed = [load(folder, 40, rank=r, world_size=3, **options) for r in range(3)]
    for loader in resumed:
        loader.load_state_dict(state | {"batch": 101})
    assert drawn(resumed) == wanted[101:]


# ------------------------------------------------------------------------------------------------ random numbers


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=5), st.integers(0, 9))
def test_random_numbers_are_those_of_the_contract(seeds, n):
    random = fb.RowRandom(torch.tensor(seeds))
    uniform, integers, normal = random.uniform(n), random.integers(1000, n), random.normal(n)
    assert (uniform.dtype, integers.dtype, normal.dtype) == (torch.float32, torch.int64, torch.float32)
    for i, seed in enumerate(seeds):
        assert uniform[i].tolist() == [(word >> 8) / 2**24 for word in words_of(seed, 0, n)]
        assert integers[i].tolist() == [word * 1000 >> 32 for word in words_of(seed, 1, n)]
        words = np.array(words_of(seed, 2, 2 * n), np.float64)
        wanted = np.sqrt(-2 * np.log((words[:n] + 1) / WORD)) * np.cos(2 * np.pi * words[n:] / WORD)
        np.testing.assert_allclose(normal[i], wanted, atol=1e-6)


def test_random_numbers_hang_on_their_row_alone():
    seeds = torch.arange(8)
    together, apart = fb.RowRandom(seeds), fb.RowRandom(seeds[[5]])
    for shape in ((), (3,), (2, 5)):
        numbers = together.uniform(*shape)
        assert numbers.shape == (8, *shape)
        assert torch.equal(numbers[5:6], apart.uniform(*shape))


def test_random_numbers_have_their_distributions():
    seeds = torch.cat([batch["seed"] for batch in load(epoch_rows=12_000)])
    random = fb.RowRandom(seeds)
    assert scipy.stats.kstest(random.uniform().numpy(), "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(random.normal(3).numpy().reshape(-1), "norm").pvalue > 1e-3
    counts = torch.bincount(random.integers(7, 2).reshape(-1), minlength=7)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
    first, second = random.uniform().numpy(), random.uniform().numpy()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: fb.RowRandom([1]),
            'seeds: got list; allowed: int64 [B]. Give batch["seed"] of a loader with extras=("seed",).',
        ),
        (
            lambda: fb.RowRandom(torch.zeros(2, 3)),
            'seeds: got torch.float32 [2, 3]; allowed: int64 [B]. Give batch["seed"] of a loader with '
            'extras=("seed",).',
        ),
        (lambda: fb.RowRandom(torch.arange(2)).integers(0), "high: got 0; allowed: an integer in [1, 2^31)."),
        (lambda: fb.RowRandom(torch.arange(2)).uniform(-1), "shape: got -1; allowed: an integer in [0, 2^31)."),
    ],
)
def test_random_numbers_that_are_refused(call, text):
    with pytest.raises(ArgumentError) as error:
        call()
    assert str(error.value) == text


@given(st.integers(0, (1 << 62)), st.integers(1, 9), st.integers(0, 5), st.integers(0, 9), st.integers(0, 1 << 63))
def test_numba_and_torch_give_the_same_bits(first, batch_rows, n_batches, rows, seed):
    arguments = first, batch_rows, n_batches, rows, 7, seed, torch.device("cpu")
    seeds = draws.seeds(*arguments)
    assert torch.equal(seeds, draws.seeds_of_tensors(*arguments))
    of_draws = seeds.reshape(-1)
    assert torch.equal(draws.words(of_draws, 3, rows), draws.words_of_tensors(of_draws, 3, rows))


# ------------------------------------------------------------------------------------------------ hooks


def noisy(batch):
    batch["x"] = batch["x"] + fb.RowRandom(batch["seed"]).normal()
    return batch


@pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])
def test_augmentation_is_the_same_after_a_resume(folder, streamed):
    memory = "400KiB" if streamed else "1GiB"
    loader = load(folder, 120, memory=memory, transform=noisy)
    whole = [batch["x"] for batch in loader]
    stopped, resumed = (load(folder, 120, memory=memory, transform=noisy) for _ in range(2))
    batches = iter(stopped)
    first = [next(batches)["x"] for _ in range(57)]
    resumed.load_state_dict(stopped.state_dict())
    rest = [batch["x"] for batch in resumed]
    assert all(torch.equal(a, b) for a, b in zip(first + rest, whole, strict=True))
    assert not torch.equal(torch.cat(whole), torch.cat(whole).round())


def test_a_transform_may_return_anything():
    pairs = list(load(transform=lambda batch: (batch["x"], batch["row"])))
    assert all(torch.equal(x.long(), row) for x, row in pairs)
    assert len(pairs) == 25


def test_an_error_in_a_transform_leaves_the_position_where_it_was():
    def fails_at_the_third(batch, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("mine")
        return batch

    loader, wanted = load(transform=fails_at_the_third), list(load())
    with pytest.raises(RuntimeError, match="mine"):
        list(loader)
    assert loader.state_dict()["batch"] == 2
    again = load()
    again.load_state_dict(loader.state_dict())
    assert torch.equal(next(iter(again))["row"], wanted[2]["row"])


TEXT = pa.table({"text": [f"row {i}" * (i % 4) for i in range(60)], "y": [i % 5 == 0 for i in range(60)]})


def lengths(host):
    assert set(host) == {"text", "seed"}
    assert host["seed"].device.type == "cpu"
    return {"length": host["text"].offsets.diff(), "names": ["any"], "text": host["text"]}


def test_collate_makes_tensors_of_ragged_columns():
    loader = load(TEXT, 6, columns=["text"], collate=lengths)
    plain = load(TEXT, 6, columns=["text"])
    for batch, other in zip(loader, plain, strict=True):
        assert set(batch) == {"row", "seed", "length", "names", "text"}
        assert batch["length"].tolist() == [len(f"row {i}" * (i % 4)) for i in batch["row"].tolist()]
        assert torch.equal(batch["text"].values, other["text"].values)
        assert batch["names"] == ["any"]


def test_ragged_columns_alone():
    loader = load(TEXT, 6, columns=["text"], extras=(), collate=lambda host: {"length": host["text"].offsets.diff()})
    batches = list(loader)
    assert [len(batch["length"]) for batch in batches] == [6] * 10
    assert all(list(batch) == ["length"] for batch in batches)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"transform": 3}, "transform: got 3; allowed: a function of a batch, or None."),
        (
            {"collate": lengths},
            "collate: got a function; allowed: a function beside columns of strings, binary or lists, which it gets. "
            "Take transform.",
        ),
        (
            {"source": pa.table({"seed": [1, 2] * 30, "y": [0, 1] * 30})},
            "columns: got a tensor named 'seed'; allowed: names other than the extras'. Rename it, or leave the extra "
            "out.",
        ),
    ],
    ids=str,
)
def test_hooks_that_are_refused(options, text):
    with pytest.raises(ArgumentError) as error:
        load(**options)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("returned", "got"), [([1], "list"), ({"row": torch.arange(6)}, "the names ['row']")], ids=["list", "clash"]
)
def test_a_collate_that_returns_what_it_must_not(returned, got):
    loader = load(TEXT, 6, columns=["text"], collate=lambda host: returned)
    with pytest.raises(ArgumentError) as error:
        next(iter(loader))
    assert str(error.value) == f"what collate returned: got {got}; allowed: a dict without 'row', 'seed'."


PAGE = (Path(__file__).parents[1] / "docs" / "transforms.md").read_text()


def test_the_page_does_what_it_says():
    jittered, text = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(jittered, names)
    batches = list(names["loader"])
    names["loader"].load_state_dict(names["loader"].state_dict() | {"epoch": 0, "batch": 3})
    assert torch.equal(next(iter(names["loader"]))["x"], batches[3]["x"])
    dropped = torch.cat([(batch["x"] == 0).all(1) for batch in batches]).float().mean()
    assert 0.05 < dropped < 0.15
    exec(text, names)
    words = {bytes(row.tolist()).rstrip(b"\0").decode() for batch in names["loader"] for row in batch["text"].cpu()}
    assert words == {"no", "mayb", "yes", "neve"}
