"""What `compare` tries: ways to make batches and to weigh the loss, one network at a time."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise, repeat
from typing import Any

import numpy as np
import psutil
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import RandomSampler, WeightedRandomSampler

from .compare_data import Splits
from .compare_scores import calibration, pr_auc, pr_curve, score, tuned_offset
from .compare_verdict import OURS
from .errors import ArgumentError, explain
from .kernels.threads import one_thread
from .loader import BalancedLoader

RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
MOMENTUM = 0.9
N_POINTS = 6  # of a learning curve

_CURVE_ROWS = 4_000
_EVAL_ROWS = 8_192
_TRIAL_STEPS = 30

Factory = Callable[[int, int], torch.nn.Module]


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        name: What tables call it.
        feed: "natural", "iid" (torch's WeightedRandomSampler), or the options of a BalancedLoader.
        divide: None: rows count the same; "rows", "weights": rows have the weight of their class, and their sum is
            divided by the batch's rows or weights; "draws": the weight that undoes the resampling, by rows.
    """

    name: str
    feed: Any
    divide: str | None = None


METHODS = (
    Method("natural", "natural"),
    Method("weighted / B", "natural", "rows"),
    Method("weighted / sum w", "natural", "weights"),
    Method("WeightedRandomSampler", "iid"),
    Method(OURS, {"balance": "uniform"}),
    Method("fastbalance, sqrt", {"balance": "sqrt"}),
    Method("undersampled", {"balance": "uniform", "epoch_rows": "under"}),
    Method("undersampled, weighted back", {"balance": "uniform", "epoch_rows": "under"}, "draws"),
)


@dataclass(frozen=True)
class Trained:
    """The network of one learning rate.

    Attributes:
        model: The network.
        valid: Logits of the validation rows, float64 [n_rows, n_classes].
        curve: PR-AUC on validation rows at `N_POINTS` steps.
        step_spread: Standard deviation / mean of the lengths of the gradient steps in the second half, at a rate of 1.
        seconds: Of training, and of making the row numbers.
        memory_bytes: Of the process, at the end.
    """

    model: torch.nn.Module
    valid: np.ndarray
    curve: list[float]
    step_spread: float
    seconds: float
    memory_bytes: int


def mlp(n_features: int, n_classes: int) -> torch.nn.Module:
    """The network of `compare`, where the user names none."""
    widths = (n_features, 64, 64, n_classes)
    layers = [[torch.nn.Linear(n_in, n_out), torch.nn.ReLU()] for n_in, n_out in pairwise(widths)]
    return torch.nn.Sequential(*[layer for pair in layers for layer in pair][:-1])


def load_factory(name: str | None) -> Factory:
    """The function that `module:factory` names; None: `mlp`.

    Raises:
        ArgumentError: There is no such module or function.
    """
    if name is None:
        return mlp
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the folder that the command is given in, as for `python -m`
    try:
        found = getattr(importlib.import_module(module), attribute)
        if not callable(found):
            raise AttributeError(f"{attribute!r} cannot be called")
        return found
    except (ImportError, AttributeError, ValueError) as error:
        allowed = "module:factory, a function of n_features and n_classes that returns a torch.nn.Module"
        fix = "Run the command where the module can be imported"
        raise ArgumentError(explain("--model", got=f"{name!r} ({error})", allowed=allowed, fix=fix)) from error


