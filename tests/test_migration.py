"""docs/migration.md says only what was run: every block of code, and the claims below the blocks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import fastbalance as fb

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "migration.md").read_text()
N_ROWS, MINORITY = 10_000, np.arange(0, 10_000, 100)

# What does not install beside any torch, or needs torchvision to be imported.
NOT_EXECUTED = {
    "`ImbalancedDatasetSampler` of torchsampler",
    "`StreamingDataset` of MosaicML",
    "`BalanceClassSampler` of catalyst",
    "`RepeatFactorTrainingSampler` of detectron2",
}


def sections(page: str) -> dict[str, list[str]]:
    """The blocks of code below each heading; those before the first are under ""."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    headed = zip(["", *parts[1::2]], parts[::2], strict=True)
    return {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in headed}


BLOCKS = sections(PAGE)
TABLES = [name for name, blocks in BLOCKS.items() if name and blocks]
EXECUTED = [(name, k) for name in TABLES for k in range(len(BLOCKS[name])) if k or name not in NOT_EXECUTED]
SETUP = BLOCKS[""][0]


def run(name: str, block: int, **given: Any) -> dict[str, Any]:
    """The names that a block leaves behind, run after the set-up of the page."""
    names: dict[str, Any] = {}
    exec(SETUP, names)
    names |= given
    exec(compile(BLOCKS[name][block], f"{name}, block {block}", "exec"), names)
    return names


