"""The example of images runs, is stopped in the middle of an epoch, and goes on as if it had not been."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "images.py"
N_BATCHES = 16  # of 32: 495 images, stretched to whole batches


def run(folder: Path, *options: str) -> tuple[list[tuple[int, str, list[int]]], list[str]]:
    """Number, loss and rows of each step, and the lines behind the steps."""
    command = [sys.executable, EXAMPLE, "--folder", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    steps = [(int(line[1]), line[3], [int(row) for row in line[5:]]) for line in lines if line[0] == "step"]
    return steps, done.stdout.splitlines()[len(steps) :]


@pytest.mark.slow
def test_it_is_stopped_in_the_middle_of_an_epoch_and_goes_on(tmp_path):
    whole, report = run(tmp_path / "whole")
    assert [step for step, _, _ in whole] == list(range(1, 3 * N_BATCHES + 1))
    folders = sorted(int(path.parent.name) for path in (tmp_path / "whole" / "train").glob("*/*.jpg"))
    for _, _, rows in whole:
        of_class = [sum(folders[row] == c for row in rows) for c in range(10)]
        assert max(abs(n - 3.2) for n in of_class) <= 2
    assert report[0] == "class: images trained on, recall on 30 others"
    assert [line.partition(",")[0] for line in report[1:]] == [f"{c}: {folders.count(c)}" for c in range(10)]

    stopped, report = run(tmp_path / "parts", "--max-steps", "27")  # behind the checkpoint of step 20
    assert report == []
    on, _ = run(tmp_path / "parts", "--workers", "0", "--max-steps", "33")
    rest, report = run(tmp_path / "parts")
    assert [part[0][0] for part in (stopped, on, rest)] == [1, 21, 31]
    assert stopped == whole[:27]
    assert on == whole[20:33]
    assert rest == whole[30:]
    assert len(report) == 11
