"""Write the measured table of README.md from bench/results.

python bench/table.py            rewrite the table between its two markers
python bench/table.py --check    only say whether it is up to date (exit code 1 if not)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BENCH = Path(__file__).parent
README = BENCH.parent / "README.md"
BEGIN, END = "<!-- measured: bench/table.py writes this -->", "<!-- end of measured -->"

WARM, COLD, MANY = (
    {"setup": setup, "rows": 8_000_000}
    for setup in ("1 % positives, snappy", "1 % positives, snappy, cold", "100 classes, 10 % outside the first")
)
# (what, question, peer, axes that pick the row, target)
LINES = [
    ("order of a balanced epoch, 1e8 rows", "order", "torch.randperm", {"rows": 100_000_000}, ">= 10"),
    ("", "order", "torch.multinomial", {"rows": 100_000_000}, ">= 150"),
    ("", "order", "Grain's index_shuffle", {"rows": 100_000_000}, ""),
    ("", "order", "bijection alone", {"rows": 100_000_000}, ">= 0.4"),
    ("Parquet to memory, 10 M rows x 33 columns", "load", "plain scan", {"rows": 10_000_000}, ">= 0.77"),
    ("label scan", "label_scan", "read the label column", {"rows": 10_000_000}, ">= 0.6"),
    ("batches, 10 M rows x 33 columns", "loader", "index_select, indices given", {"rows": 10_000_000}, ">= 1.0"),
    ("", "loader", "hand-written: randint per class", {"rows": 10_000_000}, ""),
    ("", "loader", "hand-written: one multinomial", {"rows": 10_000_000}, ">= 4"),
    ("", "loader", "DataLoader + WeightedRandomSampler, 2 workers", {"rows": 10_000_000}, ">= 100"),
    ("streamed epoch, 8 M rows x 33 columns, 250 MiB", "stream", "scan + index_select", WARM, ">= 0.87"),
    ("", "stream", "LitData, 2 workers", WARM, ""),
    ("", "stream", "WebDataset, 2 workers", WARM, ""),
    ("", "stream", "Hugging Face streaming", WARM, ""),
    ("the same, nothing in the page cache", "stream", "scan + index_select", COLD, ">= 0.87"),
    ("the same, 100 classes", "stream", "scan + index_select", MANY, ">= 0.87"),
]


def rows_of(question: str) -> list[dict]:
    return [json.loads(line) for line in (BENCH / "results" / f"{question}.jsonl").read_text().splitlines()]


def find(question: str, case: str, axes: dict) -> dict:
    """The one row of a case."""
    return next(row for row in rows_of(question) if row["case"] == case and axes.items() <= row["axes"].items())


def _speed(rows_per_s: float) -> str:
    return f"{rows_per_s / 1e6:.2f} M rows/s" if rows_per_s >= 1e4 else f"{rows_per_s:.0f} rows/s"


def table() -> str:
    lines = ["| work | fastbalance | peer | peer's speed | ratio | aim |", "|---|---|---|---|---|---|"]
    commits: dict[str, None] = {}  # each question was measured at its own
    for what, question, peer, axes, target in LINES:
        ours, theirs = find(question, "fastbalance", axes), find(question, peer, axes)
        commits[ours["commit"]] = None
        limit = " (limit)" if theirs["limit"] == peer else ""
        lines.append(
            f"| {what} | {ours['rows_per_s'] / 1e6:.1f} M rows/s | {peer}{limit} "
            f"| {_speed(theirs['rows_per_s'])} | **{theirs['ratio_ours_to_this']:,.2f}x** | {target} |"
        )
    first = {
        row["case"]: row["seconds"][0] for row in rows_of("loader_first_batch") if row["axes"]["rows"] == 10_000_000
    }
    peer = "DataLoader + WeightedRandomSampler"
    lines.append(
        f"| first batch of an epoch | {1000 * first['fastbalance']:.0f} ms | {peer} | {first[peer]:.1f} s "
        f"| **{first[peer] / first['fastbalance']:.0f}x** | |"
    )
    env = find("order", "fastbalance", {"rows": 100_000_000})
    lines += [
        "",
        f"{env['device']}, {env['cores']} cores; torch {env['versions']['torch']}; medians; "
        f"at commits {', '.join(commits)}.",
    ]
    return "\n".join(lines)


def main() -> int:
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv:
        return int(wanted != text)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
