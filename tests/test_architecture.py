"""Imports go one way, kernels know nothing of the package, importing is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each file imports only from files above it.
LAYERS = [
    *("errors", "checks", "ranks", "retries", "shards", "paths", "memory", "source", "engines", "encoder"),
    *("labels", "index", "dataset", "balance", "plan", "split", "cursor", "run", "order"),
    *("columns", "ragged", "records", "arena", "batches", "rowrandom"),
    *("residency", "windows", "stats", "stream", "options", "loader", "row_labels", "samplers", "trainers"),
    *("storage", "tables", "regroup", "workfolder", "resharding"),
    *("compare_verdict", "compare_data", "compare_scores", "compare_arms", "compare_figures", "compare_report"),
    *("compare_runs", "comparison", "__init__"),
    *("flights", "demo_arms", "demo_report", "demo", "cli", "__main__"),
]
KERNEL_LAYERS = [
    *("philox", "bijection", "locate", "threads", "cpu_rows", "cpu", "torch_ops", "draws", "triton_ops", "cuda"),
    *("dispatch", "ops", "__init__"),
]
HEAVY = [
    *("matplotlib", "sklearn", "scipy.stats", "joblib", "pandas", "datasets", "ray", "lightning", "transformers"),
    *("accelerate", "rich", "typer"),
    *("numba.cuda", "triton"),
]


def imported(path: Path, package: str) -> set[str]:
    """Modules of the package that a file imports, however it spells it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" if not module.strip(".") else module for alias in node.names}
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    local = {name.replace(f"{package}.", ".", 1) if name.startswith(package) else name for name in names}
    return {name.lstrip(".").partition(".")[0] for name in local if name.startswith(".")}


@pytest.mark.parametrize(
    ("folder", "package", "layers"),
    [("fastbalance", "fastbalance", LAYERS), ("kernels", "fastbalance.kernels", KERNEL_LAYERS)],
)
def test_imports_go_one_way(folder, package, layers):
    files = {path.stem: path for path in (ROOT / folder).glob("*.py")}
    assert set(files) <= set(layers), "a new file needs a place in the layers"
    for name, path in files.items():
        above = set(layers[: layers.index(name)])
        below = (imported(path, package) & set(layers)) - above
        assert not below, f"{folder}/{name}.py imports {below}, which is not above it"


def test_the_check_sees_an_upward_import(tmp_path):
    (tmp_path / "plan.py").write_text("from .order import EpochOrder\nfrom fastbalance import loader\nimport torch\n")
    assert imported(tmp_path / "plan.py", "fastbalance") >= {"order", "loader"}


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda path: path.stem)
def test_kernels_know_nothing_of_the_package(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1
            assert not (node.module or "").startswith("fastbalance")
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("fastbalance") for alias in node.names)


def test_remainder_arithmetic_of_ranks_is_in_one_file():
    for path in (ROOT / "fastbalance").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv | ast.Mod) and path.stem != "split":
                names = {leaf.id for leaf in ast.walk(node) if isinstance(leaf, ast.Name)}
                assert not names & {"rank", "world_size"}, f"{path.name}:{node.lineno}"


def test_nobody_adds_a_seed_to_an_epoch_or_uses_a_global_generator():
    for path in [*(ROOT / "fastbalance").glob("*.py"), *(ROOT / "kernels").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
                names = {getattr(leaf, "id", getattr(leaf, "attr", "")) for leaf in ast.walk(node)}
                assert not ({"seed", "epoch"} <= names), f"{path.name}:{node.lineno}"
            assert not (isinstance(node, ast.Import) and any(alias.name == "random" for alias in node.names))


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_is_light_and_makes_no_cuda_context():
    out = run(
        "import fastbalance, sys, torch\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], torch.cuda.is_initialized())"
    )
    assert out.strip() == "[] False"


def test_the_import_check_can_fail():
    code = f"import scipy.stats, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(code).strip() == "['scipy.stats']"
