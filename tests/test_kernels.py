"""The kernels that move rows, and the words of Philox, in every interpretation that runs here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastbalance.kernels import cpu, cpu_rows, torch_ops
from fastbalance.kernels.philox import SLOT_ROUND_KEYS, SLOT_TWEAK
from fastbalance.kernels.threads import shared_out
from hypothesis import given
from hypothesis import strategies as st

from . import oracle

MODULES = [cpu, torch_ops]

# Random123's known answers of philox4x32-10: counter, key, result.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, words):
    x = [np.array([value]) for value in counter[:3]]
    assert cpu.words(*x, counter[3], key[0] | key[1] << 32)[0].tolist() == words
    tensors = [torch.tensor([value]) for value in counter]
    assert [int(word) for word in torch_ops.philox(*tensors, *key)] == words


@given(seed=st.integers(0, 2**64 - 1), x=st.integers(0, 2**32 - 1))
def test_keys_equal_the_oracle(seed, x):
    assert cpu.round_keys(seed, SLOT_ROUND_KEYS).tolist() == list(oracle.round_keys(seed, SLOT_ROUND_KEYS))
    got = cpu.tweaks(np.array([x]), np.array([7]), np.array([1]), SLOT_TWEAK, seed)[0]
    assert got.tolist() == list(oracle.tweak(x, 7, 1, SLOT_TWEAK, seed))


@pytest.mark.parametrize("n", [*range(1, 40), 255, 256, 257, 4095, 4096, 4097, 65_535, 65_536, 65_537])
def test_bijection_equals_the_oracle_and_its_vector_path(n):
    keys, t0, t1 = cpu.round_keys(11, SLOT_ROUND_KEYS), 0xDEADBEEF, 0xFFFFFFFF
    x = np.arange(n)
    y = cpu.bijection(x, n, keys, t0, t1)
    assert np.array_equal(np.sort(y), x)
    some = x[:: 1 + n // 300]
    assert [oracle.bijection(int(v), n, keys.tolist(), t0, t1) for v in some] == y[some].tolist()
    out = np.empty(n, np.int64)
    cpu.bijection_range(0, n, *cpu._bijection.grid(n), keys, np.uint32(t0), np.uint32(t1), out)
    np.testing.assert_array_equal(out, y)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("record_bytes", [16, 32, 48, 144, 1040])
@given(n=st.integers(1, 300), m=st.integers(0, 400), seed=st.integers(0, 99))
def test_gather(module, record_bytes, n, m, seed):
    rng = np.random.default_rng(seed)
    records = torch.from_numpy(rng.integers(0, 256, (n, record_bytes), dtype=np.uint8))
    places = torch.from_numpy(rng.integers(0, n, m))
    out = torch.zeros((m, record_bytes), dtype=torch.uint8)
    module.gather(out, records, places)
    np.testing.assert_array_equal(out, records.numpy()[places.numpy()])


def test_gather_on_several_threads():
    torch.set_num_threads(3)
    records = torch.arange(1_000_000, dtype=torch.int64).view(torch.uint8).reshape(-1, 16)
    places = torch.randint(0, len(records), (50_001,), generator=torch.Generator().manual_seed(1))
    out = torch.empty((len(places), 16), dtype=torch.uint8)
    cpu.gather(out, records, places)
    assert torch.equal(out.view(torch.int64)[:, 0], 2 * places)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_take(module, dtype):
    values = np.array([0, 1, 2**31, 2**32 - 1, 5], dtype)
    places = torch.tensor([4, 3, 3, 2, 0])
    got = module.take(torch.from_numpy(values), places)
    assert got.dtype == torch.int64
    assert got.tolist() == values[places.numpy()].tolist()


@given(n=st.integers(0, 700), seed=st.integers(0, 99))
def test_pack_puts_every_item_where_it_belongs_and_nothing_else(n, seed):
    rng = np.random.default_rng(seed)
    columns = [
        rng.integers(0, 256, n, dtype=np.uint8),
        rng.integers(0, 2**16, n, dtype=np.uint16),
        rng.random(n, dtype=np.float32),
        rng.random(n),
        rng.random((n, 3), dtype=np.float32),
        rng.integers(0, 256, (n, 5), dtype=np.uint8),
    ]
    offsets = [0, 2, 4, 8, 16, 28]
    records = torch.full((n + 3, 48), 0xAB, dtype=torch.uint8)
    places = rng.permutation(n + 3)[:n]
    cpu_rows.pack(records, places, columns, offsets)
    wanted = np.full((n + 3, 48), 0xAB, np.uint8)
    wanted[places] = 0
    for column, offset in zip(columns, offsets, strict=True):
        flat = column.reshape(n, -1).view(np.uint8) if n else np.empty((0, 0), np.uint8)
        wanted[places, offset : offset + flat.shape[1]] = flat
    np.testing.assert_array_equal(records, wanted)


@given(ids=st.lists(st.integers(0, 5), max_size=200), parts=st.integers(1, 5))
def test_number_rows_in_parts_is_a_counting_sort(ids, parts):
    class_ids = np.array(ids, np.int32)
    counts = np.bincount(class_ids, minlength=6)
    following = np.cumsum(counts) - counts
    numbered = [cpu_rows.number_rows(part, following) for part in np.array_split(class_ids, parts)]
    np.testing.assert_array_equal(np.argsort(class_ids, kind="stable"), np.argsort(np.concatenate(numbered)))
    np.testing.assert_array_equal(following, np.cumsum(counts))


@given(size=st.integers(0, 100), threads=st.integers(1, 5), least=st.integers(1, 40))
def test_shared_out_covers_every_item_once(size, threads, least):
    torch.set_num_threads(threads)
    hits = np.zeros(size, int)

    def work(start: int, stop: int) -> None:
        hits[start:stop] += 1

    shared_out(work, size, least)
    assert (hits == 1).all()


def test_shared_out_raises_what_a_part_raised():
    torch.set_num_threads(2)

    def work(start: int, stop: int) -> None:
        if start:
            raise RuntimeError("from the second part")

    with pytest.raises(RuntimeError, match="from the second part"):
        shared_out(work, 10, 1)
