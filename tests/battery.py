"""A battery of statistical tests for families of permutations, and the controls that it must reject.

A `Sampler` gives the images of positions under a numbered sequence of permutations; `FAMILIES` says what a
number means in the order of docs/order.md (a seed, a pass, a class, ..), so that neighbouring numbers are exactly
the permutations that must not resemble each other. Every test takes arrays and returns one p-value; `whole` and
`sampled` run all that apply to a sampler, and `holm` corrects for the number of tests run.

Chi-square tests are two-sided: a fit that is too good to be random is rejected too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import factorial, gcd

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Ints = NDArray[np.int64]
Words = NDArray[np.uint32]
Sampler = Callable[[Ints, int, Ints], Ints]
"""(positions [m], n, numbers [k]) -> images [k, m]: row i is permutation `numbers[i]` of [0, n)."""

LEVEL = 1e-3  # family-wise
SEED = 0x5EED_FA57_BA1A_2CE5
SLOT_KEYS, STRATUM_KEYS, SLOT_TWEAK, STRATUM_TWEAK = 1, 2, 3, 4
FAMILIES: dict[str, Callable[[int], tuple[int, tuple[int, int, int], int, int]]] = {
    "seeds": lambda k: (k, (0, 0, 0), SLOT_TWEAK, SLOT_KEYS),
    "classes": lambda k: (SEED, (k, 0, 0), SLOT_TWEAK, SLOT_KEYS),
    "passes": lambda k: (SEED, (0, k, 0), SLOT_TWEAK, SLOT_KEYS),
    "first passes": lambda k: (k // 2, (0, k % 2, 0), SLOT_TWEAK, SLOT_KEYS),
    "strata": lambda k: (SEED, (k, 0, 0), STRATUM_TWEAK, STRATUM_KEYS),
    "epochs": lambda k: (SEED, (0, 0, k), STRATUM_TWEAK, STRATUM_KEYS),
}
"""number -> (seed, first three counter words, purpose of the tweak, purpose of the keys)."""


# Tests of permutations [k, n], each row one uniform permutation under the hypothesis.


def every_order(perms: Ints) -> float:
    """Chi-square over all n! orders; for n up to 6."""
    k, n = perms.shape
    later_smaller = (perms[:, :, None] > perms[:, None, :]) & np.triu(np.ones((n, n), bool), 1)
    weights = np.array([factorial(n - 1 - i) for i in range(n)])
    orders = later_smaller.sum(axis=2) @ weights
    return chi_square(np.bincount(orders, minlength=factorial(n)), np.full(factorial(n), k / factorial(n)))


def spread(perms: Ints, bins: int = 32) -> float:
    """Chi-square of the table (bin of the element) x (bin of its place), summed over the permutations."""
    k, n = perms.shape
    size, cells = bin_sizes(n, bins), min(n, bins)
    cell = bin_of(np.arange(n), n, bins) * cells + bin_of(perms, n, bins)
    table = np.bincount(cell.ravel(), minlength=cells**2)
    expected = k * np.outer(size, size).ravel() / n
    statistic = ((table - expected) ** 2 / expected).sum() * (n - 1) / n
    return two_sided(statistic, (cells - 1) ** 2)


def pair(perms: Ints, first: int = 0, second: int = 1, bins: int = 16) -> float:
    """Chi-square of the joint place of two elements."""
    k, n = perms.shape
    size, cells = bin_sizes(n, bins), min(n, bins)
    cell = bin_of(perms[:, first], n, bins) * cells + bin_of(perms[:, second], n, bins)
    table = np.bincount(cell, minlength=cells**2)
    expected = k * (np.outer(size, size) - np.diag(size)).ravel() / (n * (n - 1))
    possible = expected > 0
    return chi_square(table[possible], expected[possible])


def step(perms: Ints, bins: int = 64) -> float:
    """Chi-square of the distance between the places of two neighbours, one pair a permutation."""
    k, n = perms.shape
    at = np.arange(k)
    return distances(perms[at, at % n], perms[at, (at + 1) % n], n, bins)


def fixed_points(perms: Ints) -> float:
    """Chi-square of the number of fixed points: Poisson(1) for all but small n."""
    k, n = perms.shape
    found = (perms == np.arange(n)).sum(axis=1)
    deranged = [sum((-1) ** i / factorial(i) for i in range(min(n - f, 20) + 1)) for f in range(4)]
    chance = np.array([share / factorial(f) for f, share in enumerate(deranged)])
    chance = np.append(chance, 1 - chance.sum())
    possible = chance > 1e-9
    return chi_square(np.bincount(np.minimum(found, 4), minlength=5)[possible], k * chance[possible])


def ascents(perms: Ints) -> float:
    """Mean and dispersion of the number of ascents: the Eulerian distribution."""
    k, n = perms.shape
    z = ((np.diff(perms) > 0).sum(axis=1) - (n - 1) / 2) / ((n + 1) / 12) ** 0.5
    mean, dispersion = z.sum() / k**0.5, ((z**2).sum() - k) / (k * (2 - 6 / (5 * (n + 1)))) ** 0.5
    return float(stats.chi2.sf(mean**2 + dispersion**2, 2))


def displacement(perms: Ints) -> float:
    """Mean of the sum of |place - element|. Source: Diaconis & Graham, Spearman's footrule, 1977."""
    k, n = perms.shape
    total = np.abs(perms - np.arange(n)).sum(dtype=np.float64)
    return normal(total - k * (n * n - 1) / 3, k * (n + 1) * (2 * n * n + 7) / 45)


