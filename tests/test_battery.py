"""The bijection against the battery, and the battery against controls that it must reject."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest

from . import battery, oracle
from .battery import FAMILIES, Ints, Sampler

SMALL = (*range(2, 8), 16, 17, 20, 31, 32, 33, 64, 100, 255, 256, 257)
MIDDLE = (63, 65, 1000, 1023, 1024, 1025, 4095, 4096, 4097, 10_007)
LARGE = (2**16 + 1, 10**6, 2**20, 2**32 - 1, 2**32, 2**32 + 1, 2**48 - 1, 2**48, 2**48 + 1)


@pytest.fixture(scope="module")
def bijection_of() -> Callable[[str], Sampler]:
    """The library's bijection, as the sampler of a family."""
    from fastbalance.kernels import cpu

    keys = lru_cache(cpu.round_keys)

    def sampler(family: str) -> Sampler:
        def images(x: Ints, n: int, number: int) -> Ints:
            seed, counter, tweak_purpose, key_purpose = FAMILIES[family](number)
            words = (np.array([word]) for word in counter)
            ((t0, t1),) = cpu.tweaks(*words, tweak_purpose, seed).tolist()
            return cpu.bijection(x, n, keys(seed, key_purpose), t0, t1)

        return lambda x, n, numbers: np.stack([images(x, n, number) for number in numbers.tolist()])

    return sampler


def uniform(x: Ints, n: int, numbers: Ints) -> Ints:
    """Uniform shuffles."""
    rng = np.random.default_rng(n)
    return np.stack([rng.permutation(n)[x] for _ in numbers])


