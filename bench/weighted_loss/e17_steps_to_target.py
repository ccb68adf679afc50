"""How many steps, rows and seconds does a model need, and how even are its steps on the way?

Set-up: logistic regression as in e13, f = 1 %, 100,000 rows fresh for each of 10 seeds, features scaled by 1 .. 0.1
so that no single rate suits all of them, B f = 0.1 .. 20; a constant rate, of a grid of 12 that are a factor of 2
apart. The target: a balanced loss within 5 % of the best possible, looked at after 200 steps spread evenly on a log
scale. An arm's best rate is the one that comes to it soonest on 4,000 balanced validation rows; what is reported is
found on 4,000 other rows. The first touch counts, also where the loss rises again: this flatters uneven steps. Where
a run does not come to the target, its whole number of steps counts, so that a ratio to fastbalance is a lower bound;
the note says how often. Models start at the log-odds of their batches, as in e13. Momentum is .9; SGD and Adam are
run for the spread of the steps, with two arms. Spread of the steps: standard deviation / mean of the length of the
updates in the second half of the run. A loss spike: a step whose batch has more than 3 times the median loss of the
50 steps before it. Usable rates: those at which a seed comes to the target within the run. Seconds are of one model
alone: the row numbers by the arm's feed, the rows, the step. Memory is what fresh processes grow by.

Expected: (1) Where only the minority pulls, the length of an SGD step has the CV of the class mass,
sqrt((1 - s) / (s B)), s = f weighted and 0 for a fixed composition; momentum averages it, times
sqrt((1 - .9) / (1 + .9)) = .229; Adam divides that by a slow average, so it is the same. (2) In the real training the
weighted steps are more uneven under each optimiser. (3) Steps to the target: where noise bounds the rate, they grow
as the second moment of the gradient, which weighting has 1 + chi2 = 25.25 times at f = 1 %: the ratio lies between 1
and 25.25 at B f <= 5, and is 1 (within .2) at B f = 20. The loss that is divided by the sum of weights has another
minimum at small B f: more steps, or never. WeightedRandomSampler: 1, within .15. Adjusted logits: more steps, as the
minority is rarely seen (a hypothesis: the objective differs). (4) A batch with a minority row has several times the
loss of one without: spikes at B f < 5, none (within .005) above.

Seen first: scales, grid and lengths of the runs were chosen in short runs with 3 and 4 seeds, in which the first
ratios were seen; no range was moved.
"""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import torch

from . import _feeds, _formulas, _memory
from ._common import Expected, Finding, Grid, Interval, Result, about, above, below, exact, finding, paired, t_interval
from ._course import Course, Recorder, first_at, spike_share, spread
from ._learners import (
    ADJUSTED,
    IID,
    MOMENTUM,
    NORMALISED,
    OURS,
    WEIGHTED,
    Arm,
    Networks,
    Optimiser,
    binary_losses,
    class_weights,
    train,
)
from .e13_rate_and_batch import DISTANCE, FEATURES

F, ROWS, UNSEEN, ABOVE_BEST = 0.01, 100_000, 4_000, 1.05
N_STEPS = {10: 8000, 30: 4000, 100: 2000, 500: 600, 2000: 400}  # by B
N_RATES, N_LOOKS = 12, 200
RATES = {
    "momentum": tuple(0.004 * 2**k for k in range(N_RATES)),
    "sgd": tuple(0.04 * 2**k for k in range(N_RATES)),
    "adam": tuple(0.001 * 2**k for k in range(N_RATES)),
}
SCALES = torch.logspace(0, -1, FEATURES)
ARMS = {"momentum": (OURS, WEIGHTED, NORMALISED, IID, ADJUSTED), "sgd": (OURS, WEIGHTED), "adam": (OURS, WEIGHTED)}
INFLATION = _formulas.inflation(F)


