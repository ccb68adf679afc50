"""`fastbalance compare`: what it makes of columns, its metrics, its verdicts, and what it returns."""

import datetime
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import fastbalance as fb
from fastbalance import compare_runs
from fastbalance.compare_arms import METHODS, build, draw_batches, effective_shares, load_factory, predict
from fastbalance.compare_columns import as_numbers, determines
from fastbalance.compare_data import TEST, TRAIN, VALID, deal, read_sample, split
from fastbalance.compare_scores import ece, pr_auc, pr_curve, score, tuned_offset
from fastbalance.compare_verdict import NEITHER, OURS, WEIGHTED, paired, recommend
from fastbalance.comparison import cautious, compare, parse_budget
from fastbalance.errors import ArgumentError, ColumnError, LabelError

from .comparisons import mixed_table, short_run

METHOD = {method.name: method for method in METHODS}
NAN = math.nan
ROOT = Path(__file__).parents[1]


def numbers(values, kind=None):
    name, columns = as_numbers(pa.chunked_array([pa.array(values, kind)]))
    return name, [column.tolist() for column in columns]


def test_columns_become_numbers():
    assert numbers([True, False]) == ("bool", [[1.0, 0.0]])
    assert numbers(["b", "a", None, "b"]) == ("category", [[0.0, 1.0, -1.0, 0.0]])
    assert numbers(["b", None], pa.dictionary(pa.int8(), pa.string())) == ("category", [[0.0, -1.0]])
    assert numbers([datetime.date(2024, 2, 29)]) == ("date", [[2024.0], [2.0], [3.0]])  # a Thursday, from Monday 0
    assert numbers([datetime.datetime(2024, 2, 29, 17, 5)]) == ("date", [[2024.0], [2.0], [3.0], [17.0]])
    assert numbers([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)) == ("numbers", [[1.0, 3.0], [2.0, 4.0]])
    assert numbers([b"x"]) == ("unknown", [])
    kind, [values] = numbers([1.5, None, math.inf])
    assert (kind, values[0]) == ("number", 1.5)
    assert np.isnan(values[1:]).all()


@pytest.fixture
def table():
    return mixed_table()


def test_ids_leaks_and_constants_are_left_out_and_reported(table):
    sample = read_sample(table, "late")
    assert sample.names == {"number": "number", "airport": "category", "day": "date", "weekend": "bool"}
    reasons = dict(re.fullmatch(r"column '(\w+)' is left out: (.*)", text).groups() for text in sample.warnings)
    assert reasons == {
        "id": "it is a whole number that no two rows share: a row id",
        "code": "nearly every row has a value of its own: a row id or free text",
        "same": "it has one value only",
        "told": "each of its values comes with one class only, so it gives the label away (a leak)",
        "arrival": "it is missing exactly where the label has one value, so it gives the label away (a leak)",
        "blob": "a column of type binary cannot become numbers",
    }


def test_columns_that_are_named_are_kept_and_reported(table):
    sample = read_sample(table, "late", ["told", "number"])
    assert set(sample.names) == {"told", "number"}
    assert sample.warnings == (
        "column 'told' is kept, as you named it, but: each of its values comes with one class only, so it gives the "
        "label away (a leak)",
    )
    with pytest.raises(ColumnError, match=re.escape("features: got 'late', the label; allowed: number, airport")):
        read_sample(table, "late", ["late"])
    with pytest.raises(ColumnError, match="features: got no column to learn from: column 'same' is left out"):
        read_sample(table.select(["same", "late"]), "late")


def test_a_column_that_is_missing_in_nearly_all_rows_of_a_class_is_kept_and_reported():
    late = np.arange(500) % 10 == 0
    landed = np.arange(500) % 60 * 1.0
    landed[late] = NAN
    landed[[10, 20, 3, 4, 5, 6]] = [1.0, 2.0, NAN, NAN, NAN, NAN]
    table = {"landed": landed, "x": np.arange(500) % 7, "late": late}
    told = (
        "column 'landed' is kept, but look at it: it is missing in 96.0% of the rows of True and in 0.9% of the others"
    )
    [warning] = read_sample(table, "late").warnings
    assert warning.startswith(told)
    landed[::60] = NAN
    landed[:200:10] = 1.0
    assert read_sample(table, "late").warnings == ()


def test_many_values_that_happen_to_agree_are_no_leak():
    y = np.arange(1000) % 2
    assert determines(y * 3.0, y)
    assert not determines(np.arange(1000.0), y), "every value came once"
    assert not determines(np.where(np.arange(1000) == 5, 1.0, 0.0), y)


