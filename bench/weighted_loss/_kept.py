"""Reads the kept results, without running or importing an experiment."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "weighted_loss"


def result(experiment: str) -> dict[str, Any]:
    """The kept results of an experiment, by its number.

    Raises:
        KeyError: It was not run yet.
    """
    paths = list(RESULTS.glob(f"{experiment}_*.json"))
    if len(paths) != 1:
        raise KeyError(
            f"{experiment}: {len(paths)} kept results; run python bench/weighted_loss/run.py --only {experiment}"
        )
    return json.loads(paths[0].read_text())


def findings(experiment: str) -> list[dict[str, Any]]:
    return result(experiment)["findings"]


def matching(experiment: str, pattern: str) -> list[dict[str, Any]]:
    """The quantities that a pattern with `*` fits, in their order.

    Raises:
        KeyError: There is none.
    """
    found = [row for row in findings(experiment) if fnmatchcase(row["quantity"], pattern)]
    if not found:
        raise KeyError(f"{experiment}: no quantity {pattern!r}")
    return found


def grid(experiment: str, title: str) -> list[dict[str, Any]]:
    """The rows of a grid, each by its columns.

    Raises:
        KeyError: The experiment has no such grid.
    """
    for found in result(experiment)["grids"]:
        if found["title"] == title:
            return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    raise KeyError(f"{experiment}: no grid {title!r}")


def interval(cell: str) -> list[float]:
    """Value and half width of a cell such as "+0.0051 ± 0.0016"."""
    return [float(part) for part in cell.split(" ± ")]
