"""Target distributions of the classes, as frozen values: what share of the draws each class gets.

A value only says weights; `plan.make_plan` turns them into integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from .errors import ArgumentError, PlanError, explain


class Balance(Protocol):
    """What `balance=` takes."""

    def weights(self, class_counts: np.ndarray, classes: Sequence[object]) -> np.ndarray:
        """Relative weights of the classes, float64 `[n_classes]`, each >= 0."""


@dataclass(frozen=True)
class Power:
    """Weights `n_c ** alpha`: 1 is the natural distribution, 0 the uniform one, 0.5 the square root.

    Source: the sampling temperatures of Kang et al., *Decoupling representation and classifier*,
    arXiv:1910.09217, section 3.
    """

    alpha: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ArgumentError(explain("alpha", got=self.alpha, allowed="a finite number"))

    def weights(self, class_counts: np.ndarray, classes: Sequence[object]) -> np.ndarray:
        return class_counts.astype(np.float64) ** self.alpha

    def __str__(self) -> str:
        return _NAMES.get(self.alpha, f"power({self.alpha:g})")


@dataclass(frozen=True)
class Target:
    """Explicit shares by label. They are relative: `{"yes": 1, "no": 3}` is 25 % and 75 %."""

    shares: Mapping[object, float]

    def __post_init__(self) -> None:
        bad = {label: w for label, w in self.shares.items() if not (math.isfinite(w) and w >= 0)}
        if bad or not any(self.shares.values()):
            raise ArgumentError(
                explain(
                    "target shares",
                    got=bad or dict(self.shares),
                    allowed="finite numbers >= 0, at least one of them > 0",
                )
            )

    def weights(self, class_counts: np.ndarray, classes: Sequence[object]) -> np.ndarray:
        known = set(classes)
        absent = [label for label in self.shares if label not in known]
        if absent:
            raise PlanError(
                explain(
                    "target shares",
                    got=f"shares for {_few(absent)}, which no row has",
                    allowed=f"the labels of the data: {_few(classes)}",
                    fix="Check spelling and type of the label; a class without rows cannot be drawn.",
                )
            )
        missing = [label for label in classes if label not in self.shares]
        if missing:
            raise PlanError(
                explain(
                    "target shares",
                    got=f"no share for {_few(missing)}",
                    allowed="a share for every class",
                    fix="Give a class the share 0 to leave it out on purpose.",
                )
            )
        return np.array([float(self.shares[label]) for label in classes])

    def __str__(self) -> str:
        shares = ", ".join(f"{label!r}: {w:g}" for label, w in list(self.shares.items())[:4])
        return f"target({{{shares}{', ...' if len(self.shares) > 4 else ''}}})"


@dataclass(frozen=True)
class Ratio:
    """Cap the imbalance: no class gets more than `max_to_min` times the share of the rarest."""

    max_to_min: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_to_min) and self.max_to_min >= 1):
            raise ArgumentError(explain("max_to_min", got=self.max_to_min, allowed="a number >= 1"))

    def weights(self, class_counts: np.ndarray, classes: Sequence[object]) -> np.ndarray:
        return np.minimum(class_counts, self.max_to_min * class_counts.min()).astype(np.float64)

    def __str__(self) -> str:
        return f"ratio({self.max_to_min:g})"


natural = Power(1.0)
uniform = Power(0.0)
sqrt = Power(0.5)
_NAMES = {1.0: "natural", 0.0: "uniform", 0.5: "sqrt"}


def power(alpha: float) -> Power:
    """Weights `n_c ** alpha`; `alpha` in [0, 1] lies between uniform and natural."""
    return Power(float(alpha))


def target(shares: Mapping[object, float]) -> Target:
    """Explicit shares: `target({label: share})`, relative, one for every class."""
    return Target(MappingProxyType(dict(shares)))


def ratio(max_to_min: float) -> Ratio:
    """The natural distribution, with the largest class capped at `max_to_min` times the rarest."""
    return Ratio(float(max_to_min))


def resolve(balance: str | Balance) -> Balance:
    """The value that a name stands for; a value stands for itself.

    Raises:
        ArgumentError: An unknown name, or something that gives no weights.
    """
    named = {"natural": natural, "uniform": uniform, "sqrt": sqrt}
    if isinstance(balance, str) and balance in named:
        return named[balance]
    if isinstance(balance, str) or not hasattr(balance, "weights"):
        raise ArgumentError(
            explain(
                "balance",
                got=repr(balance),
                allowed='"natural", "uniform", "sqrt", or a value of fastbalance.balance: '
                "power(alpha), target({label: share}), ratio(max_to_min)",
            )
        )
    return balance


def _few(labels: Sequence[object], most: int = 5) -> str:
    shown = ", ".join(repr(label) for label in labels[:most])
    return f"{shown}, ... ({len(labels)} in all)" if len(labels) > most else shown
