"""Rows that were gathered together -> the batches that the loop gets: cut, moved to the device, and the user's hooks.

records --views--> tensors, n rows at a time --------------------------------+--> dict --transform--> yield
ragged columns, on the host --collate--> tensors --> moved to the device ----+
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .arena import Rows
from .errors import ArgumentError, explain
from .ragged import Ragged
from .records import RecordLayout

Hook = Callable[[dict[str, Any]], Any]


class BatchMaker:
    """Makes batches of gathered rows.

    Args:
        weights: float32 `[n_classes]`, on the device: of the classes, for the extra "weight".
        collate: Makes of a batch's ragged columns, and of its seeds if it has them, on the host, what the batch gets in
            their place; None: themselves.
        transform: Makes of a batch on the device what the loop gets; None: the batch.
    """

    def __init__(
        self,
        layout: RecordLayout,
        device: torch.device,
        weights: torch.Tensor,
        collate: Hook | None,
        transform: Hook | None,
    ) -> None:
        self._layout, self._device, self._weights = layout, device, weights
        self._collate, self._transform = collate, transform

    def cut(self, gathered: Rows, seeds: torch.Tensor | None, n_rows: int) -> Iterator[Any]:
        """Batches of `n_rows` rows, in order.

        Args:
            seeds: int64 `[n]`, on the device: of the draws, if the batches are to have them.

        Raises:
            ArgumentError: `collate` returns no dict, or a name that the batch has already.
        """
        columns = self._layout.views(gathered.records)
        if "weight" in columns:  # its field holds class ids
            columns["weight"] = self._weights[columns["weight"]]
        if seeds is not None:
            columns["seed"] = seeds
        parts = {name: column.split(n_rows) for name, column in columns.items()}
        ragged = {name: column.split(n_rows) for name, column in gathered.ragged.items()}
        for k, _ in enumerate(range(0, len(gathered.records), n_rows)):
            batch: dict[str, Any] = {name: part[k] for name, part in parts.items()}
            if ragged:
                batch |= self._from_host({name: part[k] for name, part in ragged.items()}, batch)
            yield self._transform(batch) if self._transform else batch

    def _from_host(self, host: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """What a batch gets for its ragged columns."""
        if self._collate is not None:
            seeds = {"seed": batch["seed"].cpu()} if "seed" in batch else {}
            host = self._collate(host | seeds)
            if not isinstance(host, dict) or not batch.keys().isdisjoint(host.keys() - seeds.keys()):
                got = f"the names {sorted(host)}" if isinstance(host, dict) else type(host).__name__
                allowed = f"a dict without {', '.join(map(repr, batch))}"
                raise ArgumentError(explain("what collate returned", got=got, allowed=allowed))
        return {name: self._moved(value) for name, value in host.items() if name not in batch}

    def _moved(self, value: Any) -> Any:
        if isinstance(value, Ragged):
            return value.to(self._device)
        return value.to(self._device, non_blocking=True) if isinstance(value, torch.Tensor) else value