def old(name: str, **given: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return run(name, 0, **given)


def new(name: str, block: int = 1, **given: Any) -> dict[str, Any]:
    return run(name, block, **given)


def rows_of(batches: Iterable[Any]) -> Iterator[np.ndarray]:
    """The number of every row of each batch, whatever a batch is here: x is that number."""
    for batch in batches:
        x = batch["x"] if isinstance(batch, dict) else batch[0]
        x = x.cpu() if isinstance(x, torch.Tensor) else x  # the page says nothing of a device
        yield np.asarray(x).reshape(-1).astype(np.int64)


def epoch(loader: Any) -> list[np.ndarray]:
    return list(rows_of(loader))


def used(batches: list[np.ndarray]) -> np.ndarray:
    """How often each row came."""
    return np.bincount(np.concatenate(batches), minlength=N_ROWS)


def minority(batches: list[np.ndarray]) -> np.ndarray:
    """Rows of class 1 in each batch."""
    return np.array([(batch % 100 == 0).sum() for batch in batches])


def majority_of(counts: np.ndarray) -> np.ndarray:
    return np.delete(counts, MINORITY)


def says(text: str, *measured: float, within: float = 0) -> bool:
    """Whether the page has these words, however its lines are broken, with numbers as measured in the places of `{}`.

    What old code draws at random hangs on the version of torch: such numbers may be a little off.
    """
    pattern = re.escape(text).replace(r"\{\}", r"([\d,]+)")
    found = re.search(pattern, " ".join(PAGE.split()))
    if found is None:
        return False
    said = [int(number.replace(",", "")) for number in found.groups()]
    return all(abs(one - other) <= within for one, other in zip(said, measured, strict=True))


@pytest.fixture
def rows_on_disk(tmp_path, monkeypatch):
    names: dict[str, Any] = {}
    exec(SETUP, names)
    table = pa.table({"x": names["x"].numpy(), "y": names["y"].numpy()})
    (tmp_path / "rows").mkdir()
    for part in range(4):
        pq.write_table(table.slice(part * 2_500, 2_500), tmp_path / "rows" / f"{part}.parquet", row_group_size=250)
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------------- the page


@pytest.mark.usefixtures("rows_on_disk")
@pytest.mark.parametrize(("name", "block"), EXECUTED, ids=str)
def test_every_block_runs(name, block):
    names = run(name, block)
    batches = names["batches"] if "batches" in names else names["loader"]
    assert 50 <= len(next(rows_of(batches))) <= 256


def test_what_is_not_executed_is_marked_and_nothing_else():
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    marked = {name for name, text in zip(parts[1::2], parts[2::2], strict=True) if "from (not executed)" in text}
    assert marked == NOT_EXECUTED
    assert set(TABLES) > NOT_EXECUTED
    assert PAGE.count("<th>from</th>") + len(NOT_EXECUTED) == len(TABLES)


def test_the_overview_leads_to_every_section():
    anchors = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert anchors == [re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in TABLES]


def test_the_parser_sees_blocks_in_cells():
    page = "a\n```python\n1\n```\n## b\n<td>\n\n```python\n2\n```\n\n</td><td>\n\n```python\n3\n```\n## c\n```\nno\n```"
    assert sections(page) == {"": ["1\n"], "b": ["2\n", "3\n"], "c": []}


# ------------------------------------------------------------------------------------------------ the claims

SHUFFLE = "`DataLoader` with `shuffle=True`"
WEIGHTED = "`WeightedRandomSampler`"
TORCHSAMPLER = "`ImbalancedDatasetSampler` of torchsampler"
OVER = "`RandomOverSampler` of imbalanced-learn"
UNDER = "`RandomUnderSampler` of imbalanced-learn"
GENERATOR = "`balanced_batch_generator` of imbalanced-learn"
INTERLEAVE = "`interleave_datasets` of Hugging Face"
STREAMING = "`StreamingDataset` of MosaicML"
CATALYST = "`BalanceClassSampler` of catalyst"
REPEAT = "`RepeatFactorTrainingSampler` of detectron2"
RANKS = "`DistributedSampler` around weights"


def test_shuffle():
    there, here = old(SHUFFLE), new(SHUFFLE)
    assert here["batch"]["class_id"].equal(here["labels"])
    plain, even = epoch(there["loader"]), epoch(here["loader"])
    for batches in (plain, even):
        assert [len(batch) for batch in batches] == [256] * 39 + [16]
        assert (used(batches) == 1).all()
    assert len(here["loader"]) == len(there["loader"]) == 40
    assert set(minority(even[:-1])) <= {1, 2, 3, 4}
    many = np.concatenate([minority(epoch(there["loader"])[:-1]) for _ in range(5)])
    assert many.min() == 0
    assert says("A plain shuffle has anything from none to {} and more", many.max(), within=2)
    again = new(SHUFFLE)["loader"]
    torch.manual_seed(1)
    again.set_epoch(1)
    assert np.array_equal(np.concatenate(epoch(again)), np.concatenate(even))


def test_drop_last_is_tail_drop():
    dropped = fb.BalancedLoader(
        {"x": torch.arange(1000.0), "y": torch.arange(1000) % 2}, "y", 256, balance="natural", tail="drop"
    )
    assert [len(batch) for batch in epoch(dropped)] == [256] * 3
    with pytest.raises(TypeError):
        fb.BalancedLoader({"x": [1], "y": [1]}, "y", 1, num_workers=2)


def test_weighted():
    there, here = old(WEIGHTED), new(WEIGHTED)
    weighted, exact = [], []
    for _ in range(5):
        weighted.append(epoch(there["loader"]))
        exact.append(epoch(here["loader"]))
    assert {len(batches) for batches in weighted} == {40}
    assert {len(batch) for batches in exact for batch in batches} == {256}
    assert says("10,000 rows are stretched to {}", sum(map(len, exact[0])))

    for batches in exact:
        assert minority(batches).sum() == 5_120
        assert np.abs(minority(batches) - 128).max() <= 2
    spread = np.concatenate([minority(batches[:-1]) for batches in weighted])
    assert says("batches from {} to {} are common", spread.min(), spread.max(), within=8)

    for batches, one, two in ((weighted, 0.40, 0.64), (exact, 0.517, 1.0)):
        counts = np.stack([majority_of(used(batch)) for batch in batches])
        assert (counts[0] > 0).mean() == pytest.approx(one, abs=0.005)
        assert (counts[:2].sum(0) > 0).mean() == pytest.approx(two, abs=0.005)
    repeats = used(exact[0])[MINORITY]
    assert (repeats.min(), repeats.max()) == (51, 52)
    repeats = used(weighted[0])[MINORITY]
    assert says("some come {} times and some {}.", repeats.min(), repeats.max(), within=8)


def test_weighted_with_a_data_set_of_ones_own():
    same = new(WEIGHTED, 2)["loader"]
    assert [batch.tolist() for batch in epoch(same)] == [batch.tolist() for batch in epoch(new(WEIGHTED)["loader"])]


def test_weights_by_class_are_shares():
    """weights = w[y] draws class c with the share w[c] * n[c]."""
    there = old(WEIGHTED)
    w, n = torch.tensor([1.0, 33.0]), torch.bincount(there["y"])
    rows = list(torch.utils.data.WeightedRandomSampler(w[there["y"]], 40_000))
    target = fb.balance.target({c: float(w[c] * n[c]) for c in (0, 1)})
    plan = fb.BalancedBatchSampler(there["y"], 100, balance=target).plan
    assert plan.quotas.tolist() == [7_500, 2_500]
    assert there["y"][rows].float().mean() == pytest.approx(0.25, abs=0.01)


def test_weights_without_replacement_balance_nothing():
    there = old(WEIGHTED)
    rows = list(torch.utils.data.WeightedRandomSampler(there["weights"], N_ROWS, replacement=False))
    assert sorted(rows) == list(range(N_ROWS))


def test_a_label_of_several_columns():
    y, group = torch.arange(1000) % 7 // 6, torch.arange(1000) % 5 // 4
    loader = fb.BalancedLoader({"y": y, "group": group}, ["y", "group"], 40)
    for batch in loader:
        counts = np.bincount((2 * batch["y"] + batch["group"]).cpu(), minlength=4)
        assert np.abs(counts - 10).max() <= 2


def test_torchsampler():
    names = new(TORCHSAMPLER)
    exact = epoch(names["loader"])
    assert np.abs(minority(exact) - 128).max() <= 2
    assert len(fb.BalancedSampler(names["y"])) == N_ROWS


def test_over():
    there, here = old(OVER), new(OVER)
    copied, drawn = epoch(there["loader"]), epoch(here["loader"])
    assert sum(map(len, copied)) == 19_800
    assert sum(map(len, drawn)) == 19_968
    assert (majority_of(used(copied)) == 1).all()
    assert np.bincount(majority_of(used(drawn))).tolist() == [0, 9_900 - 84, 84]
    repeats = used(copied)[MINORITY]
    assert says("some lie {} times in the data and some {},", repeats.min(), repeats.max(), within=8)
    assert np.array_equal(used(epoch(there["loader"])), used(copied))
    assert set(used(drawn)[MINORITY]) == {99, 100}
    assert np.abs(minority(drawn) - 128).max() <= 2
    assert np.abs(minority(copied) - 128).max() > 10


def test_over_with_wanted_numbers():
    from imblearn.over_sampling import RandomOverSampler

    there = old(OVER)
    wanted = {0: 9_900, 1: 3_300}
    sampler = RandomOverSampler(random_state=0, sampling_strategy=wanted)
    _, labels = sampler.fit_resample(there["x"].numpy()[:, None], there["y"].numpy())
    options = {"balance": fb.balance.target(wanted), "epoch_rows": sum(wanted.values())}
    plan = fb.BalancedBatchSampler(there["y"], 100, **options).plan
    assert plan.quotas.tolist() == np.bincount(labels).tolist() == [9_900, 3_300]


def test_under():
    there, here = old(UNDER), new(UNDER)
    kept, drawn = np.zeros(N_ROWS, int), np.zeros(N_ROWS, int)
    for e in range(99):
        batches = epoch(here["loader"])
        assert minority(batches).sum() == 100
        assert used(batches).max() == 1
        assert np.abs(minority(batches) - 25).max() <= 2
        drawn += used(batches)
        if e < 3:
            batches = epoch(there["loader"])
            assert minority(batches).sum() == 100
            assert used(batches).max() == 1
            kept += used(batches)
    assert (majority_of(drawn) == 1).all()
    assert says("There the other {} rows are left out for good", (majority_of(kept) == 0).sum())


def test_generator():
    there, here = old(GENERATOR), new(GENERATOR)
    assert there["steps"] == here["steps"] == 4
    first, second = (epoch(itertools.islice(there["batches"], 4)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.abs(minority(first) - 25).max() > 2
    first, second = (epoch(itertools.islice(here["batches"], 4)) for _ in range(2))
    assert not set(np.concatenate(first)) - set(MINORITY) & set(np.concatenate(second))
    assert np.abs(minority([*first, *second]) - 25).max() <= 2
    for names in (there, here):
        features, labels = next(names["batches"])
        assert isinstance(features, np.ndarray)
        assert (features.shape, labels.shape) == ((50, 1), (50,))


def test_the_generator_of_keras_is_the_same():
    from imblearn import keras, tensorflow

    there = old(GENERATOR)
    x, y = there["x"].numpy()[:, None], there["y"].numpy()
    (one, _), (other, _) = (
        module.balanced_batch_generator(x, y, batch_size=50, random_state=0) for module in (keras, tensorflow)
    )
    assert np.array_equal(epoch(itertools.islice(one, 4)), epoch(itertools.islice(other, 4)))


def test_interleave():
    there, here = old(INTERLEAVE), new(INTERLEAVE)
    mixed, drawn = epoch(there["loader"]), epoch(here["loader"])
    assert (used(mixed) >= 1).all()
    assert (used(drawn) >= 1).all()
    assert np.abs(minority(drawn) - 128).max() <= 2
    assert np.abs(minority(mixed[:-1]) - 128).max() > 10
    assert minority(drawn).sum() * 2 == sum(map(len, drawn))
    assert minority(mixed).sum() * 2 != sum(map(len, mixed))

    order = np.concatenate(mixed)
    first = order[order % 100 != 0][:9_900]
    assert (np.diff(first) > 0).all()
    assert np.array_equal(np.concatenate(epoch(there["loader"])), order)
    assert not np.array_equal(np.concatenate(epoch(here["loader"])), np.concatenate(drawn))


def test_interleave_until_the_first_is_exhausted():
    from datasets import interleave_datasets

    parts = old(INTERLEAVE)["parts"]
    numbers = np.delete(np.arange(N_ROWS), MINORITY)
    for seed in range(3):
        mixed = interleave_datasets(parts, [0.5, 0.5], seed=seed, stopping_strategy="first_exhausted")
        rows = np.array(mixed["x"]).astype(int)
        assert len(set(rows)) == len(rows)
        majority = rows[rows % 100 != 0]
        assert len(majority) < 200
        assert np.array_equal(majority, numbers[: len(majority)])  # the first ones, whatever the seed


def test_interleaved_sources():
    here = new(INTERLEAVE, 2)
    batches = epoch(here["loader"])
    books = np.array([(batch >= 9_000).sum() for batch in batches])
    assert books.sum() == here["loader"].plan.quotas[here["loader"].classes.index("books")] == round(0.3 * 10_240)
    assert np.abs(books - 0.3 * 256).max() <= 2


@pytest.mark.usefixtures("rows_on_disk")
def test_streaming():
    loader = new(STREAMING)["loader"]
    batches = epoch(loader)
    assert loader.plan.kept.tolist() == [False, True]
    assert minority(batches).sum() == 5_120
    assert np.abs(minority(batches) - 128).max() <= 2
    loader.close()


@pytest.mark.usefixtures("rows_on_disk")
def test_a_class_too_rare_for_every_batch_takes_turns():
    shares = fb.balance.target({0: 0.999, 1: 0.001})
    loader = fb.BalancedLoader("rows/*.parquet", "y", 256, balance=shares)
    counts = minority(epoch(loader))
    assert counts.sum() == 10
    assert set(counts) == {0, 1}


def test_catalyst():
    here = new(CATALYST)
    seen = np.zeros(N_ROWS, int)
    for _ in range(99):
        batches = epoch(here["loader"])
        assert (sum(map(len, batches)), minority(batches).sum()) == (200, 100)
        seen += used(batches)
    assert (majority_of(seen) == 1).all()
    y = here["y"]
    assert fb.BalancedBatchSampler(y, 50, epoch_rows="over").plan.quotas.tolist() == [9_900, 9_900]
    assert fb.BalancedBatchSampler(y, 50, epoch_rows=600 * 2).plan.quotas.tolist() == [600, 600]


def test_repeat_factors():
    here = new(REPEAT)
    assert here["factors"].tolist() == pytest.approx([1, 4])
    batches = epoch(here["loader"])
    counts = used(batches)
    assert (counts[MINORITY] == 4).all()
    assert (majority_of(counts) == 1).all()


def of_ranks(make: Any, name: str) -> list[list[list[np.ndarray]]]:
    """Two epochs of both ranks."""
    loaders = [make(name, rank=rank, world_size=2)["loader"] for rank in range(2)]
    return [[epoch(loader) for loader in loaders] for _ in range(2)]


def test_ranks():
    there, here = of_ranks(old, RANKS), of_ranks(new, RANKS)
    for epochs in (there, here):
        assert {len(batches) for ranks in epochs for batches in ranks} == {40}
        assert {len(batch) for ranks in epochs for batches in ranks for batch in batches[:-1]} == {128}

    def both(ranks: list[list[np.ndarray]]) -> int:
        one, other = (set(np.concatenate(batches)) - set(MINORITY) for batches in ranks)
        return len(one & other)

    assert says("with replacement, {} majority rows go to both ranks in the first epoch", both(there[0]), within=60)
    assert both(here[0]) == 0
    counts = majority_of(used([batch for ranks in here for batches in ranks for batch in batches]))
    assert set(counts) == {1, 2}
    assert np.array_equal(np.concatenate(there[0][0]), np.concatenate(there[1][0]))  # nobody called set_epoch
    assert not np.array_equal(np.concatenate(here[0][0]), np.concatenate(here[1][0]))
    for one, other in zip(*here[0], strict=True):
        assert minority([np.concatenate([one, other])])[0] == pytest.approx(128, abs=2)
