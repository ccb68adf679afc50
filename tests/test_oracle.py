"""The oracle against published vectors, and an epoch of it against the laws of the order."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product
from math import ceil, gcd, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import oracle

TWEAKS = [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0x9E3779B9, 1), (2, 0x80000000)]
KEYS = oracle.round_keys(7, oracle.SLOT_KEYS)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, words: str) -> None:
    assert oracle.philox4x32_10(from_hex(counter), from_hex(key)) == from_hex(words)


def test_keys_and_tweaks_are_the_words_of_their_counters() -> None:
    seed = 2**64 - 3
    key = (seed % 2**32, seed // 2**32)
    assert oracle.round_keys(seed, 2)[4:8] == oracle.philox4x32_10((1, 0, 0, 2), key)
    assert oracle.tweak(5, 6, 7, 4, seed) == oracle.philox4x32_10((5, 6, 7, 4), key)[:2]


@pytest.mark.parametrize("n", [*range(1, 71), *range(255, 258), *range(1023, 1026), *range(4095, 4098)])
def test_bijection_takes_every_value_once_and_has_an_inverse(n: int) -> None:
    for tweak in TWEAKS[: 2 if n > 1000 else 4]:
        images = [oracle.bijection(x, n, KEYS, *tweak) for x in range(n)]
        assert sorted(images) == list(range(n))
        assert [oracle.bijection(y, n, KEYS, *tweak, forward=False) for y in images] == list(range(n))


@pytest.mark.parametrize("bits", range(5, 49))
def test_inverse_undoes_the_bijection_at_powers_of_two(bits: int) -> None:
    for n in (2**bits - 1, 2**bits, 2**bits + 1):
        for x in {0, 1, n // 3, n - 2, n - 1}:
            y = oracle.bijection(x, n, KEYS, *TWEAKS[bits % 4])
            assert 0 <= y < n
            assert oracle.bijection(y, n, KEYS, *TWEAKS[bits % 4], forward=False) == x


def from_hex(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


quotas_of_classes = st.lists(st.integers(0, 50), min_size=1, max_size=60).map(tuple)


@given(quotas_of_classes)
def test_drawn_splits_every_prefix_near_its_ideal_share(quotas: tuple[int, ...]) -> None:
    total, before = sum(quotas), (0,) * len(quotas)
    bound = log2(len(quotas)) + 1
    for x in range(total + 1):
        now = oracle.drawn(x, quotas)
        assert sum(now) == x
        assert all(a <= b for a, b in zip(before, now, strict=True))
        assert all(abs(d * total - x * q) <= bound * total for d, q in zip(now, quotas, strict=True))
        before = now
    assert before == quotas


@given(st.integers(1, 100_000))
def test_golden_is_coprime_and_has_small_partial_quotients(b: int) -> None:
    g = oracle.golden(b)
    assert gcd(g, b) == 1
    assert 0 <= g < max(b, 2)
    while g:
        assert b // g <= 8  # reached at 51,942, the largest up to 100,000
        b, g = g, b % g


def test_blocks_cut_the_epoch_without_gaps() -> None:
    assert oracle.blocks(2**19, 5 * 2**19 + 9) == [
        (0, 2, 2**19),
        (2**20, 2, 2**19),
        (2**21, 1, 2**19),
        (5 * 2**19, 1, 9),
    ]
    assert oracle.blocks(7, 3) == [(0, 1, 3)]
    assert oracle.blocks(2**21, 2**21) == [(0, 1, 2**21)]


# A plan: rows of each class, their quotas, rows of a batch, rows of a block.
Plan = tuple[list[int], list[int], int, int]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Awkward sizes: up to 60 classes of 1 to 40 rows, batches and blocks that divide nothing."""
    classes = draw(st.integers(1, 60))
    counts = draw(st.lists(st.integers(1, 40), min_size=classes, max_size=classes))
    longest = max(1, 600 // classes)
    quotas = draw(st.lists(st.integers(0, longest), min_size=classes, max_size=classes).filter(any))
    batch = draw(st.integers(1, sum(quotas)))
    return counts, quotas, batch, draw(st.integers(1, 200))


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 2**64 - 1))
def test_quotas_are_exact_and_use_is_even_after_every_block(plan: Plan, seed: int) -> None:
    counts, quotas, batch_rows, block_rows = plan
    starts, total = np.cumsum([0, *counts]), sum(quotas)
    ends = {x + m * rows for x, m, rows in oracle.blocks(batch_rows, total, block_rows)}
    used = np.zeros(sum(counts), int)
    for epoch in range(2):
        places = oracle.places(counts, quotas, batch_rows, total, seed, epoch, block_rows)
        for position, place in enumerate(places):
            used[place] += 1
            if position + 1 in ends:
                for start, end in pairwise(starts):
                    assert np.ptp(used[start:end]) <= 1
        delivered = np.add.reduceat(used, starts[:-1])
        assert delivered.tolist() == [quota * (epoch + 1) for quota in quotas]


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 2**64 - 1))
def test_batches_and_their_slices_are_even(plan: Plan, seed: int) -> None:
    counts, quotas, batch_rows, block_rows = plan
    starts, total = np.cumsum([0, *counts]), sum(quotas)
    places = oracle.places(counts, quotas, batch_rows, total, seed, 0, block_rows)
    one_hot = np.searchsorted(starts, places, side="right")[:, None] == np.arange(1, len(counts) + 1)
    for x, m, rows in oracle.blocks(batch_rows, total, block_rows):
        block = one_hot[x : x + m * rows].reshape(m, rows, -1)
        share = block.mean(axis=(0, 1))
        epoch_share = np.array(quotas) / total
        assert (abs(share - epoch_share) * m * rows <= 2 * log2(len(counts)) + 1e-9).all()
        prefix = np.concatenate([np.zeros((m, 1, len(counts)), int), block.cumsum(axis=1)], axis=1)
        for length in {1, 2, 3, rows // 3, rows // 2, rows - 1} & set(range(1, rows)):
            slices = prefix[:, length:] - prefix[:, :-length]
            assert abs(slices - length * share).max() <= 2 + log2(length) / 2
        assert abs(prefix[:, -1] - rows * share).max() <= 2


@pytest.mark.parametrize(("count", "quota"), [(40, 7), (40, 13), (17, 17), (5, 4), (1, 1), (31, 30)])
def test_undersampling_covers_a_class_in_the_fewest_epochs(count: int, quota: int) -> None:
    counts, quotas = [count, 3], [quota, 5]
    seen = Counter(
        place
        for epoch in range(ceil(count / quota))
        for place in oracle.places(counts, quotas, 4, sum(quotas), 11, epoch)
        if place < count
    )
    assert len(seen) == count


def test_each_argument_changes_the_order() -> None:
    counts, quotas = [30, 50], [40, 40]
    runs = product((0, 1, 2**32), (0, 1, 2))
    orders = {tuple(oracle.places(counts, quotas, 8, 80, seed, epoch)) for seed, epoch in runs}
    assert len(orders) == 9
