"""What all benches share: cases timed in turn, one JSON row a case, and a table of ratios.

Cases of one question run in turn (A B C A B C ..), so that a machine whose speed drifts slows all of them. Times are
wall clock; p20, p50 and p80 are over the repeats. A row is keyed by (question, case, axes): a rerun replaces it.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
TURN_S = 0.5


@dataclass
class Case:
    """One thing to time."""

    name: str
    run: Callable[[], Any]
    rows: int
    """Rows that one run handles."""
    row_bytes: int = 0
    """Bytes that must be read and written for a row; 0: not a question of bandwidth."""
    repeats: int = 5
    """Turns."""
    seconds: list[float] = field(default_factory=list)

    @property
    def rows_per_s(self) -> float:
        return self.rows / float(np.median(self.seconds))


def time_in_turn(cases: list[Case]) -> None:
    """Warm every case up once, then time the cases in turn until each has had its turns.

    A short case runs again and again for half a second in each of its turns, so that it meets as much of the machine's
    drift as a long one.
    """
    for case in cases:
        case.run()
    for turn in range(max(case.repeats for case in cases)):
        for case in cases:
            if turn >= case.repeats:
                continue
            gc.collect()
            until = time.perf_counter() + TURN_S
            while not case.seconds or time.perf_counter() < until or len(case.seconds) <= turn:
                started = time.perf_counter()
                case.run()
                case.seconds.append(time.perf_counter() - started)


def report(question: str, cases: list[Case], axes: Mapping[str, Any], limit: str, ours: str, keep: bool) -> None:
    """Print the cases as ratios to ours, and keep a row of each in `results/`.

    Args:
        limit: Name of the case that nothing can beat.
        ours: Name of the case that is fastbalance.
        keep: Whether the rows go to `results/`.
    """
    by_name = {case.name: case for case in cases}
    table = Table(title=f"{question}  {dict(axes)}", title_justify="left")
    for heading in ("case", "M rows/s", "GB/s", "p20 s", "p50 s", "p80 s", "fastbalance is"):
        table.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=True)
    for case in cases:
        p20, p50, p80 = np.percentile(case.seconds, [20, 50, 80])
        ratio = by_name[ours].rows_per_s / case.rows_per_s
        name = f"{case.name} (limit)" if case.name == limit else case.name
        figures = (
            f"{case.rows_per_s / 1e6:,.2f}",
            f"{case.rows_per_s * case.row_bytes / 1e9:.2f}" if case.row_bytes else "",
        )
        table.add_row(name, *figures, *(f"{p:.4f}" for p in (p20, p50, p80)), f"{ratio:,.2f}x")
        if not keep:
            continue
        row = {"case": case.name, "axes": dict(axes), "limit": limit, "row_bytes": case.row_bytes}
        row |= {"rows_per_s": round(case.rows_per_s), "ratio_ours_to_this": round(ratio, 3)}
        save(question, row | {"seconds": [round(float(p), 6) for p in (p20, p50, p80)]})
    Console(width=120).print(table)


def save(question: str, row: Mapping[str, Any]) -> None:
    """Keep one row, in place of an older one of the same question, case and axes."""
    path = RESULTS / f"{question}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    key = ("case", "axes")
    kept = [old for old in rows if [old[k] for k in key] != [row[k] for k in key]]
    RESULTS.mkdir(exist_ok=True)
    lines = [json.dumps(each) for each in [*kept, {"question": question, **row, **environment()}]]
    path.write_text("\n".join(lines) + "\n")


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = next(
        (line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")), platform.processor()
    )
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy", "numba", "pyarrow")}
        | {"python": platform.python_version()},
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    return done.stdout.strip() or "unknown"