def run_job(
    method: Method,
    factory: Factory,
    splits: Splits,
    batch_rows: int,
    n_steps: int,
    seed: int,
    rates: Sequence[float] = RATES,
) -> dict[str, Any]:
    """Train a method at some rates, take the rate that ranks the validation rows best, and score the test rows."""
    started_s = time.perf_counter()
    batches = draw_batches(method, splits.y[0], batch_rows, n_steps, seed)
    feed_s = time.perf_counter() - started_s
    with one_thread():
        trained = {rate: train(method, factory, splits, batches, rate, seed) for rate in rates}
        valid = {rate: pr_auc(splits.y[1], network.valid) for rate, network in trained.items()}
        rate = max(rates, key=valid.__getitem__)
        test = predict(trained[rate].model, splits.x[2])
    best, priors = trained[rate], np.bincount(splits.y[0]) / len(splits.y[0])
    correction = np.log(priors) - np.log(effective_shares(method, priors))
    offset = tuned_offset(splits.y[1], best.valid, priors)
    results = {
        **score(splits.y[2], test, correction, offset),
        "rate": rate,
        "valid_pr_auc": valid[rate],
        "valid_by_rate": valid,
        "step_spread": best.step_spread,
        "curve": best.curve,
        "feed_s": feed_s,
        "train_s": float(np.mean([network.seconds for network in trained.values()])),
        "distinct_rows": len(batches[0].unique()),
        "memory_bytes": max(network.memory_bytes for network in trained.values()),
        "pr_curve": pr_curve(splits.y[2], test),
        "calibration_raw": calibration(splits.y[2], test),
        "calibration": calibration(splits.y[2], test + correction),
    }
    if method.name == "natural":
        # Menon et al. (ICLR 2021), section 4: the log priors are taken from the logits, after training.
        results["adjusted"] = score(splits.y[2], test - np.log(priors), np.log(priors), offset + np.log(priors))
    return results


def measure(factory: Factory, splits: Splits, batch_rows: int) -> tuple[float, float]:
    """Seconds of a step, and of what every network needs besides: its curve and its scores."""
    method = next(method for method in METHODS if method.name == OURS)
    batches = draw_batches(method, splits.y[0], batch_rows, _TRIAL_STEPS, 0)  # the kernels are compiled here, if ever
    with one_thread():
        train(method, factory, splits, batches, RATES[0], 0)
        started_s = time.perf_counter()
        trained = train(method, factory, splits, batches, RATES[0], 0)
        pr_auc(splits.y[1], trained.valid)
    return trained.seconds / _TRIAL_STEPS, time.perf_counter() - started_s - trained.seconds


