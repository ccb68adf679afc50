"""Every experiment on weighted losses, run quickly: fewer seeds, steps and settings, and nothing is kept."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from fastbalance.kernels.threads import one_thread

BENCH = Path(__file__).parents[1] / "bench"
EXPERIMENTS = sorted(path.stem for path in (BENCH / "weighted_loss").glob("e[0-9][0-9]_*.py"))
# Those whose expectation is a closed form: none may differ, whatever the seed.
FORMULAS = {
    "e00_identity",
    "e01_dispersion",
    "e02_gradient_covariance",
    "e03_stable_step",
    "e05_divide_by_weights",
    "e06_coverage",
    "e09_calibration",
    "e14_repeat_factors",
}


def test_there_is_an_experiment_for_each_question():
    assert [name[:3] for name in EXPERIMENTS] == [f"e{k:02d}" for k in range(18)]
    assert set(EXPERIMENTS) >= FORMULAS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use importlib.metadata:DeprecationWarning")  # torchsampler, where it is installed
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_quick_run(name, module):
    with one_thread():
        result = module(name).run(quick=True)
    assert result.findings
    assert not [f.quantity for f in result.findings if math.isnan(f.measured)]
    wrong = [f"{f.quantity}: {f.expected}, got {f.low:.4g} .. {f.high:.4g}" for f in result.findings
             if f.verdict == "differs"]  # fmt: skip
    assert name not in FORMULAS or not wrong, wrong
    assert all(len(row) == len(grid.columns) for grid in result.grids for row in grid.rows)


@pytest.mark.slow
def test_the_command_shows_a_quick_run_and_keeps_nothing():
    written = [*BENCH.glob("results/weighted_loss/*.json"), *(BENCH.parent / "docs").rglob("*.*")]
    before = {path: path.stat().st_mtime_ns for path in written}
    command = [sys.executable, BENCH / "weighted_loss/run.py", "--quick", "--only", "e00", "e14"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "e00_identity" in done.stdout
    assert "e14_repeat_factors" in done.stdout
    assert "e01_dispersion" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in written} == before
