"""Where a run is: epoch and batch, and what a state holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .checks import is_whole, whole
from .errors import StateError, explain
from .plan import BalancePlan

STATE_VERSION = 1
MAX_SEEDS, MAX_EPOCHS = 1 << 64, 1 << 32


class Cursor:
    """The next batch of a run, as `(epoch, batch)`.

    An iteration starts where the cursor was put (`set_epoch`, `load`), else at the epoch after the one that was
    begun last: breaking out of a loop does not make the next loop repeat the same rows.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.batch = 0
        self._begun = False

    def start(self) -> tuple[int, int]:
        """Epoch and first batch of an iteration that begins now. Nothing moves before a batch is handed out."""
        return (self.epoch + 1, 0) if self._begun else (self.epoch, self.batch)

    def yielding(self, epoch: int, batch: int, n_batches: int) -> None:
        """Note that a batch is about to be handed out: the cursor stands behind it.

        Called before the yield, because trainers stop at `len` and never ask for the end of the iteration.
        """
        last = batch + 1 == n_batches
        self.epoch, self.batch = (epoch + 1, 0) if last else (epoch, batch + 1)
        self._begun = not last

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch. A position that was loaded for this very epoch is kept."""
        epoch = whole("epoch", epoch, 0, MAX_EPOCHS)
        if epoch != self.epoch or self._begun:
            self.epoch, self.batch = epoch, 0
        self._begun = False

    def save(self, seed: int | None, plan: BalancePlan, data: str) -> dict[str, Any]:
        """The state: small, JSON, and of no fixed world size."""
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "batch": self.batch,
            "seed": seed,
            "lanes": plan.lanes,
            "stream": plan.layout,
            "plan": plan.fingerprint,
            "data": data,
        }

    def load(self, state: Mapping[str, Any], plan: BalancePlan, data: str) -> int:
        """Go to where a state was saved; returns its seed. A state that is refused moves nothing.

        Raises:
            StateError: The state is none, or belongs to other data, another plan or another global batch size.
        """
        wanted = {"version", "epoch", "batch", "seed", "lanes", "stream", "plan", "data"}
        if not isinstance(state, Mapping) or wanted - set(state):
            got = f"without {sorted(wanted - set(state))}" if isinstance(state, Mapping) else type(state).__name__
            raise StateError(explain("state", got=got, allowed="what state_dict() returned"))
        if state["version"] != STATE_VERSION:
            raise StateError(explain("state version", got=state["version"], allowed=str(STATE_VERSION)))
        if state["data"] != data:
            raise StateError(
                explain(
                    "state",
                    got=f"data {state['data']}",
                    allowed=f"data {data}, which this loader reads",
                    fix="Give the loader the data set that the state was saved with.",
                )
            )
        if state["stream"] != plan.layout:
            got, allowed = f"the order of a stream with {state['stream']}", f"that of one with {plan.layout}"
            plain = "the order of rows in memory"
            got, allowed = (plain if state["stream"] is None else got), (plain if plan.layout is None else allowed)
            raise StateError(explain("state", got=got, allowed=allowed))
        if state["plan"] != plan.fingerprint:
            raise StateError(
                explain(
                    "state",
                    got=f"plan {state['plan']}",
                    allowed=f"plan {plan.fingerprint} ({plan.balance}, global batch of {plan.global_batch_rows:,} "
                    f"rows, epoch of {plan.epoch_rows:,})",
                    fix="Balance, epoch_rows and the global batch (batch_size times world size) must be as they were.",
                )
            )
        limits = {
            "epoch": (0, MAX_EPOCHS),
            "batch": (0, plan.n_batches),
            "seed": (0, MAX_SEEDS),
            "lanes": (plan.lanes, plan.lanes + 1),
        }
        for name, (least, below) in limits.items():
            if not is_whole(state[name], least, below):
                allowed = f"an integer in [{least}, {below})"
                raise StateError(explain(f"state[{name!r}]", got=repr(state[name]), allowed=allowed))
        self.epoch, self.batch, self._begun = int(state["epoch"]), int(state["batch"]), False
        return int(state["seed"])


def checked_seed(seed: int | None) -> int | None:
    """The seed, or None where it is drawn later.

    Raises:
        ArgumentError: Not an integer in [0, 2^64).
    """
    return None if seed is None else whole("seed", seed, 0, MAX_SEEDS, note=", or None to draw one")


def drawn_seed() -> int:
    """A seed from torch's global generator, as DataLoader draws its own."""
    return int(torch.empty((), dtype=torch.int64).random_().item())
