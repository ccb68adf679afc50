"""The command `fastbalance compare`, as a process: its errors, whole runs, a model of the user, and Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from html import escape

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastbalance.flights import read_flights

from .comparisons import Page, mixed_table

SEEDS, METHODS = 3, 8
NETWORKS = """
import torch

def small(n_features, n_classes):
    return torch.nn.Sequential(torch.nn.Linear(n_features, 4), torch.nn.ReLU(), torch.nn.Linear(4, n_classes))

class Failing(torch.nn.Linear):
    def forward(self, x):
        raise RuntimeError("no such layer\\nsecond line")
"""


def command(*args):
    return [sys.executable, "-m", "fastbalance", "compare", *map(str, args)]


def run(*args, **options):
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=280, **options)


def test_errors_are_one_line_on_stderr(tmp_path):
    pq.write_table(pa.table({"x": [1.0, 2.0], "y": [0, 1]}), tmp_path / "a.parquet")
    for options, words in [
        (["--budget", "soon"], "--budget: got 'soon'"),
        (["--output", "no/a.html"], "--output: got 'no/a.html'"),
        (["--output", tmp_path], f"--output: got '{tmp_path}'"),
    ]:
        done = run(tmp_path / "a.parquet", "--label", "y", *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"fastbalance: error: {words}")
        assert done.stderr.count("\n") == 1


def multi_class():
    """Digits, the k-th class thinned to a share of .7^k."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    kept = np.concatenate([np.flatnonzero(y == k)[: round(170 * 0.7**k)] for k in range(9)])
    return pa.table({**{f"pixel {k}": x[kept, k] for k in range(64)}, "digit": y[kept]})


@pytest.mark.slow
@pytest.mark.parametrize("which", ["flights", "mixed", "digits"])
def test_whole_runs_with_no_option_but_the_label_and_a_budget(which, tmp_path):
    data, label = {
        "flights": (read_flights, "cancelled"),
        "mixed": (mixed_table, "late"),
        "digits": (multi_class, "digit"),
    }[which]
    pq.write_table(data(), tmp_path / "a.parquet")
    done = run(tmp_path / "a.parquet", "--label", label, "--budget", "60s", "--json", "--output", tmp_path / "r.html")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert len(found["arms"]) == 10
    text = (tmp_path / "r.html").read_text()
    assert Page(text).open == []
    for told in (found["recommendation"]["headline"], *found["recommendation"]["evidence"], *found["missing"]):
        assert escape(told) in text
    if which == "mixed":
        assert sum("(a leak)" in warning for warning in found["warnings"]) == 2


@pytest.mark.slow
def test_a_whole_run_with_a_model_and_columns_of_the_user(tmp_path):
    pq.write_table(mixed_table(), tmp_path / "a.parquet")
    (tmp_path / "networks.py").write_text(NETWORKS)
    options = ("--model", "networks:small", "--features", "number, airport", "--budget", "20s", "--seeds", SEEDS)
    done = run("a.parquet", "--label", "late", *options, "--json", "--output", "r.html", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["model"] == "networks:small"
    assert found["columns"] == {"number": "number", "airport": "category"}
    text = (tmp_path / "r.html").read_text()
    assert "Model: networks:small;" in text
    assert Page(text).open == []


def test_a_model_that_fails_is_one_line_on_stderr(tmp_path):
    pq.write_table(mixed_table(), tmp_path / "a.parquet")
    (tmp_path / "networks.py").write_text(NETWORKS)
    done = run("a.parquet", "--label", "late", "--features", "number", "--model", "networks:Failing", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "fastbalance: error: --model: got RuntimeError: no such layer; allowed: a module that takes float32 [B, 2].\n"
    )
    assert not (tmp_path / "fastbalance-compare.html").exists()


def shows(progress):
    return lambda process, shown: re.search(progress, shown)


def has_processes(process, shown):
    """Whether a process that trains is on its way: its Python runs, and imports what it needs."""
    with suppress(psutil.NoSuchProcess):
        workers = [child for child in process.children() if "popen_loky" in " ".join(child.cmdline())]
        return any(sum(worker.cpu_times()[:2]) >= 0.1 for worker in workers)


def interrupt(folder, when):
    """Press Ctrl-C in a state of the command; the exit code, stdout, and what the terminal got.

    As from a terminal, the signal goes to the command and to its processes, none of which may be left behind.
    """
    import pty

    pq.write_table(mixed_table(), folder / "a.parquet")
    options = ("--label", "late", "--budget", "60s", "--seeds", SEEDS, "--jobs", 2, "--json")
    # What a shell starts in the background ignores SIGINT, and so do its children unless they are told.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm", "PYTHONUTF8": "1"}
    ours, theirs = pty.openpty()
    with open(folder / "stdout", "w") as stdout:
        arguments = command(folder / "a.parquet", *options, "--output", folder / "r.html")
        child = subprocess.Popen(
            arguments, stdout=stdout, stderr=theirs, preexec_fn=heed, env=environment, start_new_session=True
        )
    os.close(theirs)
    process, shown, pressed = psutil.Process(child.pid), "", False
    with suppress(OSError), open(ours, "rb", buffering=0) as terminal:  # the end of a terminal is an error
        while part := terminal.read(4096):
            shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part.decode(errors="replace"))
            if not pressed and when(process, shown):
                os.killpg(child.pid, signal.SIGINT)
                pressed = True
    code = child.wait(timeout=60)
    assert pressed, shown
    left = [process for process in psutil.process_iter() if _session(process) == child.pid]
    assert psutil.wait_procs(left, timeout=60)[1] == []
    printed = (folder / "stdout").read_text()
    (folder / "stdout").unlink()
    return code, printed, shown


def _session(process):
    with suppress(ProcessLookupError):
        return os.getsid(process.pid)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_leaves_a_page_of_what_was_finished(tmp_path):
    code, printed, shown = interrupt(tmp_path, shows(rf"training \D+{METHODS}/{SEEDS * METHODS}"))
    assert code == 130
    assert shown.rstrip().endswith(f"interrupted: what was finished is in {tmp_path / 'r.html'}")
    assert "Traceback" not in shown
    found = json.loads(printed)
    assert found["interrupted"] is True
    assert (found["n_seeds"], len(found["arms"])) == (1, 10)
    assert found["missing"][-1].endswith(": interrupted")
    text = (tmp_path / "r.html").read_text()
    assert "this run was interrupted: only what was finished is here" in text
    assert Page(text).open == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "r.html"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("when", [shows("reading"), has_processes, shows(rf"training \D+0/{SEEDS * METHODS}")])
def test_ctrl_c_before_anything_is_finished_leaves_nothing(when, tmp_path):
    code, printed, shown = interrupt(tmp_path, when)
    assert (code, printed) == (130, "")
    assert "Traceback" not in shown
    assert "interrupted" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