def rows_of(n_rows: int, f: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = _feeds.gaussians(n_rows, f, FEATURES, DISTANCE, seed, bias=False)
    return x * SCALES, y


def unseen_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Balanced rows: the first half, of which each class has as many, is for validation."""
    parts = [rows_of(UNSEEN, 0.5, seed) for seed in (20_000, 10_000)]
    return torch.cat([x for x, _ in parts])[None], torch.cat([y for _, y in parts])


def halves(rows: torch.Tensor) -> np.ndarray:
    """Mean loss of the validation and of the test rows, float64 [2, n_seeds, n_rates]; the classes are equally many."""
    return torch.stack([half.mean(dim=2) for half in rows.split(UNSEEN, dim=2)]).double().numpy()


def targets() -> np.ndarray:
    """The target on validation and on test rows, float64 [2]: log-odds are DISTANCE times the place along the axis."""
    x, y = unseen_rows()
    z = DISTANCE * (x / SCALES).sum(dim=2) / FEATURES**0.5
    return ABOVE_BEST * halves(binary_losses(z[:, None, :, None], y[None]))[:, 0, 0]


def course(kind: str, arm: Arm, x: torch.Tensor, y: torch.Tensor, batches: torch.Tensor) -> Course:
    n_seeds, n_steps, _ = batches.shape
    prior = float(np.log(F / (1 - F))) if arm.adjusted else 0.0
    networks = Networks((FEATURES, 1), RATES[kind], n_seeds, zero_last=True)
    networks.parameters[-1].fill_(prior)
    weights, looks = class_weights(y), np.unique(np.geomspace(1, n_steps, N_LOOKS).astype(int)).tolist()
    x_unseen, y_unseen = unseen_rows()

    def unseen_losses(models: Networks) -> np.ndarray:
        rows = binary_losses(models(x_unseen) - prior, y_unseen[None].expand(n_seeds, -1))
        return halves(torch.nan_to_num(rows, nan=torch.inf))

    seen = Recorder(networks, arm.divide, weights, looks, unseen_losses)
    options = dict(divide=arm.divide, weights=weights, row_losses=seen.row_losses, falling=False)
    train(networks, x, y, batches, Optimiser(kind, networks), watch=seen, **options)
    unseen = np.stack(seen.unseen)
    steps = [first_at(unseen[:, part], looks, target) for part, target in enumerate(targets())]
    lengths, losses = (torch.stack(each).double().numpy()[n_steps // 2 :] for each in (seen.lengths, seen.batches))
    return Course(n_steps, *steps, spread(lengths), spike_share(losses))


def courses(batch_rows: int, n_steps: int, n_seeds: int) -> dict[tuple[str, Arm], Course]:
    x = torch.stack([rows_of(ROWS, F, seed)[0] for seed in range(n_seeds)])
    y = _feeds.two_class_labels(ROWS, F)
    found = {}
    for arm in ARMS["momentum"]:
        batches = torch.stack([_feeds.FEEDS[arm.feed](y, batch_rows, n_steps, seed) for seed in range(n_seeds)])
        for kind in ARMS:
            if arm in ARMS[kind]:
                found[kind, arm] = course(kind, arm, x, y, batches)
    return found


def where(batch_rows: int) -> str:
    return f"B {batch_rows} (B f = {F * batch_rows:g})"


def times(first: np.ndarray, second: np.ndarray) -> Interval:
    """How many times the second the first is: the geometric mean over seeds, paired."""
    low, middle, high = np.exp(sorted(paired(np.log(first), np.log(second))))
    return middle, low, high


def expected_times(arm: Arm, share: float) -> Expected:
    if arm is IID:
        return about(1, "the same objective, nearly the same noise", relative=0.15)
    if arm is ADJUSTED:
        return above(1, "hypothesis: the minority is rarely seen")
    if share > 5:
        return about(1, "no gap at large B f", relative=0.2)
    if arm is NORMALISED:
        return above(1, "the minority share of the weight is too small")
    return Expected(float(np.nextafter(1, 2)), INFLATION, f"1 .. {INFLATION:.4g}", "inflation of the second moment")


def of_batch(batch_rows: int, found: dict[tuple[str, Arm], Course]) -> list[Finding]:
    share, ours = F * batch_rows, found["momentum", OURS]
    findings = []
    for arm in ARMS["momentum"][1:]:
        other = found["momentum", arm]
        never = f"{other.never} of {len(other.steps)} seeds never came to the target." if other.never else ""
        quantity = f"{where(batch_rows)}: steps to the target, {arm.name} over fastbalance"
        findings.append(finding(quantity, expected_times(arm, share), times(other.steps, ours.steps), never))
    for kind in ARMS:
        spreads = [each.spread[:, each.best] for each in (found[kind, WEIGHTED], found[kind, OURS])]
        quantity = f"{where(batch_rows)}, {kind}: spread of the steps, weighted / B minus fastbalance"
        findings.append(finding(quantity, above(0, "CV of the class mass"), paired(*spreads)))
    weighted = found["momentum", WEIGHTED]
    rare = share < 5
    spikes = paired(weighted.spikes[:, weighted.best], ours.spikes[:, ours.best])
    wanted = above(0, "a minority row in few batches") if rare else about(0, "no empty batches", margin=0.005)
    findings.append(finding(f"{where(batch_rows)}: spikes, weighted / B minus fastbalance", wanted, spikes))
    wanted = above(0, "noise bounds the rate") if rare else about(0, "no gap at large B f", margin=1.0)
    width = paired(ours.usable, weighted.usable)
    return [*findings, finding(f"{where(batch_rows)}: usable rates, fastbalance minus weighted / B", wanted, width)]


def minority_steps(kind: str, feed: str, batch_rows: int, n_steps: int, n_seeds: int) -> Interval:
    """Spread of the steps where a batch's gradient is its class mass, after the optimiser has warmed up."""
    pull = 1 / F if feed == "natural" else 2.0
    counts = [_feeds.minority_counts(feed, F, batch_rows, 2 * n_steps, seed) for seed in range(n_seeds)]
    masses = torch.from_numpy(0.5 * pull * np.stack(counts) / batch_rows).float()
    well = Networks((1, 1), (1.0,), n_seeds)
    optimiser, lengths = Optimiser(kind, well), []
    for mass in masses.T:
        for p in well.parameters:
            p.zero_()
        optimiser.step([mass[:, None, None, None]] * 2, 1.0)
        lengths.append(well.parameters[0][:, 0, 0, 0].abs())
    return t_interval(spread(torch.stack(lengths).double().numpy()[n_steps:]))


def closed_forms(n_steps: int, n_seeds: int) -> list[Finding]:
    findings = []
    for kind in ARMS:
        averaged = 1.0 if kind == "sgd" else _formulas.averaged_cv(MOMENTUM)
        for batch_rows in (10, 500):
            for arm in (WEIGHTED, OURS):
                cv = averaged * _formulas.mass_cv(F, batch_rows) if arm is WEIGHTED else 0.0
                wanted = about(cv, "binomial counts, averaged", relative=0.1, margin=1e-4)
                found = minority_steps(kind, arm.feed, batch_rows, n_steps, n_seeds)
                quantity = f"{where(batch_rows)}, {kind}: spread of the steps where the minority pulls, {arm.name}"
                findings.append(finding(quantity, wanted, found))
    return findings


def feed_s(arm: Arm, y: torch.Tensor, batch_rows: int) -> float:
    """Seconds for the row numbers of one batch, of a whole epoch of them."""
    n_batches = len(y) // batch_rows
    started = time.perf_counter()
    _feeds.FEEDS[arm.feed](y, batch_rows, n_batches, 0)
    return (time.perf_counter() - started) / n_batches


def step_s(arm: Arm, x: torch.Tensor, y: torch.Tensor, batch_rows: int, n_steps: int) -> float:
    """Seconds to gather the rows of a batch and to make a step with it, of one model."""
    batches = _feeds.natural(y, batch_rows, n_steps, 0)[None]
    network = Networks((FEATURES, 1), (0.01,), 1)
    started = time.perf_counter()
    train(network, x, y, batches, Optimiser("momentum", network), divide=arm.divide, weights=class_weights(y))
    return (time.perf_counter() - started) / n_steps


def seconds_of_a_step(batch_rows: int, turns: int) -> dict[Arm, float]:
    """The median of some turns, of all arms one after the other."""
    x, y = rows_of(ROWS, F, 0)
    found = [
        [feed_s(arm, y, batch_rows) + step_s(arm, x[None], y, batch_rows, 100) for arm in ARMS["momentum"]]
        for _ in range(turns)
    ]
    return dict(zip(ARMS["momentum"], np.median(found, axis=0).tolist(), strict=True))


def feed_memory(quick: bool) -> Grid:
    n_rows, arms, processes = (200_000, (OURS, IID), 1) if quick else (2_000_000, (OURS, WEIGHTED, IID), 3)
    grid = Grid(f"Peak memory of the feed, {n_rows:,} rows", ("arm", "feed", "grew by, MB"))
    grid.rows = [[arm.name, arm.feed, _memory.of_feed(arm.feed, F, n_rows, 1000, processes)] for arm in arms]
    return grid


def tables(found: dict[int, dict[tuple[str, Arm], Course]], turns: int) -> list[Grid]:
    columns = "B, B f, arm, rate, came to it, steps, low, high, ms a step, usable rates"
    to_target = Grid("To the target, momentum, each at its best rate", columns.split(", "))
    cost = Grid("Rows, and seconds, to the target, momentum", ("B", "B f", *(arm.name for arm in ARMS["momentum"])))
    evenness = Grid("The steps at the best rate", ("optimiser", "B", "B f", "arm", "rate", "spread", "spikes"))
    for batch_rows, each in found.items():
        seconds, setting, costs = seconds_of_a_step(batch_rows, turns), [batch_rows, F * batch_rows], []
        for (kind, arm), one in each.items():
            rate = RATES[kind][one.best]
            at_best = [float(values[:, one.best].mean()) for values in (one.spread, one.spikes)]
            evenness.rows.append([kind, *setting, arm.name, rate, *at_best])
            if kind == "momentum":
                steps, low, high = times(one.steps, np.ones_like(one.steps))
                came = f"{len(one.steps) - one.never} of {len(one.steps)}"
                found_at = [rate, came, steps, low, high, 1e3 * seconds[arm], float(one.usable.mean())]
                to_target.rows.append([*setting, arm.name, *found_at])
                costs.append(f"{'> ' if one.never else ''}{steps * batch_rows:,.0f}, {steps * seconds[arm]:.2g} s")
        cost.rows.append([*setting, *costs])
    return [to_target, cost, evenness]


def run(quick: bool) -> Result:
    batches = {10: 120} if quick else N_STEPS
    n_seeds = 2 if quick else 10
    memory = feed_memory(quick)
    found = {batch_rows: courses(batch_rows, n_steps, n_seeds) for batch_rows, n_steps in batches.items()}
    findings = [each for batch_rows, of in found.items() for each in of_batch(batch_rows, of)]
    findings += closed_forms(200 if quick else 4000, n_seeds)
    ours, *_, theirs = (row[2] for row in memory.rows)
    findings.append(finding("peak memory of the feed: fastbalance minus WeightedRandomSampler, MB",
                            below(0, "direction"), exact(ours - theirs)))  # fmt: skip
    all_courses = [(arm.name, one) for of in found.values() for (_, arm), one in of.items()]
    edges = Counter(name for name, one in all_courses if one.best in (0, N_RATES - 1))
    told = ", ".join(f"{name} {count}" for name, count in edges.items())
    remark = f"Best rate at an edge of the grid, of {len(all_courses)} courses: {told or 'never'}."
    return Result(findings, [*tables(found, 1 if quick else 5), memory], [remark])
