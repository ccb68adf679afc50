"""Everything that only a GPU can show, in one report: the laws, compute-sanitizer, and the times.

Steps: the tests, whose laws take in the GPU; bench/gpu.py on few rows under compute-sanitizer, where that is on PATH;
bench/gpu.py. A step that fails does not stop the others. Exit code: 0 if all is well, 1 if a step failed, 2 where there
is no GPU.

    python bench/gpu_check.py [--output gpu.json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from _harness import environment

ROOT = Path(__file__).parents[1]
BENCH = str(Path(__file__).with_name("gpu.py"))
PACKAGES = ("fastbalance", "numba-cuda", "cuda-bindings", "nvidia-nvvm", "nvidia-cuda-nvcc", "triton")
TAIL_LINES, LIMIT_S = 60, 3600
# A sanitizer runs a kernel some hundred times slower.
SMALL = ("--rows", "65536", "--repeats", "1")


class Step(NamedTuple):
    name: str
    command: list[str]


def steps(bench_output: Path) -> Iterator[Step]:
    tests = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
    yield Step("laws", [*tests, "tests/test_laws.py"])
    yield Step("other tests", [*tests, "tests", "--ignore=tests/test_laws.py"])
    if sanitizer := shutil.which("compute-sanitizer"):
        small = [sys.executable, BENCH, *SMALL, "--output", str(bench_output.with_name("small.json"))]
        for tool in ("memcheck", "racecheck"):
            # torch hands out parts of large allocations, in which an access out of bounds would not be seen.
            env = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]
            yield Step(tool, [*env, sanitizer, "--tool", tool, "--error-exitcode", "9", *small])
    yield Step("bench", [sys.executable, BENCH, "--output", str(bench_output)])


def run(step: Step) -> dict[str, Any]:
    """What came of a step: its exit code, and the end of what it printed."""
    print(f"{step.name}: {' '.join(step.command)}", flush=True)
    started_s, code = time.monotonic(), -1
    try:
        done = subprocess.run(
            step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S
        )
        code, text = done.returncode, done.stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        text = f"{getattr(error, 'stdout', None) or ''}\n{error}"
    tail = text.splitlines()[-TAIL_LINES:]
    print("\n".join(tail), f"exit code {code}", sep="\n", flush=True)
    took_s = round(time.monotonic() - started_s, 1)
    return {**step._asdict(), "exit_code": code, "seconds": took_s, "tail": tail}


def gpu() -> dict[str, Any]:
    """The GPU, its driver, and the versions of what runs on it."""
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit", "--format=csv"]
    smi = subprocess.run(query, capture_output=True, text=True).stdout if shutil.which(query[0]) else ""
    return {
        "properties": str(properties),
        "nvidia_smi": smi.splitlines(),
        "cuda_of_torch": torch.version.cuda,
        "versions": {name: _version(name) for name in PACKAGES},
        "compute_sanitizer": shutil.which("compute-sanitizer"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "gpu.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("make gpu-check: torch sees no CUDA GPU here; nothing was checked.", file=sys.stderr)
        return 2
    report = {**environment(), "gpu": gpu(), "steps": []}
    with TemporaryDirectory() as folder:
        bench_output = Path(folder, "bench.json")
        for step in steps(bench_output):
            report["steps"].append(run(step))
            report["bench"] = json.loads(bench_output.read_text())["results"] if bench_output.exists() else []
            arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    failed = [step["name"] for step in report["steps"] if step["exit_code"]]
    print(f"{arguments.output}: {'failed: ' + ', '.join(failed) if failed else 'all is well'}. Please send this file.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
