"""The README says only what was run: its code runs, its output is the output, its table comes from the benches."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from fastbalance.flights import read_flights

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_prints_the_plan_that_is_shown(tmp_path, monkeypatch):
    flights = read_flights()
    (tmp_path / "flights").mkdir()
    for part in range(2):
        rows = flights.slice(part * 200_000, 200_000)
        pq.write_table(rows, tmp_path / "flights" / f"{part}.parquet", row_group_size=70_000)
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    names: dict = {}
    exec(code[1], names)
    assert names["loss"].isfinite()
    assert names["batch"]["x"].shape == (4096, 3)
    assert f"```\n{names['loader'].plan}\n```" in README


def test_the_measured_table_comes_from_the_results():
    done = subprocess.run([sys.executable, ROOT / "bench" / "table.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run bench/table.py\n{done.stderr}"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