def test_a_sample_is_drawn_of_the_rows_and_tiny_classes_are_left_out(table):
    sample = read_sample(table, "late", max_rows=300)
    assert (len(sample.y), sample.n_rows_total) == (300, 1000)
    assert sample.warnings[0] == "300 of 1,000 rows were used, drawn at random"
    y = ["a"] * 50 + ["b"] * 40 + ["c"] * 9
    sample = read_sample({"x": np.arange(99) % 7, "y": y}, "y")
    assert (sample.classes, np.bincount(sample.y).tolist()) == (("a", "b"), [50, 40])
    assert sample.warnings == ("classes of fewer than 10 rows are left out: c (9)",)
    with pytest.raises(LabelError, match="label: got rows in the sample: a: 50, b: 9; allowed: two classes or more"):
        read_sample({"x": np.arange(59) % 7, "y": ["a"] * 50 + ["b"] * 9}, "y")


def test_every_class_is_dealt_3_1_1_and_the_encoding_sees_the_training_rows_only(table):
    sample = read_sample(table, "late")
    part = deal(sample.y, seed=1)
    for c in (0, 1):
        rows = np.bincount(part[sample.y == c])
        assert np.abs(rows - np.array([0.6, 0.2, 0.2]) * rows.sum()).max() < 1
    splits = split(sample, seed=1)
    for which in (TRAIN, VALID, TEST):
        assert splits.x[which].dtype == np.float32
        assert np.isfinite(splits.x[which]).all()
        assert splits.y[which].tolist() == sample.y[part == which].tolist()
    assert splits.x[TRAIN][:, 0].mean() == pytest.approx(0, abs=1e-5)
    sample.numbers[part != TRAIN] *= 100
    assert (split(sample, seed=1).x[TRAIN] == splits.x[TRAIN]).all()


def test_batches_have_the_shares_that_their_probabilities_follow():
    y = np.repeat([0, 1], [900, 100])
    shares = {}
    for name, method in METHOD.items():
        rows, weights = draw_batches(method, y, 40, 200, seed=0)
        assert rows.shape == (200, 40)
        mass = np.ones(rows.shape) if weights is None else weights.numpy()
        if method.divide in ("rows", "weights"):
            mass = np.where(y[rows] == 1, 5.0, 5 / 9)
        shares[name] = (mass * y[rows]).sum() / mass.sum()
        assert shares[name] == pytest.approx(effective_shares(method, np.array([0.9, 0.1]))[1], abs=0.02), name
    counts = y[draw_batches(METHOD[OURS], y, 40, 200, seed=0)[0]].sum(axis=1)
    assert set(counts) <= {18, 19, 20, 21, 22}


@pytest.mark.parametrize("n_rare", [6, 25, 128])
def test_batches_may_be_larger_than_an_undersampled_epoch(n_rare):
    y = np.repeat([0, 1], [3000, n_rare])
    for name in ("undersampled", "undersampled, weighted back"):
        rows, _ = draw_batches(METHOD[name], y, 256, 30, seed=0)
        assert rows.shape == (30, 256)
        rare = y[rows].sum(axis=1)
        assert np.abs(rare - 128).max() <= min(n_rare, 2)
        drawn = np.bincount(rows.ravel(), minlength=len(y))
        assert drawn[:3000].max() - drawn[:3000].min() <= 2, "the common class is covered before any row comes again"
        assert np.ptp(drawn[3000:]) <= 1


def test_metrics_of_a_hand_made_answer():
    y = np.array([0, 0, 0, 1])
    p = np.array([0.1, 0.2, 0.6, 0.4])
    logits = np.stack([np.zeros(4), np.log(p / (1 - p))], axis=1)
    assert pr_auc(y, logits) == pytest.approx(0.5)  # one of the two highest is true
    assert ece(y, logits) == pytest.approx((0.1 + 0.2 + 0.6 + 0.6) / 4)
    offset = tuned_offset(y, logits, np.array([0.75, 0.25]))
    found = score(y, logits, np.zeros(2), offset)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["balanced_accuracy_tuned"] == pytest.approx((2 / 3 + 1) / 2)
    assert (found["worst_recall"], found["worst_recall_tuned"]) == (0, pytest.approx(2 / 3))
    assert found["brier"] == pytest.approx((0.01 + 0.04 + 0.36 + 0.36) / 4)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.4]).mean())