def cycles(perms: Ints) -> float:
    """Mean of the number of cycles: a sum of Bernoulli(1/i) for i = 1..n."""
    k, n = perms.shape
    chance = 1 / np.arange(1, n + 1)
    return normal(count_cycles(perms).sum() - k * chance.sum(), k * (chance * (1 - chance)).sum())


def parity(perms: Ints) -> float:
    """Half of the permutations are odd."""
    k, n = perms.shape
    return normal(((n - count_cycles(perms)) % 2).sum() - k / 2, k / 4)


# Tests of images of sampled positions, where n is large.


def distances(first: Ints, second: Ints, n: int, bins: int = 64) -> float:
    """Chi-square of (second - first) mod n, for images of different positions under one permutation."""
    distance = (second - first) % n - 1
    size = bin_sizes(n - 1, bins)
    table = np.bincount(bin_of(distance, n - 1, bins), minlength=size.size)
    return chi_square(table, distance.size * size / (n - 1))


def shifts(first: Ints, second: Ints, n: int, bins: int = 64) -> float:
    """Chi-square of (second - first) mod n, for images of one position under two permutations."""
    shift = (second - first) % n
    table = np.bincount(bin_of(shift, n, bins), minlength=bins)
    return chi_square(table, shift.size * bin_sizes(n, bins) / n)


def joint(first: Ints, second: Ints, n: int, bins: int = 16) -> float:
    """Chi-square of the joint bins of images that are independent, or nearly so as n is large."""
    size = bin_sizes(n, bins) / n
    table = np.bincount((bin_of(first, n, bins) * bins + bin_of(second, n, bins)).ravel(), minlength=bins**2)
    return chi_square(table, first.size * np.outer(size, size).ravel())


def avalanche(sampler: Sampler, bits: int, number: int, positions: Ints) -> float:
    """Every bit of a position flips every bit of its image half of the time, for n = 2^bits."""
    statistic, shift = 0.0, np.arange(bits)
    for i in range(bits):
        low = np.unique(positions & ~(1 << i))
        here, there = (sampler(x, 2**bits, np.array([number]))[0] for x in (low, low | 1 << i))
        flips = ((here ^ there)[:, None] >> shift & 1).sum(axis=0)
        statistic += ((flips - low.size / 2) ** 2).sum() / (low.size / 4)
    return two_sided(statistic, bits**2)


# Tests of who meets whom: `batch[e, row]` is the batch of a row in epoch e. Batches are of equal size.


