"""Checks of arguments that several modules share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np

from .errors import ArgumentError, explain


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
