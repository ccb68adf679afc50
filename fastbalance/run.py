"""What the loader and the samplers share: arguments -> plan, seed and cursor -> where the run is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from . import balance as _balance
from .checks import whole
from .cursor import Cursor, checked_seed, drawn_seed
from .errors import LanesError, StarvedClassError
from .plan import MAX_BATCH_ROWS, BalancePlan, Tail, make_plan
from .ranks import found_ranks, given_ranks
from .split import check_ranks


class Run:
    """A run over epochs of balanced batches. A subclass says over which rows.

    Made before the data is opened, so that a wrong argument is said before a long scan; `_check_plan` follows once
    the classes are known.
    """

    def __init__(
        self,
        batch_size: int | None,
        balance: str | _balance.Balance,
        epoch_rows: int | Literal["over", "under"] | None,
        tail: Tail,
        seed: int | None,
        rank: int | None,
        world_size: int | None,
        mesh: Any,
    ) -> None:
        self.batch_size = whole("batch_size", batch_size, 1, MAX_BATCH_ROWS)
        self._balance, self._epoch_rows, self._tail = _balance.resolve(balance), epoch_rows, tail
        self._seed = checked_seed(seed)
        self._given_ranks = given_ranks(rank, world_size, mesh)
        self._settled_ranks: tuple[int, int] | None = None  # those of the iterations
        self._plan: tuple[tuple[int, int], BalancePlan] | None = None
        self._cursor = Cursor()

    @property
    def classes(self) -> list[Any]:
        """The label value of each class id."""
        raise NotImplementedError

    @property
    def class_counts(self) -> np.ndarray:
        """Rows of each class, int64 `[n_classes]`."""
        raise NotImplementedError

    @property
    def _fingerprint(self) -> str:
        """Of the data that a state belongs to."""
        raise NotImplementedError

    @property
    def plan(self) -> BalancePlan:
        """What an epoch delivers, over all ranks."""
        if self._plan is None or self._plan[0] != self._ranks:
            rank, world_size = self._ranks
            plan = self._plan_for(world_size)
            check_ranks(plan, rank, world_size)
            self._plan = (rank, world_size), plan
        return self._plan[1]

    @property
    def seed(self) -> int:
        """The seed; drawn now where it was None."""
        if self._seed is None:
            self._seed = drawn_seed()
        return self._seed

    def _start(self) -> tuple[int, int]:
        """Epoch and first batch of an iteration that begins now."""
        self._settled_ranks = self._ranks
        return self._cursor.start()

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; a position loaded for this same epoch is kept."""
        self._cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, counted by what was yielded: small, JSON, good for any number of ranks.

        Taken in the last step of an epoch it names the start of the next one.
        """
        return self._cursor.save(self.seed, self.plan, self._fingerprint)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was saved, with its seed: the rest equals the run that was never stopped.

        Raises:
            StateError: The state belongs to other data, another plan or another global batch size.
        """
        self._seed = self._cursor.load(state, self.plan, self._fingerprint)

    @property
    def _ranks(self) -> tuple[int, int]:
        """Rank and world size. Found anew until an iteration begins: a plan may be printed before there is a group."""
        return self._given_ranks or self._settled_ranks or found_ranks()

    def _plan_for(self, world_size: int) -> BalancePlan:
        rows = self.batch_size * world_size
        return make_plan(
            self.class_counts, self._balance, self._epoch_rows, rows, classes=self.classes, tail=self._tail
        )

    def _check_plan(self) -> None:
        """Say now what is wrong with the plan, as far as that does not hang on a number of ranks yet unknown."""
        if self._given_ranks is not None:
            _ = self.plan
            return
        with suppress(StarvedClassError, LanesError):  # more ranks make larger batches, and stretch the epoch
            self._plan_for(1)
