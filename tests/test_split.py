"""Blocks, ranks, tails, and the golden step."""

from __future__ import annotations

from itertools import pairwise
from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbalance import make_plan
from fastbalance.errors import ArgumentError, PlanError
from fastbalance.split import block_of, check_ranks, golden, rank_places

from . import oracle


@given(rows=st.integers(1, 3000), batch=st.integers(1, 60), block_rows=st.integers(1, 500))
def test_blocks_cut_the_epoch_as_the_contract_says(rows, batch, block_rows):
    plan = make_plan([rows, 1], "natural", None, batch, block_rows=block_rows)
    blocks, at = [], 0
    while at < plan.n_batches:
        block = block_of(plan, at)
        assert all(block_of(plan, b) == block for b in range(block.first_batch, block.end_batch))
        blocks.append(block)
        at = block.end_batch
    assert [block.number for block in blocks] == list(range(len(blocks)))
    wanted = oracle.blocks(batch, plan.epoch_rows, block_rows)
    assert [(b.first_position, b.n_batches, b.batch_rows) for b in blocks] == wanted


@given(rows=st.integers(1, 10_000), world_size=st.integers(1, 64))
def test_ranks_share_a_batch_without_gap_or_overlap(rows, world_size):
    parts = [rank_places(rows, rank, world_size) for rank in range(world_size)]
    assert parts[0][0] == 0
    assert parts[-1][1] == rows
    assert all(a[1] == b[0] for a, b in pairwise(parts))
    lengths = {stop - start for start, stop in parts}
    assert max(lengths) - min(lengths) <= (rows % world_size != 0)


def test_the_drawing_in_the_docstring():
    plan = make_plan([30, 9], "natural", None, 6, block_rows=18)
    assert [block_of(plan, b).number for b in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert [rank_places(block_of(plan, 0).batch_rows, r, 2) for r in (0, 1)] == [(0, 3), (3, 6)]
    assert [rank_places(block_of(plan, 6).batch_rows, r, 2) for r in (0, 1)] == [(0, 1), (1, 3)]


@pytest.mark.parametrize("rows", [*range(1, 200), 1023, 1024, 4096, 65_537, 2**20])
def test_golden_is_coprime_and_equals_the_oracle(rows):
    assert golden(rows) == oracle.golden(rows)
    assert gcd(golden(rows), rows) == 1


def test_what_is_refused():
    plan = make_plan([30, 8], "natural", None, 6)
    with pytest.raises(ArgumentError, match=r"rank: got rank 2 of world_size 2; allowed: a rank in \[0, 2\)"):
        check_ranks(plan, 2, 2)
    with pytest.raises(PlanError, match="4 ranks for a global batch of 6 rows; allowed: a number of ranks that"):
        check_ranks(plan, 0, 4)
    with pytest.raises(PlanError, match=r'a last batch of 2 rows for 3 ranks.*tail="drop" or tail="pad"'):
        check_ranks(plan, 0, 3)
