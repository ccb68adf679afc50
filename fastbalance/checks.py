"""Checks of arguments that several modules share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np

from .errors import ArgumentError, explain

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def is_whole(value: object, least: int, below: int) -> TypeGuard[int]:
    """Whether a value is an integer in [least, below); numpy's integers are, bools are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= int(value) < below


def whole(name: str, value: Any, least: int, below: int, note: str = "") -> int:
    """The value as an int.

    Raises:
        ArgumentError: It is no integer in [least, below).
    """
    if not is_whole(value, least, below):
        end = f"2^{below.bit_length() - 1}" if below.bit_count() == 1 and below > 1 << 16 else f"{below:,}"
        raise ArgumentError(explain(name, got=repr(value), allowed=f"an integer in [{least}, {end}){note}"))
    return int(value)


def byte_size(name: str, value: Any, also: str = "") -> int:
    """A number of bytes, from an integer or a text such as "1.5GiB".

    Args:
        also: What else the caller takes, for the message.

    Raises:
        ArgumentError: It is none, or less than one byte.
    """
    n_bytes = 0.0
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]iB|B)?\s*", value)
        n_bytes = float(found[1]) * _UNITS[found[2] or "B"] if found else 0
    elif isinstance(value, int | np.integer) and not isinstance(value, bool):
        n_bytes = int(value)
    if n_bytes < 1:
        allowed = f'bytes as an integer > 0, or as "512MiB" or "4GiB"{also}'
        raise ArgumentError(explain(name, got=repr(value), allowed=allowed))
    return int(n_bytes)


def names_of(argument: str, value: Any, allowed: str) -> tuple[str, ...]:
    """A name, or an iterable of names, as a tuple.

    Raises:
        ArgumentError: Anything else.
    """
    if isinstance(value, str):
        return (value,)
    names = tuple(value) if isinstance(value, Iterable) else (value,)
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong or not isinstance(value, Iterable):
        raise ArgumentError(explain(argument, got=repr(wrong[0] if wrong else value), allowed=allowed))
    return names