def meetings(batch: Ints) -> float:
    """Any two rows of a class meet equally often.

    Every row meets the same number of rows, so the counts of the pairs do not vary on the space of row sums; by
    symmetry they have one variance on its complement, of dimension n(n-3)/2.
    """
    epochs, n = batch.shape
    first, second = np.triu_indices(n, 1)
    met = (batch[:, first] == batch[:, second]).sum(axis=0)
    chance = (n / (batch.max() + 1) - 1) / (n - 1)
    variance = epochs * chance * (1 - chance) * (n - 1) / (n - 3)
    return two_sided(((met - epochs * chance) ** 2).sum() / variance, n * (n - 3) // 2)


def mixed_meetings(batch: Ints, other: Ints) -> float:
    """Any row of one class and any row of another meet equally often; the row and column sums are fixed."""
    epochs, n, k = *batch.shape, other.shape[1]
    met = (batch[:, :, None] == other[:, None, :]).sum(axis=0)
    chance = 1 / (batch.max() + 1)
    variance = epochs * chance * (1 - chance) * n * k / ((n - 1) * (k - 1))
    return two_sided(((met - epochs * chance) ** 2).sum() / variance, (n - 1) * (k - 1))


# The battery.

WHOLE = (spread, pair, step, fixed_points, ascents, displacement, cycles, parity)


def whole(sampler: Sampler, n: int, k: int) -> dict[str, float]:
    """p-values of `k` whole permutations and of the quotients of neighbours, uniform if these are independent."""
    perms = sampler(np.arange(n), n, np.arange(k))
    tests = (every_order, *WHOLE) if n <= 6 else WHOLE
    found = {test.__name__: test(perms) for test in tests}
    return found | {f"{test.__name__} of quotients": test(quotients(perms)) for test in tests}


def sampled(sampler: Sampler, n: int, m: int, number: int = 0) -> dict[str, float]:
    """p-values of about `m` positions of large n, strided and random, of one permutation and its successor."""
    numbers, rng = np.array([number, number + 1]), np.random.default_rng(n)
    grid = 1 << n.bit_length() // 2
    found = {}
    for stride in (1, 2, 3, 64, grid - 1, grid, grid + 1):
        if n // gcd(n, stride) < m:
            continue
        here, after = sampler((int(rng.integers(n)) + stride * np.arange(m)) % n, n, numbers)
        found |= {
            f"distances, stride {stride}": distances(here[:-1], here[1:], n),
            f"joint, stride {stride}": joint(here[:-1:2], here[1::2], n),
            f"shifts, stride {stride}": shifts(here, after, n),
            f"joint with the successor, stride {stride}": joint(here, after, n),
        }
    x = np.unique(rng.integers(n, size=m))
    for lag in (1 << np.arange(n.bit_length() - 2)).tolist():
        here, there = (sampler(at % n, n, numbers[:1])[0] for at in (x, x + lag))
        found[f"distances, lag {lag}"] = distances(here, there, n)
    if n & (n - 1) == 0:
        found["avalanche"] = avalanche(sampler, n.bit_length() - 1, number, x)
    return found


def holm(p_values: Mapping[str, float], level: float = LEVEL) -> dict[str, float]:
    """The p-values that Holm's procedure rejects at a family-wise level."""
    rejected = {}
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > level / (len(p_values) - i):
            break
        rejected[name] = p
    return rejected


# Arithmetic shared by the tests.


def chi_square(observed: NDArray, expected: NDArray) -> float:
    """p-value of Pearson's statistic for iid observations."""
    return two_sided(((observed - expected) ** 2 / expected).sum(), observed.size - 1)


def two_sided(statistic: float, degrees: int) -> float:
    """p-value of a chi-square statistic that may be too large or too small."""
    return float(min(1, 2 * min(stats.chi2.sf(statistic, degrees), stats.chi2.cdf(statistic, degrees))))


def normal(deviation: float, variance: float) -> float:
    """Two-sided p-value of a normal deviation."""
    return float(2 * stats.norm.sf(abs(deviation) / variance**0.5))


def bin_of(values: Ints, n: int, bins: int) -> Ints:
    """The bin of values in [0, n): `bins` of nearly equal size, or one a value when n is smaller."""
    return values if n <= bins else values * bins // n


def bin_sizes(n: int, bins: int) -> Ints:
    """How many values of [0, n) each bin holds."""
    cells = min(n, bins)
    return np.diff(-(-np.arange(cells + 1) * n // cells))


def quotients(perms: Ints) -> Ints:
    """For neighbours p, q = rows (0, 1), (2, 3), ..: the permutations that take p(x) to q(x)."""
    first, second = perms[:-1:2], perms[1::2]
    quotient = np.empty_like(first)
    np.put_along_axis(quotient, first, second, axis=1)
    return quotient


def count_cycles(perms: Ints) -> Ints:
    """The number of cycles of every row, by pointer doubling: a cycle is known by its smallest element."""
    smallest, ahead = np.broadcast_to(np.arange(perms.shape[1]), perms.shape), perms
    for _ in range(perms.shape[1].bit_length()):
        smallest = np.minimum(smallest, np.take_along_axis(smallest, ahead, axis=1))
        ahead = np.take_along_axis(ahead, ahead, axis=1)
    return (smallest == np.arange(perms.shape[1])).sum(axis=1)


# Samplers written in numpy: the network of docs/order.md with any number of rounds, and what must fail.


def philox(counter: Iterable[ArrayLike], key: Iterable[ArrayLike]) -> list[Words]:
    """Philox4x32-10 of arrays of words."""
    c0, c1, c2, c3, k0, k1 = np.broadcast_arrays(*(np.asarray(word, np.uint64) for word in (*counter, *key)))
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & low, p0 >> 32 ^ c3 ^ k1, p0 & low
        k0, k1 = k0 + np.uint64(0x9E3779B9) & low, k1 + np.uint64(0xBB67AE85) & low
    return [word.astype(np.uint32) for word in (c0, c1, c2, c3)]


def network(family: str, rounds: int | None = None) -> Sampler:
    """The bijection for n >= 17, of a family; `rounds` None is the number of docs/order.md."""

    def sample(x: Ints, n: int, numbers: Ints) -> Ints:
        addresses = [FAMILIES[family](number) for number in numbers.tolist()]
        seed = np.array([a[0] for a in addresses], np.uint64)[:, None]
        key = (seed & np.uint64(0xFFFFFFFF), seed >> np.uint64(32))
        keys = [w for q in range(6) for w in philox((q, 0, 0, addresses[0][3]), key)]
        counter = np.array([a[1] for a in addresses]).T[:, :, None]
        tweak = philox((*counter, addresses[0][2]), key)[:2]
        return feistel(x, n, keys, *tweak, rounds or (12 if n < 4096 else 8))

    return sample


def feistel(x: Ints, n: int, keys: list[Words], t0: Words, t1: Words, rounds: int) -> Ints:
    """Images [k, m] of positions [m] under keys and tweaks of shape [k, 1]."""
    y = np.repeat(x[None], len(t0), axis=0)
    walking = np.nonzero(np.ones(y.shape, bool))
    r = n.bit_length() // 2
    a = np.uint32(2 * ((n + 2 ** (r + 1) - 1) >> (r + 1)))
    while walking[0].size:
        which = walking[0] if len(t0) > 1 else np.zeros(1, np.int64)
        left, right = (part.astype(np.uint32) for part in np.divmod(y[walking], 2**r))
        for i in range(rounds):
            k0, k1 = (w[which, 0] for w in (keys[2 * i] ^ t0 | np.uint32(1), keys[2 * i + 1] + t1))
            g = k0 * (left if i % 2 else right) + k1
            g = (g ^ g >> np.uint32(16)) * np.uint32(0x21F0AAAD)
            if i % 2:
                right ^= g >> np.uint32(32 - r)
            else:
                left += (g * np.uint64(a) >> np.uint64(32)).astype(np.uint32)
                left -= np.where(left >= a, a, np.uint32(0))
        y[walking] = left.astype(np.int64) << r | right
        out = y[walking] >= n
        walking = tuple(axis[out] for axis in walking)
    return y


def affine(x: Ints, n: int, numbers: Ints) -> Ints:
    """Control: a linear congruence, for n up to 2^31."""
    rows = []
    for number in numbers.tolist():
        rng = np.random.default_rng(number)
        factor = next(f for f in rng.integers(n, size=1000).tolist() if gcd(f, n) == 1)
        rows.append((factor * x + rng.integers(n)) % n)
    return np.stack(rows)


def rotation(x: Ints, n: int, numbers: Ints) -> Ints:
    """Control: the number is added, as in `seed + epoch`."""
    return (x + numbers[:, None]) % n


def frozen(sampler: Sampler) -> Sampler:
    """Control: neighbours share a permutation."""
    return lambda x, n, numbers: sampler(x, n, numbers // 2)


def odd_grid(x: Ints, n: int, numbers: Ints) -> Ints:
    """Control: additions on a grid of odd x odd cells, even permutations only; n is an odd square."""
    side = round(n**0.5)
    rows = []
    for number in numbers.tolist():
        rng = np.random.default_rng(number)
        left, right = np.divmod(x, side)
        for _ in range(8):
            left, right = right, (left + rng.integers(side, size=side)[right]) % side
        rows.append(left * side + right)
    return np.stack(rows)


def lossy(sampler: Sampler) -> Sampler:
    """Control: the last value never comes, another comes twice."""
    return lambda x, n, numbers: np.minimum(sampler(x, n, numbers), n - 2)
