"""Put the measured cells and the figures into docs/why-resample.md and docs/prior-correction.md.

python bench/weighted_loss/why.py            write
python bench/weighted_loss/why.py --check    exit 1 where a document or a figure differs from the kept results

A line `<!-- e03: quantity -->` or `<!-- e09 grid: title -->` says what the table below it holds; several quantities
are several such lines, and a quantity may be a pattern with `*`. Figures are those of `plots.py`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # bench/, for this folder as a package

DOCUMENTS = tuple(HERE.parents[1] / "docs" / name for name in ("why-resample.md", "prior-correction.md"))
COLUMNS = ("quantity", "expected", "measured", "95 % interval", "verdict")
_BLOCK = re.compile(r"((?:<!-- e\d\d(?: grid)?: .*? -->\n)+)(?:\|.*\n)*")
_WANTED = re.compile(r"<!-- (e\d\d)( grid)?: (.*?) -->")


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """The lines of a table."""
    head = list(columns)
    return [_line(head), _line(["---"] * len(head)), *(_line(map(_cell, row)) for row in rows)]


def filled(text: str) -> str:
    """A document with its tables as the results have them."""
    from weighted_loss import _kept

    def replace(block: re.Match[str]) -> str:
        wanted = _WANTED.findall(block[1])
        if wanted[0][1]:
            rows = _kept.grid(wanted[0][0], wanted[0][2])
            lines = table(rows[0], (row.values() for row in rows))
        else:
            found = (row for experiment, _, name in wanted for row in _kept.matching(experiment, name))
            lines = table(COLUMNS, map(_cells, found))
        return block[1] + "\n".join(lines) + "\n"

    return _BLOCK.sub(replace, text)


def update(check: bool) -> list[str]:
    """Names of the documents and figures that were not what the results say; they are written anew unless checked.

    Raises:
        KeyError: A document or a figure wants what no experiment found.
    """
    from weighted_loss import plots

    stale = plots.stale()
    if not check:
        plots.write()  # all of them: how they are drawn may have changed, which no digest of data tells
    for path in DOCUMENTS:
        text = path.read_text()
        if filled(text) != text:
            stale.append(path.name)
            if not check:
                path.write_text(filled(text))
    return stale


def main(check: bool) -> None:
    try:
        stale = update(check)
    except KeyError as error:
        sys.exit(error.args[0])
    if stale and check:
        sys.exit(f"{', '.join(stale)}: not what the results say; run python bench/weighted_loss/why.py")


def _cells(row: dict[str, Any]) -> list[str]:
    interval = f"{row['low']:.4g} .. {row['high']:.4g}"
    return [row["quantity"], row["expected"], f"{row['measured']:.4g}", interval, row["verdict"]]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main("--check" in sys.argv)