def test_prior_correction_brings_the_probabilities_back():
    generator = np.random.default_rng(0)
    p = generator.beta(0.5, 10, 100_000)
    y = (generator.random(len(p)) < p).astype(np.int64)
    odds = np.log(p / (1 - p))
    pi = y.mean()
    balanced = np.stack([np.zeros(len(p)), odds - math.log(pi / (1 - pi))], axis=1)
    correction = np.log([1 - pi, pi]) - np.log(effective_shares(METHOD[OURS], np.array([1 - pi, pi])))
    found = score(y, balanced, correction, np.zeros(2))
    assert found["ece_raw"] > 0.2
    assert found["ece"] < 0.005


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("size", [3e38, math.inf, NAN])
def test_a_network_that_diverges_is_scored(n_classes, size):
    class Diverged(torch.nn.Module):
        def forward(self, x):
            out = torch.zeros(len(x), n_classes)
            out[::2, 0], out[1::2, 1] = -size, size
            out[::2, 1] = size
            return out

    logits = predict(Diverged(), np.zeros((60, 1), np.float32))
    y = np.arange(60) % n_classes
    priors = np.full(n_classes, 1 / n_classes)
    found = score(y, logits, np.zeros(n_classes), tuned_offset(y, logits, priors))
    assert all(np.isfinite(value).all() for value in found.values())
    assert np.isfinite(pr_curve(y, logits)).all()


def test_three_classes():
    y = np.array([0, 1, 2, 2])
    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.5, 0.1, 0.4]]))
    found = score(y, logits, np.zeros(3), tuned_offset(y, logits, np.array([0.25, 0.25, 0.5])))
    assert found["pr_auc"] == pytest.approx(1)
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["recalls"] == [1, 1, 1] or found["balanced_accuracy_tuned"] >= found["balanced_accuracy"]


def arms(neither, weight, resample, noise=0.001):
    """Synthetic results: (PR-AUC, balanced accuracy) of each way."""
    wobble = np.array([-1, 0, 1, 0.5, -0.5]) * noise
    ways = {NEITHER: neither, WEIGHTED[0]: weight, WEIGHTED[1]: [v - 0.1 for v in weight], OURS: resample}
    out = {}
    for k, (name, values) in enumerate(ways.items()):
        seeds = [value + np.roll(wobble, k) for value in values]
        means = [{"seeds": list(each), "mean": float(np.mean(each))} for each in seeds]
        valid = {"seeds": [], "mean": values[0]}
        out[name] = {"pr_auc": means[0], "balanced_accuracy_tuned": means[1], "valid_pr_auc": valid}
    return out


@pytest.mark.parametrize(
    ("results", "verdict", "words"),
    [
        (arms([0.5, 0.8], [0.4, 0.7], [0.4, 0.7]), "neither", "Do neither: train on the natural batches"),
        (arms([0.4, 0.7], [0.5, 0.8], [0.5, 0.8]), "weight", "Weight the loss (weighted / B)"),
        (arms([0.4, 0.7], [0.4, 0.7], [0.5, 0.8]), "resample", "Resample: fastbalance's uniform batches."),
        (arms([0.5, 0.8], [0.5, 0.8], [0.5, 0.8]), "no difference", "Take the simplest"),
        (arms([0.5, 0.8], [0.501, 0.8], [0.503, 0.8]), "no difference", "Take the simplest"),
        (arms([0.4, 0.7], [0.4, 0.7], [0.5, 0.8], noise=0.3), "no difference", "Take the simplest"),
        (arms([0.4, 0.7], [0.45, 0.75], [0.5, 0.8]), "resample", "Resample"),
        (arms([0.5, 0.7], [0.4, 0.7], [0.4, 0.8]), "depends", "For PR-AUC: do neither"),
    ],
)
def test_verdicts(results, verdict, words):
    found = recommend(results, 5)
    assert found["verdict"] == verdict
    assert words in found["headline"]
    assert len(found["evidence"]) == 2
    assert "against natural, tuned threshold" in found["evidence"][0]


def test_weighting_that_is_not_shown_to_help_is_not_recommended():
    results = arms([0.4, 0.7], [0.45, 0.75], [0.5, 0.8])
    for metric in ("pr_auc", "balanced_accuracy_tuned"):
        results[WEIGHTED[0]][metric]["seeds"] = np.array([0.2, 0.9, 0.1, 0.8, 0.5])
    assert recommend(results, 5)["verdict"] == "resample"


