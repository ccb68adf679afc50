"""The demo: its data, its split, its formulas, its networks, and a quick run from end to end."""

import itertools
import json
import math

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from fastbalance.kernels.threads import one_thread
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fastbalance import demo_arms
from fastbalance.demo import BATCH_ROWS, run
from fastbalance.demo_arms import ARMS, Arm, Networks, endless, expected_spread, learn, minority_mass
from fastbalance.demo_report import conclusion
from fastbalance.errors import ArgumentError
from fastbalance.flights import LABEL, load_flights, read_flights, split_days, write_shards

SHARE = 0.0245


@pytest.fixture(scope="module")
def flights():
    return load_flights()


@pytest.fixture(scope="module")
def shards(flights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "train"
    write_shards(flights, folder)
    return folder


def test_the_table_is_the_published_one():
    table = read_flights()
    assert table.num_rows == 336_776
    assert pc.sum(table[LABEL]).as_py() == 8_255
    assert sum(table[name].null_count for name in table.column_names) == 0


def test_features_are_known_before_departure(flights):
    stems = {name.split("_")[0] for name in flights.features}
    assert stems == {"departure", "arrival", "weekday", "season", "log", "origin", "carrier"}
    telling = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum"}
    assert not telling & {*flights.features, *read_flights().column_names}


def test_splits_share_no_day_and_lose_no_row(flights):
    splits = (flights.train, flights.valid, flights.test)
    days = [set(split.days.tolist()) for split in splits]
    assert set.union(*days) == set(range(365))
    assert [len(d) for d in days] == [219, 73, 73]
    assert sum(len(split.y) for split in splits) == 336_776
    assert sum(split.y.sum() for split in splits) == 8_255
    for split in splits:
        assert split.x.dtype == split.y.dtype == torch.float32
        assert split.y.mean() == pytest.approx(8_255 / 336_776, rel=0.2)


def test_encodings_are_fitted_on_the_training_days(flights):
    columns = [flights.features.index(name) for name in ("log_distance", "log_flights_to_dest")]
    train = flights.train.x[:, columns].double()
    assert torch.allclose(train.mean(dim=0), torch.zeros(2).double(), atol=1e-4)
    assert torch.allclose(train.std(dim=0), torch.ones(2).double(), atol=1e-4)
    assert flights.valid.x[:, columns].mean(dim=0).abs().min() > 1e-4


def test_days_that_do_not_fill_a_hand_are_dealt_too():
    days = np.repeat(np.arange(7), 3)
    parts = split_days(days, np.zeros(21, bool))
    assert len(parts) == 21
    assert all(len(set(parts[days == day])) == 1 for day in range(7))


def test_shards_hold_the_training_rows_in_groups_of_different_lengths(flights, shards):
    files = [pq.ParquetFile(path) for path in sorted(shards.glob("*.parquet"))]
    assert len(files) == 8
    assert sum(file.metadata.num_rows for file in files) == len(flights.train.y)
    groups = {file.metadata.row_group(g).num_rows for file in files for g in range(file.num_row_groups)}
    assert len(groups) > 8
    first = files[0].read([flights.features[0]])
    assert first.column(0).to_numpy().tolist() == flights.train.x[: first.num_rows, 0].tolist()


@pytest.mark.parametrize("batch_rows", [16, 32, 256])
def test_expected_spread_is_the_closed_formula(batch_rows):
    natural = math.sqrt((1 - SHARE) / (SHARE * batch_rows))
    whole, part = divmod(SHARE * batch_rows, 1)
    expected = {
        "natural, threshold moved": natural,
        "weighted / rows": natural,
        "weighted, even batches": math.sqrt(part * (1 - part)) / (whole + part),
        "WeightedRandomSampler": 1 / math.sqrt(batch_rows),
        "fastbalance": 0.0,
    }
    for arm in ARMS:
        if arm.name in expected:
            assert expected_spread(arm, batch_rows, SHARE) == pytest.approx(expected[arm.name], abs=1e-9)


@pytest.mark.parametrize(("batch_rows", "mean"), [(16, 0.130), (64, 0.312), (256, 0.448)])
def test_divided_by_the_sum_of_weights_the_minority_loses_mass(batch_rows, mean):
    counts = np.random.default_rng(0).binomial(batch_rows, 0.01, 200_000)
    assert minority_mass("weights", counts, batch_rows, 0.01).mean() == pytest.approx(mean, abs=0.003)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_batches_spread_as_expected(arm, flights, shards):
    batch_rows, n_batches = 64, 1500
    share = float(flights.train.y.mean())
    feed = endless(arm.feed, flights.train, shards, batch_rows, seed=3)
    counts = np.array([int(y.sum()) for _, y in itertools.islice(feed, n_batches)])
    mass = minority_mass(arm.loss, counts, batch_rows, share)
    expected = expected_spread(arm, batch_rows, share)
    assert mass.std() / mass.mean() == pytest.approx(expected, rel=0.1, abs=1e-9)


def test_by_row_and_by_batch_give_the_same_batches(flights, shards):
    feeds = [endless("WeightedRandomSampler", flights.train, shards, 32, 1, by_row) for by_row in (True, False)]
    for _ in range(3):
        (x0, y0), (x1, y1) = map(next, feeds)
        assert torch.equal(x0, x1)
        assert torch.equal(y0, y1)


def test_losses_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(1, 50, generator=generator), (torch.rand(1, 50, generator=generator) < 0.2).float()
    weights = torch.tensor(demo_arms.class_weights(0.2))
    two = torch.stack([torch.zeros(50), logits[0]], dim=1)
    by_weights = cross_entropy(two, y[0].long(), weight=weights)
    by_rows = weights[0] * binary_cross_entropy_with_logits(logits[0], y[0], pos_weight=weights[1] / weights[0])
    assert torch.allclose(demo_arms._losses("weights", logits, y, 0.2), by_weights)
    assert torch.allclose(demo_arms._losses("rows", logits, y, 0.2), by_rows)


def test_networks_side_by_side_learn_as_one_of_torch_does():
    generator = torch.Generator().manual_seed(0)
    batches = [[(torch.randn(8, 3, generator=generator), torch.arange(8) % 2.0) for _ in range(5)] for _ in range(2)]
    networks = Networks(3, (0.01, 0.1), 2)
    layers = [torch.nn.Linear(3, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)]
    model = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for ours, theirs in zip(networks.parameters, model.parameters(), strict=True):
            theirs.copy_(ours[3].T.reshape(theirs.shape))
    with one_thread():
        learn(networks, Arm("", "shuffle"), [iter(b) for b in batches], 5, 0.5, lambda: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=demo_arms.MOMENTUM)
    for step, (x, y) in enumerate(batches[1]):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 5)
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(model(x).squeeze(1), y).backward()
        optimizer.step()
    x = batches[0][0][0]
    assert torch.allclose(networks.logits(0.1, x)[1], model(x).squeeze(1), atol=1e-5)


