"""What all experiments share: an expectation and a measurement make a verdict; results are kept and shown.

An expectation is a range fixed before the run: a value and a margin (what counts as the same), or a direction. The
interval of the measurement is put beside it: inside is "agrees", apart is "differs", all else is "open". For a value
and a margin this is a test of equivalence: agreement needs a narrow interval, not a wide one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from _harness import RESULTS, environment
from rich.console import Console
from rich.table import Table
from scipy import stats

FOLDER = RESULTS / "weighted_loss"
CONFIDENCE = 0.95
AGREES, DIFFERS, OPEN = "agrees", "differs", "open"

Interval = tuple[float, float, float]  # measured, low, high


@dataclass(frozen=True)
class Expected:
    """A range, both ends included; in words, and where it comes from."""

    low: float
    high: float
    words: str
    source: str


def about(value: float, source: str, *, margin: float = 0.0, relative: float = 0.0) -> Expected:
    """A value, and what counts as the same: `margin` either way, or a share of the value."""
    half = margin + relative * abs(value)
    within = f" ± {half:.2g}" if half else ""
    return Expected(value - half, value + half, f"{value:.4g}{within}", source)


def above(value: float, source: str) -> Expected:
    """More than a value: a difference of exactly 0 is not above 0."""
    return Expected(math.nextafter(value, math.inf), math.inf, f"> {value:g}", source)


def below(value: float, source: str) -> Expected:
    return Expected(-math.inf, math.nextafter(value, -math.inf), f"< {value:g}", source)


def verdict(expected: Expected, low: float, high: float) -> str:
    """Where the interval [low, high] of a measurement lies with respect to the expected range."""
    if math.isnan(low) or math.isnan(high):
        return OPEN
    if expected.low <= low and high <= expected.high:
        return AGREES
    return DIFFERS if high < expected.low or low > expected.high else OPEN


@dataclass(frozen=True)
class Finding:
    """One quantity: expected, measured, and the verdict."""

    quantity: str
    expected: str
    source: str
    measured: float
    low: float
    high: float
    verdict: str
    note: str = ""


def finding(quantity: str, expected: Expected, measured: Interval, note: str = "") -> Finding:
    value, low, high = (float(v) for v in measured)
    return Finding(quantity, expected.words, expected.source, value, low, high, verdict(expected, low, high), note)


@dataclass
class Grid:
    """A table of figures without verdicts, such as every arm at every learning rate."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Any]] = field(default_factory=list)


@dataclass
class Result:
    """What an experiment returns. The most important finding comes first."""

    findings: list[Finding]
    grids: list[Grid] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The worst of the findings'."""
        found = {each.verdict for each in self.findings}
        return next((worst for worst in (DIFFERS, OPEN) if worst in found), AGREES)


def exact(value: float) -> Interval:
    """A measurement without chance."""
    return value, value, value


def t_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean of the seeds, with its interval by Student's t."""
    values = np.asarray(values, float)
    mean = float(values.mean())
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def root_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Root of the mean of estimates of a square: an estimate of a variance is unbiased, that of its root is not."""
    return tuple(math.sqrt(max(v, 0.0)) for v in t_interval(values))  # type: ignore[return-value]


def paired(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Interval:
    """Mean of first minus second, seed by seed, with its interval by Student's t.

    Not a bootstrap: of 10 normal values scipy's (bias-corrected, accelerated) 95 % interval holds the mean in 91 %.
    """
    return t_interval(np.asarray(first, float) - np.asarray(second, float))


def plus_minus(values: Interval) -> str:
    """A cell such as "+0.0051 ± 0.0016", of an interval that is as wide on both sides."""
    return f"{values[0]:+.4f} ± {values[0] - values[1]:.4f}"


def share_interval(hits: int, trials: int) -> Interval:
    """A share, with Wilson's interval."""
    found = stats.binomtest(hits, trials).proportion_ci(CONFIDENCE, method="wilson")
    return hits / trials, float(found.low), float(found.high)


def save(name: str, title: str, result: Result, seconds: float, cpu_seconds: float) -> None:
    """Keep a result in place of an older one, as `results/weighted_loss/NAME.json`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    row = {"experiment": name, "title": title, "verdict": result.verdict, **asdict(result)}
    row |= {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1), **environment()}
    (FOLDER / f"{name}.json").write_text(json.dumps(row, indent=1, default=float) + "\n")


def saved() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("e*.json"))]


def figure(value: Any) -> str:
    """A number as tables show it: four digits, no more."""
    if isinstance(value, str) or value is None:
        return value or ""
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.1e}"


def show(name: str, title: str, result: Result, seconds: float, cpu_seconds: float) -> None:
    """Print a result. The CPU time is what a busy machine does not change."""
    console = Console(width=150)
    table = Table(title=f"{name}  {title}  ({seconds:.1f} s, CPU {cpu_seconds:.1f} s)", title_justify="left")
    for heading in ("quantity", "expected", "measured", "interval", "verdict"):
        table.add_column(heading, justify="left" if heading == "quantity" else "right")
    for each in result.findings:
        interval = f"{figure(each.low)} .. {figure(each.high)}"
        table.add_row(each.quantity, each.expected, figure(each.measured), interval, each.verdict)
    console.print(table)
    for grid in result.grids:
        drawn = Table(*grid.columns, title=grid.title, title_justify="left")
        for row in grid.rows:
            drawn.add_row(*map(figure, row))
        console.print(drawn)
    for text in [*[f"{each.quantity}: {each.note}" for each in result.findings if each.note], *result.remarks]:
        console.print(f"- {text}", highlight=False)
