"""Put the measured cells into docs/why-resample.md and docs/prior-correction.md.

python bench/weighted_loss/why.py            write
python bench/weighted_loss/why.py --check    exit 1 where a document differs from the kept results

A line `<!-- e03: quantity -->` or `<!-- e09 grid: title -->` says what the table below it holds; several quantities
are several such lines.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "weighted_loss"
DOCUMENTS = (ROOT / "docs" / "why-resample.md", ROOT / "docs" / "prior-correction.md")
_BLOCK = re.compile(r"((?:<!-- e\d\d(?: grid)?: .*? -->\n)+)(?:\|.*\n)*")
_WANTED = re.compile(r"<!-- (e\d\d)( grid)?: (.*?) -->")


def result(experiment: str) -> dict[str, Any]:
    """The kept results of an experiment, by its number."""
    (path,) = RESULTS.glob(f"{experiment}_*.json")
    return json.loads(path.read_text())


def finding(experiment: str, quantity: str) -> str:
    """The line of one quantity.

    Raises:
        KeyError: The experiment has no such quantity.
    """
    for found in result(experiment)["findings"]:
        if found["quantity"] == quantity:
            low, high = found["low"], found["high"]
            verdict = found["verdict"]
            return f"| {quantity} | {found['measured']:.4g} | {low:.4g} .. {high:.4g} | {verdict} | {experiment} |"
    raise KeyError(f"{experiment}: no quantity {quantity!r}")


def grid(experiment: str, title: str) -> list[str]:
    """The lines of one grid.

    Raises:
        KeyError: The experiment has no such grid.
    """
    for found in result(experiment)["grids"]:
        if found["title"] == title:
            head = [str(name) for name in found["columns"]]
            return [_line(head), _line(["---"] * len(head)), *(_line(map(_cell, row)) for row in found["rows"])]
    raise KeyError(f"{experiment}: no grid {title!r}")


def filled(text: str) -> str:
    """A document with its tables as the results have them."""

    def replace(block: re.Match[str]) -> str:
        wanted = _WANTED.findall(block[1])
        if wanted[0][1]:
            lines = grid(wanted[0][0], wanted[0][2])
        else:
            lines = ["| quantity | measured | 95 % interval | against the expectation | experiment |"]
            lines += ["|---|---|---|---|---|", *(finding(experiment, name) for experiment, _, name in wanted)]
        return block[1] + "\n".join(lines) + "\n"

    return _BLOCK.sub(replace, text)


def main() -> None:
    stale = []
    for path in DOCUMENTS:
        text = path.read_text()
        if filled(text) != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(filled(text))
    if stale and "--check" in sys.argv:
        sys.exit(f"{', '.join(stale)}: not what the results say; run python bench/weighted_loss/why.py")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