def test_conclusion_says_what_the_intervals_say():
    intervals = {"a": [0.1, 0.2], "b": [-0.2, -0.1], "c": [-0.1, 0.1], "d": [-0.1, 0.2]}
    arms = [{"name": name, "pr_auc_difference": {"interval": ends}} for name, ends in intervals.items()]
    assert conclusion({"batch_rows": 32, "arms": [*arms, {"name": "fastbalance"}]}) == (
        'PR-AUC on these test days, batches of 32: fastbalance is ahead of "a"; fastbalance is behind "b"; '
        'no difference is shown (the interval includes zero) to "c" and "d".'
    )


def test_one_seed_makes_no_interval(tmp_path):
    with pytest.raises(ArgumentError, match="n_seeds: got 1"):
        run(tmp_path, n_seeds=1)


@pytest.mark.slow
def test_a_quick_run_writes_figure_and_results(tmp_path, capsys):
    threads = torch.get_num_threads()
    results = run(tmp_path, quick=True)
    assert torch.get_num_threads() == threads
    assert json.loads((tmp_path / "demo.json").read_text()) == results
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert all(feed["rows_per_s"] > 0 for feed in results["feeds"])
    assert [comparison["batch_rows"] for comparison in results["comparisons"]] == list(BATCH_ROWS)
    for comparison in results["comparisons"]:
        assert [arm["name"] for arm in comparison["arms"]] == [arm.name for arm in ARMS]
        for arm in comparison["arms"]:
            for metric in ("pr_auc", "balanced_accuracy"):
                assert all(0 < value < 1 for value in arm[metric]["seeds"])
                assert arm[metric]["interval"][0] <= arm[metric]["mean"] <= arm[metric]["interval"][1]
    assert "A quick run" in capsys.readouterr().out
