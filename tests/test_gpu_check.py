"""What `make gpu-check` runs on a GPU, run here as far as it goes without one."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def modules(monkeypatch):
    """bench/gpu.py and bench/gpu_check.py, which see a GPU; its events are a clock."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.ms = 1e3 * time.perf_counter()

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, later: Event) -> float:
            return later.ms - self.ms

    monkeypatch.syspath_prepend(BENCH)
    bench, check = importlib.import_module("gpu"), importlib.import_module("gpu_check")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU that is not there")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: "some")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(bench, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(bench, "find_spec", lambda name: None)  # Triton's kernels need a GPU or its interpreter
    return SimpleNamespace(bench=bench, check=check)


@pytest.mark.parametrize("script", ["gpu.py", "gpu_check.py"])
def test_without_a_gpu_both_say_so(script, tmp_path):
    output = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, BENCH / script, "--output", output],
        capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "torch sees no CUDA GPU here; nothing was" in done.stderr
    assert not output.exists()


def test_the_bench_runs_and_keeps_every_row(modules, monkeypatch, tmp_path, capsys):
    output = tmp_path / "bench.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rows", "131072", "--repeats", "2", "--output", str(output)])
    assert modules.bench.main() == 0
    results = json.loads(output.read_text())["results"]
    assert [row["work"] for row in results] == [
        "order, one block, cpu", "order, one block, torch_ops", "torch.randperm, as many", "torch.randperm, all rows",
        *(
            work.format(n_bytes)
            for n_bytes in (64, 144, 512)
            for work in (
                "gather, {} bytes, cpu", "gather, {} bytes, torch_ops",
                "index_select, {} bytes", "randperm, then index_select, {} bytes",
            )
        ),
        "pack, transfer included", "packed on the CPU, then index_copy_", "its bytes from pinned memory (limit)",
        "loader",
    ]  # fmt: skip
    for row in results:
        p20, p50, p80 = row["milliseconds"]
        assert 0 <= p20 <= p50 <= p80
        assert row["rows"] > 0
    assert capsys.readouterr().out.count("G rows/s") == len(results)


def test_the_bench_finds_wrong_bits(modules, monkeypatch):
    kernels = SimpleNamespace(
        order_block=lambda out, block: out.zero_(),
        gather=lambda out, records, places: out.zero_(),
        pack=lambda records, *rest: None,
    )
    monkeypatch.setattr(modules.bench, "interpretations", lambda: {"wrong": kernels})
    timer = modules.bench.Timer(1)
    with pytest.raises(AssertionError, match="order of wrong differs"):
        list(modules.bench.order_rows(timer, 8192))
    with pytest.raises(AssertionError, match="gather of wrong differs"):
        list(modules.bench.gather_rows(timer, 800, 64))
    with pytest.raises(AssertionError, match="packed records differ"):
        list(modules.bench.pack_rows(timer, 800))


def test_the_report_keeps_every_step(modules, monkeypatch, tmp_path, capsys):
    bench_rows = '{"results": [{"work": "order"}]}'

    def steps(bench_output: Path):
        yield modules.check.Step("good", [sys.executable, "-c", "print('fine')"])
        yield modules.check.Step("bad", [sys.executable, "-c", "print('line\\n' * 99); raise SystemExit(9)"])
        yield modules.check.Step("missing", ["/no/such/program"])
        yield modules.check.Step("slow", [sys.executable, "-c", "import time; time.sleep(60)"])
        write = f"import pathlib; pathlib.Path({str(bench_output)!r}).write_text({bench_rows!r})"
        yield modules.check.Step("bench", [sys.executable, "-c", write])

    monkeypatch.setattr(modules.check, "steps", steps)
    monkeypatch.setattr(modules.check, "LIMIT_S", 1)
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(output)])
    assert modules.check.main() == 1
    report = json.loads(output.read_text())
    assert [step["name"] for step in report["steps"]] == ["good", "bad", "missing", "slow", "bench"]
    assert [step["exit_code"] for step in report["steps"]] == [0, 9, -1, -1, 0]
    assert report["steps"][0]["tail"] == ["fine"]
    assert len(report["steps"][1]["tail"]) == modules.check.TAIL_LINES
    assert "/no/such/program" in report["steps"][2]["tail"][-1]
    assert "timed out" in report["steps"][3]["tail"][-1]
    assert report["bench"] == [{"work": "order"}]
    assert report["gpu"]["versions"]["numba-cuda"]
    assert report["device"] == "a GPU that is not there"
    assert f"{output}: failed: bad, missing, slow" in capsys.readouterr().out


@pytest.mark.slow
def test_all_steps_can_be_started(modules, monkeypatch, tmp_path):
    """Their programs understand the commands: tests are collected, and the bench sees that there is no GPU."""
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text('#!/bin/sh\n[ "$1 $3 $4" = "--tool --error-exitcode 9" ] && shift 4 && exec "$@"\n')
    sanitizer.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    steps = {step.name: step for step in modules.check.steps(tmp_path / "bench.json")}
    assert list(steps) == ["laws", "other tests", "memcheck", "racecheck", "bench"]
    for name, step in steps.items():
        if "pytest" in step.command:
            done = modules.check.run(step._replace(command=[*step.command, "--collect-only"]))
            assert done["exit_code"] == 0, done["tail"]
        else:
            assert modules.check.run(step)["tail"] == [
                "bench/gpu.py: torch sees no CUDA GPU here; nothing was measured."
            ], name