def draw_batches(
    method: Method, y: np.ndarray, batch_rows: int, n_steps: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Row numbers of the batches, int64 [n_steps, batch_rows], and the weights of the draws for "draws", float32."""
    if isinstance(method.feed, dict):
        rows, weights = _balanced(method, y, batch_rows, n_steps, seed)
        return rows, weights if method.divide == "draws" else None
    generator = torch.Generator().manual_seed(seed)
    if method.feed == "iid":
        weights_of_rows = torch.from_numpy(1.0 / np.bincount(y))[torch.from_numpy(y)]
        iid = WeightedRandomSampler(weights_of_rows.tolist(), n_steps * batch_rows, generator=generator)
        return torch.tensor(list(iid)).view(n_steps, batch_rows), None
    each = len(y) // batch_rows
    sampler = RandomSampler(range(len(y)), generator=generator)
    epochs = [torch.tensor(list(sampler))[: each * batch_rows] for _ in range(-(-n_steps // each))]
    return torch.cat(epochs).view(-1, batch_rows)[:n_steps], None


def effective_shares(method: Method, priors: np.ndarray) -> np.ndarray:
    """Class shares that the loss of a method stands for, float64 [n_classes]: what its probabilities follow."""
    if method.divide == "draws" or (method.feed == "natural" and method.divide is None):
        return priors
    if method.name == "fastbalance, sqrt":
        shares = priors**0.5
        return shares / shares.sum()
    return np.full(len(priors), 1 / len(priors))


def train(
    method: Method,
    factory: Factory,
    splits: Splits,
    batches: tuple[torch.Tensor, torch.Tensor | None],
    rate: float,
    seed: int,
) -> Trained:
    """Train one network by SGD with momentum, its rate falling to 0: steps are as long as the gradients make them."""
    x, y = torch.from_numpy(splits.x[0]), torch.from_numpy(splits.y[0])
    n_classes = int(y.max()) + 1
    class_weights = len(y) / (n_classes * torch.bincount(y, minlength=n_classes).float())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(factory, x.shape[1], n_classes)
        optimiser = torch.optim.SGD(model.parameters(), rate, MOMENTUM)
        rows, draw_weights = batches
        n_steps, lengths, curve = len(rows), [], []
        started_s, scoring_s = time.perf_counter(), 0.0
        for step in range(n_steps):
            losses = cross_entropy(logits_of(model, x[rows[step]]), y[rows[step]], reduction="none")
            weights = class_weights[y[rows[step]]] if draw_weights is None else draw_weights[step]
            loss = losses.mean() if method.divide is None else (weights * losses).sum() / (
                weights.sum() if method.divide == "weights" else len(losses)
            )  # fmt: skip
            optimiser.zero_grad()
            loss.backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            lengths.append(torch.nn.utils.get_total_norm(grads).item())
            optimiser.param_groups[0]["lr"] = rate * (1 - step / n_steps)
            optimiser.step()
            if (step + 1) * N_POINTS // n_steps > step * N_POINTS // n_steps:
                paused_s = time.perf_counter()
                curve.append(pr_auc(splits.y[1][:_CURVE_ROWS], predict(model, splits.x[1][:_CURVE_ROWS])))
                scoring_s += time.perf_counter() - paused_s
        seconds = time.perf_counter() - started_s - scoring_s
        late = np.array(lengths[n_steps // 2 :])
        late = late[np.isfinite(late) & (late > 0)]  # all, unless it diverged
        spread = float(late.std() / late.mean()) if len(late) else 0.0
        memory = psutil.Process().memory_info().rss
        return Trained(model, predict(model, splits.x[1]), curve, spread, seconds, memory)


def build(factory: Factory, n_features: int, n_classes: int) -> torch.nn.Module:
    """Make a model, and try it on two rows.

    Raises:
        ArgumentError: The factory fails, or what it makes does not give a logit for each class.
    """
    try:
        model = factory(n_features, n_classes)
        shape = tuple(logits_of(model.eval(), torch.zeros(2, n_features)).shape)
    except Exception as error:
        allowed, first_line = f"a module that takes float32 [B, {n_features}]", str(error).partition("\n")[0]
        raise ArgumentError(explain("--model", got=f"{type(error).__name__}: {first_line}", allowed=allowed)) from error
    if shape != (2, n_classes):
        allowed = f"[2, {n_classes}]" + (", or [2, 1] or [2] for one logit" if n_classes == 2 else "")
        raise ArgumentError(explain("--model", got=f"outputs of shape {list(shape)} for 2 rows", allowed=allowed))
    return model.train()


def logits_of(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits of each class; a single one is that of class 1, against 0."""
    out = model(x)
    if out.ndim == 1 or out.shape[1] == 1:
        out = torch.stack([torch.zeros_like(out.reshape(-1)), out.reshape(-1)], dim=1)
    return out


def predict(model: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """Logits without gradients, float64 [n_rows, n_classes]; 0 where a network that diverged gives no number.

    In float64 the difference of any two of them is finite: a network about to diverge gives 1e38.
    """
    model.eval()
    with torch.no_grad():
        parts = [logits_of(model, torch.from_numpy(x[k : k + _EVAL_ROWS])) for k in range(0, len(x), _EVAL_ROWS)]
    model.train()
    return torch.nan_to_num(torch.cat(parts), 0.0, 0.0, 0.0).double().numpy()


def _balanced(
    method: Method, y: np.ndarray, batch_rows: int, n_steps: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and weights of the draws of a BalancedLoader, [n_steps, batch_rows]."""
    options: dict[str, Any] = {
        "columns": ["y"],
        "extras": ("row", "weight"),
        "seed": seed,
        "device": "cpu",
        "rank": 0,
        "world_size": 1,
    }
    # Where a class is rare, an undersampled epoch has fewer rows than a batch: batches then run over several epochs.
    counts = np.bincount(y)
    size = min(batch_rows, len(counts) * int(counts.min())) if "epoch_rows" in method.feed else batch_rows
    loader = BalancedLoader({"y": y}, "y", size, **options, **method.feed)
    n_draws = n_steps * batch_rows
    full = (batch for batch in chain.from_iterable(repeat(loader)) if len(batch["row"]) == size)
    parts = list(islice(full, -(-n_draws // size)))
    rows, weights = (torch.cat([part[key] for part in parts])[:n_draws] for key in ("row", "weight"))
    return rows.view(n_steps, batch_rows), weights.view(n_steps, batch_rows)