def test_an_arm_besides_the_three_ways_is_named_where_it_is_best():
    results = arms([0.4, 0.7], [0.45, 0.75], [0.5, 0.8])
    results["fastbalance, sqrt"] = {
        "pr_auc": {"seeds": [0.6] * 5, "mean": 0.6},
        "balanced_accuracy_tuned": {"seeds": [0.7] * 5, "mean": 0.7},
    }
    *_, told = recommend(results, 5)["evidence"]
    assert told.startswith("Highest PR-AUC of all arms: fastbalance, sqrt, 0.600, +0.100 against fastbalance, uniform")


def test_short_training_is_said_in_the_headline():
    found = recommend(arms([0.4, 0.7], [0.4, 0.7], [0.5, 0.8]), 5)
    assert cautious(found, 10.0) == found
    short = cautious(found, 2.44)
    assert short["headline"].endswith("But training saw the rows only 2.4 times: see the caution.")
    assert "a longer training (--budget) can close the gap, or turn it" in short["evidence"][-1]


@pytest.mark.parametrize("n_jobs", [1, 2, 8])
def test_seeds_give_way_to_longer_training_down_to_three(n_jobs):
    passes = 100  # steps
    plenty = compare_runs.fit(1e6, 5, n_jobs, passes, 0.001, 0.1)
    assert plenty == (2000, 5), "20 passes are the most"
    jobs = {n: -(-8 // n_jobs) * 5 + -(-8 * (n - 1) // n_jobs) * 2 for n in (5, 4, 3)}  # networks one after another
    for n_seeds, networks in jobs.items():
        assert compare_runs.fit(networks * (0.1 + 1.0005), 5, n_jobs, passes, 0.001, 0.1) == (1000, n_seeds)
    assert compare_runs.fit(jobs[3] * (0.1 + 0.3005), 5, n_jobs, passes, 0.001, 0.1) == (300, 3)
    assert compare_runs.fit(0.0, 5, n_jobs, passes, 0.001, 0.1) == (50, 3)


def test_too_few_seeds_decide_nothing():
    found = recommend(arms([0.5, 0.8], [0.4, 0.7], [0.4, 0.7]), 2)
    assert (found["verdict"], found["headline"][:22]) == ("undecided", "Undecided: 2 of the at")


def test_the_interval_is_wider_than_that_of_independent_seeds():
    found = paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    half = 4.302653 * 1.0 * (1 / 3 + 1 / 3) ** 0.5
    assert found["mean"] == 2
    assert found["interval"] == pytest.approx([2 - half, 2 + half])
    assert paired([1.0], [0.5]) == {"mean": 0.5, "interval": None}


def test_budgets():
    assert [parse_budget(text) for text in ("90s", "5m", "1h", 30)] == [90, 300, 3600, 30]
    with pytest.raises(ArgumentError, match=re.escape("--budget: got '0'; allowed: a time > 0")):
        parse_budget("0")
    with pytest.raises(ArgumentError, match="n_seeds: got 2; allowed: >= 3"):
        compare({}, "y", n_seeds=2)


def test_models_that_do_not_fit():
    with pytest.raises(ArgumentError, match=re.escape("--model: got 'math:nothing'")):
        load_factory("math:nothing")
    with pytest.raises(
        ArgumentError, match=re.escape("outputs of shape [2, 3] for 2 rows; allowed: [2, 2], or [2, 1]")
    ):
        build(lambda n, c: torch.nn.Linear(n, 3), 4, 2)
    with pytest.raises(ArgumentError, match="a module that takes float32"):
        build(lambda n, c: torch.nn.Linear(n + 1, c), 4, 2)


def test_results_hold_every_arm_and_are_json():
    results = short_run()
    assert len(results["arms"]) == 10
    assert json.loads(json.dumps(results))["label"] == "y"
    natural = results["arms"]["natural, tuned threshold"]["pr_auc"]
    assert natural["mean"] == results["arms"]["natural, threshold 0.5"]["pr_auc"]["mean"]


def test_the_pages_say_what_the_experiments_found():
    done = subprocess.run(
        [sys.executable, ROOT / "bench/weighted_loss/why.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_code_of_the_page_on_priors_runs(capsys):
    text = (ROOT / "docs" / "prior-correction.md").read_text()
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})
    assert "0.9900, 0.0100" in capsys.readouterr().out


def test_the_function_is_public_and_not_hidden_by_a_module():
    assert fb.compare is compare
