"""The kernels as torch operators: `fastbalance::order_block`, `::gather` and `::take`.

`torch.compile(fullgraph=True)`, `torch.export` and fake tensors see one opaque operator each, which calls the
interpretation of the device (`dispatch.kernels_for`).

`order_block` and `gather` write into the caller's memory, so that the memory of a batch can be reused, and captured:

CUDA graphs. With numba-cuda, `order_block` and `gather` are one launch each, on torch's current stream. They read every
number from the block's tensors, wait for nothing, and allocate nothing. A graph that has captured them computes another
batch when it is replayed after `block.numbers` (and, for another block, `draws`) was copied over. Capture after a first
call, which compiles. The torch interpretation cannot be captured: its walk asks the device whether to go on.

Operators are defined by `Library.define`, which adds 2 us to a call; `torch.library.custom_op` adds 15 to 20. With the
checks a call costs 8 to 13 us more than the kernel's (Zen 3, bench/compiled.py); a gather of 8 MiB takes 2,000.
"""

from __future__ import annotations

import torch

from . import dispatch
from .locate import Block

__all__ = ["gather", "order_block", "take"]

_library = torch.library.Library("fastbalance", "DEF")
_TABLES = {"classes": 6, "draws": 3, "keys": 2}  # their lines
_KEYS, _NUMBERS = 24, 9


def order_block(out: torch.Tensor, block: Block) -> None:
    """Fill `out` with places of a block; values that point outside of the tables are not checked.

    Args:
        out: int64 `[batches, columns]`, contiguous. The batches from `numbers[FIRST]` on, in each the positions from
            `numbers[COLUMN]` on.
        block: Tables on the same device, as `locate.Block` describes them.

    Raises:
        ValueError, TypeError: A tensor of another shape, device or dtype.
    """
    torch.ops.fastbalance.order_block.default(out, *block)


def gather(out: torch.Tensor, records: torch.Tensor, places: torch.Tensor) -> None:
    """`out[k] = records[places[k]]`.

    Args:
        out: uint8 `[n, record_bytes]`, contiguous; a record is a multiple of 16 bytes.
        records: uint8 `[capacity, record_bytes]`, contiguous, on the same device.
        places: int64 `[n]`, on the same device. Each in `[0, capacity)`, which is not checked.

    Raises:
        ValueError, TypeError: A tensor of another shape, device or dtype.
    """
    torch.ops.fastbalance.gather.default(out, records, places)


def take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`values[places]` as int64 `[n]`.

    Args:
        values: uint32 or uint64 `[capacity]`, below 2^63.
        places: int64 `[n]`, on the same device. Each in `[0, capacity)`, which is not checked.

    Raises:
        ValueError, TypeError: A tensor of another shape, device or dtype.
    """
    return torch.ops.fastbalance.take.default(values, places)


def _check_order(
    out: torch.Tensor,
    classes: torch.Tensor,
    draws: torch.Tensor,
    strata: torch.Tensor,
    keys: torch.Tensor,
    numbers: torch.Tensor,
) -> None:
    _check("out", out, out.device, torch.int64, 2)
    _check("classes", classes, out.device, torch.int64, 2)
    _check("draws", draws, out.device, torch.int64, 2)
    _check("strata", strata, out.device, torch.int32, 1)
    _check("keys", keys, out.device, torch.int32, 2)
    _check("numbers", numbers, out.device, torch.int64, 1)
    _check_packed("out", out)
    for name, table in (("classes", classes), ("draws", draws), ("keys", keys)):
        if table.shape[0] != _TABLES[name]:
            raise ValueError(f"{name}: got {table.shape[0]} lines; allowed: {_TABLES[name]}")
    if keys.shape[1] != _KEYS or numbers.shape[0] != _NUMBERS:
        got = f"{keys.shape[1]} and {numbers.shape[0]} entries"
        raise ValueError(f"keys and numbers: got {got}; allowed: {_KEYS} and {_NUMBERS}")
    if classes.shape[1] != draws.shape[1]:
        got = f"{classes.shape[1]} and {draws.shape[1]} columns"
        raise ValueError(f"classes and draws: got {got}; allowed: one column a class in both")


def _check_gather(out: torch.Tensor, records: torch.Tensor, places: torch.Tensor) -> None:
    _check("out", out, out.device, torch.uint8, 2)
    _check("records", records, out.device, torch.uint8, 2)
    _check("places", places, out.device, torch.int64, 1)
    _check_packed("out", out)
    _check_packed("records", records)
    if out.shape[1] != records.shape[1] or records.shape[1] % 16:
        got = f"{out.shape[1]} and {records.shape[1]} bytes a record"
        raise ValueError(f"out and records: got {got}; allowed: the same multiple of 16")
    if out.shape[0] != places.shape[0]:
        raise ValueError(f"out: got {out.shape[0]} records; allowed: as many as places, {places.shape[0]}")


def _check_take(values: torch.Tensor, places: torch.Tensor) -> None:
    _check("values", values, places.device, torch.uint64 if values.dtype == torch.uint64 else torch.uint32, 1)
    _check("places", places, places.device, torch.int64, 1)


def _check(name: str, tensor: torch.Tensor, device: torch.device, dtype: torch.dtype, dimensions: int) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: got {tensor.dtype}; allowed: {dtype}")
    if tensor.dim() != dimensions:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}; allowed: {dimensions} dimensions")
    if tensor.device != device:
        raise ValueError(f"{name}: got device {tensor.device}; allowed: {device}, as the others")


def _check_packed(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: got strides {list(tensor.stride())}; allowed: a contiguous tensor")


def _order_block(out: torch.Tensor, *tables: torch.Tensor) -> None:
    _check_order(out, *tables)
    dispatch.kernels_for(out.device).order_block(out, Block(*tables))


def _gather(out: torch.Tensor, records: torch.Tensor, places: torch.Tensor) -> None:
    _check_gather(out, records, places)
    dispatch.kernels_for(out.device).gather(out, records, places)


def _take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    _check_take(values, places)
    return dispatch.kernels_for(places.device).take(values, places)


def _fake_take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    _check_take(values, places)
    return torch.empty_like(places)


_TABLE_ARGUMENTS = "Tensor classes, Tensor draws, Tensor strata, Tensor keys, Tensor numbers"
for _schema, _run, _fake in (
    (f"order_block(Tensor(a!) out, {_TABLE_ARGUMENTS}) -> ()", _order_block, _check_order),
    ("gather(Tensor(a!) out, Tensor records, Tensor places) -> ()", _gather, _check_gather),
    ("take(Tensor values, Tensor places) -> Tensor", _take, _fake_take),
):
    _name = _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastbalance::{_name}", _fake, lib=_library)
