"""Run the experiments, and write docs/weighted_loss_table.md and what `why.py` writes from what they found.

python bench/weighted_loss/run.py                all of them, about half an hour on one core
python bench/weighted_loss/run.py --quick        fewer seeds, steps and settings; nothing is kept
python bench/weighted_loss/run.py --only e03     one, or several: --only e03 e05
python bench/weighted_loss/run.py --report       only write documents and figures from the kept results
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # bench/, for `_harness` and for this folder as a package


def experiments() -> list[str]:
    return sorted(path.stem for path in HERE.glob("e[0-9][0-9]_*.py"))


def title(name: str) -> str:
    """The question: the first line of an experiment's docstring."""
    return str(import_module(f"weighted_loss.{name}").__doc__).splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="e03", default=[])
    arguments = parser.parse_args()
    from weighted_loss import _common, _report, why

    torch.set_num_threads(1)  # the products are small: a second thread makes them slower
    chosen = [name for name in experiments() if not arguments.only or name[:3] in arguments.only]
    started = time.perf_counter()
    for name in [] if arguments.report else chosen:
        began, began_cpu = time.perf_counter(), time.process_time()
        result = import_module(f"weighted_loss.{name}").run(arguments.quick)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        _common.show(name, title(name), result, seconds, cpu_seconds)
        if not arguments.quick:
            _common.save(name, title(name), result, seconds, cpu_seconds)
    print(f"{time.perf_counter() - started:.0f} s in all, CPU {time.process_time():.0f} s")
    if not arguments.quick:
        _report.write({name: str(import_module(f"weighted_loss.{name}").__doc__) for name in experiments()})
        why.main(check=False)


if __name__ == "__main__":
    main()