def p_values_of_whole(sampler: Sampler, sizes: tuple[int, ...], images: int) -> dict[tuple, float]:
    """p-values of permutations of each size: as many as have `images` images, at most `images` / 16."""
    return {(n, name): p for n in sizes for name, p in battery.whole(sampler, n, images // max(n, 16) // 2 * 2).items()}


def p_values_of_sampled(sampler: Sampler, sizes: tuple[int, ...], m: int, numbers: int) -> dict[tuple, float]:
    return {
        (n, number, name): p
        for n in sizes
        for number in range(numbers)
        for name, p in battery.sampled(sampler, n, m, number).items()
    }


# The real thing.


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_permutations_look_uniform(bijection_of: Callable[[str], Sampler], family: str) -> None:
    p_values = p_values_of_whole(bijection_of(family), SMALL, 2**15)
    assert not battery.holm(p_values)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_positions_look_uniform(bijection_of: Callable[[str], Sampler], family: str) -> None:
    assert not battery.holm(p_values_of_sampled(bijection_of(family), LARGE, 2**12, 1))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_many_images_look_uniform(bijection_of: Callable[[str], Sampler], family: str) -> None:
    sampler = bijection_of(family)
    p_values = p_values_of_whole(sampler, SMALL + MIDDLE, 2**17)
    p_values |= p_values_of_sampled(sampler, LARGE[1:], 2**15, 4)
    assert not battery.holm(p_values)


@pytest.mark.parametrize("n", [1, 2, 16, 17, 4095, 4096, 65_535, 65_536, 65_537, 262_145, 1_000_003])
def test_every_value_comes_once(bijection_of: Callable[[str], Sampler], n: int) -> None:
    for sampler in (bijection_of("passes"), bijection_of("seeds")):
        for images in sampler(np.arange(n), n, np.arange(3)):
            np.testing.assert_array_equal(np.sort(images), np.arange(n))


# Who meets whom in a batch, by the oracle.


@pytest.fixture(scope="module")
def batches() -> tuple[Ints, Ints]:
    """The batch of every row of two classes, of 24 and 72 rows, in 200 epochs that deliver each row once."""
    batch = np.empty((200, 96), np.int64)
    for epoch, row in enumerate(batch):
        row[oracle.places([24, 72], [24, 72], 16, 96, 3, epoch)] = np.arange(96) // 16
    return batch[:, :24], batch[:, 24:]


def test_any_two_rows_meet_equally_often(batches: tuple[Ints, Ints]) -> None:
    minority, majority = batches
    p_values = {
        "minority": battery.meetings(minority),
        "majority": battery.meetings(majority),
        "both": battery.mixed_meetings(minority, majority),
    }
    assert not battery.holm(p_values)


def test_neighbours_that_never_meet_are_rejected() -> None:
    rng = np.random.default_rng(0)
    strata = np.stack([np.concatenate([rng.permutation(6) for _ in range(4)]) for _ in range(200)])
    assert battery.meetings(strata) < 1e-9
    assert battery.mixed_meetings(strata, np.roll(strata, 1, axis=1)) < 1e-9


# The battery itself.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [17, 100, 4095, 4096, 65_537, 2**48 + 1, 2**62 - 1])
def test_numpy_network_is_the_bijection_of_the_contract(family: str, n: int) -> None:
    x = np.array([0, 1, n // 3, n - 2, n - 1])
    images = battery.network(family)(x, n, np.arange(4))
    for number, row in enumerate(images.tolist()):
        seed, counter, tweak_purpose, key_purpose = FAMILIES[family](number)
        keys, tweak = oracle.round_keys(seed, key_purpose), oracle.tweak(*counter, tweak_purpose, seed)
        assert row == [oracle.bijection(value, n, keys, *tweak) for value in x.tolist()]


def test_uniform_shuffles_pass() -> None:
    assert not battery.holm(p_values_of_whole(uniform, SMALL, 2**15))
    assert not battery.holm(p_values_of_sampled(uniform, (2**16 + 1, 2**17), 2**11, 1))


HALF_GROWN = battery.network("passes", rounds=2)


@pytest.mark.parametrize(
    ("test", "control", "n"),
    [
        ("every_order", battery.affine, 6),
        ("spread", HALF_GROWN, 17),
        ("pair", battery.affine, 16),
        ("step", HALF_GROWN, 17),
        ("fixed_points", battery.affine, 100),
        ("ascents", battery.affine, 100),
        ("displacement", HALF_GROWN, 33),
        ("cycles", battery.affine, 100),
        ("parity", battery.odd_grid, 49),
        *((f"{test.__name__} of quotients", battery.rotation, 100) for test in battery.WHOLE),
        ("every_order of quotients", battery.frozen(battery.affine), 6),
    ],
)
def test_each_test_of_whole_permutations_can_fail(test: str, control: Sampler, n: int) -> None:
    assert battery.whole(control, n, 4000)[test] < 1e-9


@pytest.mark.parametrize(
    ("test", "control"),
    [
        ("distances, stride 1", battery.affine),
        ("joint, stride 1", battery.affine),
        ("shifts, stride 1", battery.frozen(battery.affine)),
        ("joint with the successor, stride 1", battery.rotation),
        ("distances, lag 8", battery.affine),
        ("avalanche", battery.affine),
    ],
)
def test_each_test_of_sampled_positions_can_fail(test: str, control: Sampler) -> None:
    assert battery.sampled(control, 2**20, 2**12)[test] < 1e-9


@pytest.mark.parametrize("n", [17, 20, 28, 64])
def test_four_rounds_are_rejected(n: int) -> None:
    assert battery.holm(p_values_of_whole(battery.network("passes", rounds=4), (n,), 2**18))


@pytest.mark.slow
def test_four_rounds_are_rejected_at_a_million() -> None:
    assert battery.holm(battery.sampled(battery.network("seeds", rounds=4), 10**6, 2**17))


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_that_share_a_permutation_are_rejected(family: str) -> None:
    sampler = battery.frozen(battery.network(family))
    assert "fixed_points of quotients" in battery.holm(battery.whole(sampler, 33, 2000))


def test_a_map_that_never_yields_the_last_row_is_noticed() -> None:
    (images,) = battery.lossy(battery.network("seeds"))(np.arange(65_537), 65_537, np.arange(1))
    assert (np.sort(images) != np.arange(65_537)).sum() == 1


def test_holm_stops_at_the_first_p_value_that_stands() -> None:
    p_values = {"a": 0.9, "b": 0.004, "c": 0.02, "d": 0.013}
    assert battery.holm(p_values, level=0.05) == {"b": 0.004, "d": 0.013, "c": 0.02}
    assert battery.holm(p_values, level=0.03) == {"b": 0.004}
