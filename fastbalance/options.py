"""Arguments of a loader -> what they stand for, each checked where it comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch

from .checks import byte_size, names_of
from .columns import decode_one
from .dataset import Dataset
from .errors import ArgumentError, explain
from .labels import label_names
from .records import EXTRAS, RecordLayout

_MEMORY_SHARE = 0.8  # of what is free, for memory="auto"


def opened(source: Any, label: Any, index: Any, filesystem: Any) -> Dataset:
    """The data set of a loader's source.

    Raises:
        ArgumentError: No label; or arguments beside a `Dataset` that is open.
    """
    if isinstance(source, Dataset):
        if index is not None or filesystem is not None:
            got = "index" if index is not None else "filesystem"
            raise ArgumentError(explain(got, got="a value, beside a Dataset that is open", allowed="None"))
        names = source.label if label is None else label_names(label)
        if names != source.label:
            raise ArgumentError(explain("label", got=names, allowed=f"{source.label}, the data set's own, or None"))
        return source
    if label is None:
        raise ArgumentError(explain("label", got="None", allowed="the name of the label column, or several names"))
    return Dataset.open(source, label, index=index, filesystem=filesystem)


def decoded_examples(data: Dataset, decode: Mapping[str, Any] | None) -> dict[str, tuple[Any, torch.Tensor]]:
    """What each function makes of the first row: type and shape of all rows."""
    examples = {}
    for name, function in (decode or {}).items():
        if name not in data.schema.names or not callable(function):
            got = f"{function!r} for {name!r}"
            raise ArgumentError(explain("decode", got=got, allowed=f"functions by column, of {data.schema.names}"))
        value = first_rows(data, [name])[name][0].as_py()
        examples[name] = function, decode_one(name, function, value, "the first row")
    return examples


def ragged_bytes(data: Dataset, layout: RecordLayout) -> int:
    """What a row's ragged columns occupy, about: as in the first group, and where they are."""
    if not layout.ragged:
        return 0
    table = first_rows(data, [field.column for field in layout.ragged])
    return 16 * len(layout.ragged) + -(-table.nbytes // len(table))


def first_rows(data: Dataset, columns: list[str]) -> pa.Table:
    """The first group that has rows."""
    return data.source.read_group(int(np.argmax(data.groups.n_rows > 0)), columns)


def checked_extras(extras: Sequence[str]) -> tuple[str, ...]:
    """The extras in the order of a record."""
    allowed = f"a sequence of names from {EXTRAS}"
    names = names_of("extras", extras, allowed)
    if isinstance(extras, str) or not set(names) <= set(EXTRAS):
        raise ArgumentError(explain("extras", got=repr(extras if isinstance(extras, str) else names), allowed=allowed))
    return tuple(name for name in EXTRAS if name in names)


def checked_hooks(layout: RecordLayout, collate: Any, transform: Any) -> tuple[Any, Any]:
    """The two functions of a batch.

    Raises:
        ArgumentError: They are none; or `collate` would never be called.
    """
    for name, hook in (("collate", collate), ("transform", transform)):
        if hook is not None and not callable(hook):
            raise ArgumentError(explain(name, got=repr(hook), allowed="a function of a batch, or None"))
    if collate is not None and not layout.ragged:
        allowed = "a function beside columns of strings, binary or lists, which it gets"
        raise ArgumentError(explain("collate", got="a function", allowed=allowed, fix="Take transform."))
    return collate, transform


def checked_device(device: str | torch.device | None) -> torch.device:
    """The device, which this machine has.

    Raises:
        ArgumentError: It has not.
    """
    try:
        found = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        allowed = "a device of this machine, or None"
        raise ArgumentError(explain("device", got=f"{device!r} ({error})", allowed=allowed)) from error
    return found


def memory_bytes(memory: int | str, device: torch.device) -> int:
    """A budget in bytes.

    Raises:
        ArgumentError: It is none.
    """
    if memory == "auto":
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        return int(_MEMORY_SHARE * free)
    return byte_size("memory", memory, also=', or "auto"')
