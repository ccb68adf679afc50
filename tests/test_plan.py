"""Counts and a balance -> integers: quotas, epoch lengths, the audit, and what is refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbalance import balance, make_plan
from fastbalance.errors import ArgumentError, PlanError
from fastbalance.plan import MAX_EPOCH_ROWS

from . import oracle

counts_lists = st.lists(st.integers(1, 10**6), min_size=1, max_size=50)


@given(counts=counts_lists, rows=st.integers(1, 10**9), batch=st.integers(1, 5000))
def test_largest_remainder_is_within_one_of_the_share_and_sums_up(counts, rows, batch):
    rows = max(rows, batch, len(counts))
    plan = make_plan(counts, "uniform", rows, batch)
    assert plan.epoch_rows == -(-rows // batch) * batch == plan.quotas.sum()
    assert all(abs(q - Fraction(plan.epoch_rows, len(counts))) < 1 for q in plan.quotas.tolist())


@given(counts=counts_lists, batch=st.integers(1, 100), alpha=st.floats(0, 1))
def test_over_and_under(counts, batch, alpha):
    total = sum(counts)
    over = make_plan(counts, balance.power(alpha), "over", batch if total >= batch else 1)
    assert (over.quotas >= over.class_counts).all()
    rows = min(n * len(counts) for n in counts) if alpha == 0 else None
    try:
        under = make_plan(counts, balance.power(alpha), "under", batch)
    except PlanError:  # then not even one batch goes without a repeat, or a class would get nothing
        assert rows is None or rows < max(batch, len(counts))
        return
    assert (under.quotas <= under.class_counts).all()
    assert under.epoch_rows % batch == 0


@given(counts=counts_lists, batch=st.integers(1, 1000))
def test_natural_delivers_every_row_once(counts, batch):
    plan = make_plan(counts, "natural", None, batch)
    assert plan.quotas.tolist() == counts
    assert (plan.n_batches - 1) * batch + (plan.tail_rows or batch) == sum(counts)
    assert plan.coverage.tolist() == [1.0] * len(counts)


def test_natural_tails():
    keep, drop, pad = (make_plan([90, 13], "natural", None, 25, tail=t) for t in ("keep", "drop", "pad"))
    assert (keep.epoch_rows, keep.n_batches, keep.tail_rows) == (103, 5, 3)
    assert (drop.epoch_rows, drop.n_batches, drop.tail_rows) == (100, 4, 0)
    assert (pad.epoch_rows, pad.n_batches, pad.tail_rows) == (125, 5, 0)


@given(
    quotas=st.lists(st.integers(0, 10**12), min_size=1, max_size=40).filter(any),
    part=st.fractions(0, 1),
)
def test_drawn_equals_the_oracle_beyond_64_bit_products(quotas, part):
    plan = make_plan([max(1, q) for q in quotas], balance.target(dict(enumerate(quotas))), sum(quotas), 1)
    assert plan.quotas.tolist() == quotas
    rows = int(part * sum(quotas))
    assert plan.drawn(rows).tolist() == list(oracle.drawn(rows, tuple(quotas)))


def test_drawn_at_the_largest_epoch():
    quotas = [MAX_EPOCH_ROWS // 3, MAX_EPOCH_ROWS // 3 + 1, MAX_EPOCH_ROWS // 3]
    plan = make_plan(quotas, balance.target(dict(enumerate(quotas))), sum(quotas), 1)
    for rows in (1, sum(quotas) // 7, sum(quotas) - 1, sum(quotas)):
        assert plan.drawn(rows).tolist() == list(oracle.drawn(rows, tuple(plan.quotas.tolist())))


def test_the_audit_can_be_read():
    plan = make_plan([990, 10], "uniform", None, 100, classes=["no", "yes"])
    assert str(plan).splitlines() == [
        "balance uniform: 1,000 rows of 2 classes; an epoch of 1,000 rows in 10 batches of 100",
        "class  rows     share  quota  share drawn  repeats  coverage  epochs to cover",
        "no      990  99.0000%    500     50.0000%    0.505    50.51%                2",
        "yes      10   1.0000%    500     50.0000%   50.000   100.00%                1",
    ]


def test_the_audit_of_many_classes_says_what_it_leaves_out():
    text = str(make_plan(range(1, 101), "uniform", None, 10))
    assert "... 80 more" in text
    assert len(text.splitlines()) == 2 + 20 + 1


def test_derived_figures():
    plan = make_plan([900, 90, 10], "uniform", 300, 100)
    np.testing.assert_allclose(plan.repeats, [1 / 9, 10 / 9, 10])
    np.testing.assert_allclose(plan.coverage, [1 / 9, 1, 1])
    assert plan.epochs_to_cover.tolist() == [9, 1, 1]
    np.testing.assert_allclose(plan.weights, [2.7, 0.27, 0.03], rtol=1e-6)
    assert (plan.weights * plan.quotas).sum() / plan.epoch_rows == pytest.approx(1)


def test_a_share_of_zero_leaves_a_class_out_on_purpose():
    plan = make_plan([5, 5, 5], balance.target({0: 1, 1: 0, 2: 1}), 10, 5)
    assert plan.quotas.tolist() == [5, 0, 5]
    assert "never" in str(plan)


def test_plans_are_frozen_and_fingerprinted():
    plan = make_plan([50, 5], "uniform", None, 5)
    with pytest.raises(ValueError, match="read-only"):
        plan.quotas[0] = 1
    others = [
        make_plan([50, 6], "uniform", 55, 5),
        make_plan([50, 5], "sqrt", None, 5),
        make_plan([50, 5], "uniform", 60, 5),
        make_plan([50, 5], "uniform", None, 11),
        make_plan([50, 5], "uniform", None, 5, block_rows=5),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 6
    assert plan.fingerprint == make_plan([50, 5], "uniform", None, 5).fingerprint


@pytest.mark.parametrize(
    ("value", "weights"),
    [
        (balance.natural, [100, 4, 1]),
        (balance.uniform, [1, 1, 1]),
        (balance.sqrt, [10, 2, 1]),
        (balance.power(2), [10000, 16, 1]),
        (balance.ratio(10), [10, 4, 1]),
        (balance.target({"a": 1, "b": 2, "c": 3}), [1, 2, 3]),
    ],
)
def test_weights(value, weights):
    np.testing.assert_allclose(value.weights(np.array([100, 4, 1]), ["a", "b", "c"]), weights)


@pytest.mark.parametrize(
    ("name", "text"),
    [("natural", "natural"), ("uniform", "uniform"), ("sqrt", "sqrt")],
)
def test_names_stand_for_values(name, text):
    assert str(balance.resolve(name)) == text
    assert balance.resolve(name) == getattr(balance, name)


def test_balances_name_themselves():
    assert str(balance.power(0.3)) == "power(0.3)"
    assert str(balance.ratio(10)) == "ratio(10)"
    assert str(balance.target({"a": 1, "b": 0.5})) == "target({'a': 1, 'b': 0.5})"


@pytest.mark.parametrize(
    ("arguments", "kind", "texts"),
    [
        (dict(class_counts=[5, 0]), PlanError, ["0 rows in class 1", ">= 1 row", "Leave classes without rows out"]),
        (dict(class_counts=[]), ArgumentError, ["class_counts", "a list of integers"]),
        (dict(class_counts=[1.5]), ArgumentError, ["float64", "a list of integers"]),
        (dict(class_counts=[5, 5], global_batch_size=11), PlanError, ["11 rows", "epoch of 10 rows", "smaller"]),
        (dict(class_counts=[5, 5], global_batch_size=0), ArgumentError, ["batch_size", "got 0", "[1, "]),
        (dict(class_counts=[5, 5], global_batch_size=True), ArgumentError, ["batch_size", "True"]),
        (dict(class_counts=[5, 5], epoch_rows=-1), ArgumentError, ["epoch_rows", "-1", '"over", "under"']),
        (dict(class_counts=[5, 5], epoch_rows="most"), ArgumentError, ["epoch_rows", "'most'"]),
        (dict(class_counts=[5, 5], tail="cut"), ArgumentError, ["tail", "'cut'", '"keep", "drop" or "pad"']),
        (dict(class_counts=[5, 5], balance="even"), ArgumentError, ["balance", "'even'", "power(alpha)"]),
        (dict(class_counts=[5, 5], balance=3), ArgumentError, ["balance", "got 3"]),
        (dict(class_counts=[5, 5], classes=["a"]), ArgumentError, ["1 labels", "2, one for each class"]),
        (
            dict(class_counts=[10**6, 1], balance="natural", epoch_rows=1000),
            PlanError,
            ["class 1 would get none", "1,000,001 rows or more", "share 0"],
        ),
        (
            dict(class_counts=[5, 5], balance=balance.target({0: 1})),
            PlanError,
            ["no share for 1", "a share for every class", "share 0"],
        ),
        (
            dict(class_counts=[5, 5], balance=balance.target({0: 1, 1: 1, "x": 2})),
            PlanError,
            ["'x'", "which no row has", "the labels of the data: 0, 1"],
        ),
    ],
)  # fmt: skip
def test_what_is_refused(arguments, kind, texts):
    with pytest.raises(kind) as caught:
        make_plan(**arguments)
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (lambda: balance.power(float("nan")), ["alpha", "nan", "finite"]),
        (lambda: balance.ratio(0.5), ["max_to_min", "0.5", ">= 1"]),
        (lambda: balance.target({0: -1}), ["target shares", "{0: -1}", ">= 0"]),
        (lambda: balance.target({0: 0, 1: 0}), ["target shares", "at least one of them > 0"]),
    ],
)
def test_balances_that_make_no_sense(make, texts):
    with pytest.raises(ArgumentError) as caught:
        make()
    for text in texts:
        assert text in str(caught.value)
