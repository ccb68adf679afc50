"""Test-wide set-up."""

import hashlib
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# numba keys its cache by the file of the compiled function alone, so an edit of a body in another file would be
# missed: the cache of the tests is kept apart for each version of the sources. Set before numba is imported.
_sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((ROOT / "kernels").glob("*.py"))))
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".numba_cache" / _sources.hexdigest()[:16]))

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "default", max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _cpu_threads():
    """Leave torch's thread count as it was found."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def module():
    """Imports a module of bench/weighted_loss."""
    bench = str(ROOT / "bench")
    sys.path.insert(0, bench)
    yield lambda name: importlib.import_module(f"weighted_loss.{name}")
    sys.path.remove(bench)
