"""`fastbalance compare`: resample, weight the loss, or neither? Every way, trained on the user's table, and scored."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .compare_verdict import ADJUSTED, AS_IS, LEAST_SEEDS, METRICS, NEITHER, OURS, paired, recommend
from .errors import ArgumentError, FastbalanceError, explain

DIFFERENCES = (*METRICS, "balanced_accuracy", "worst_recall_tuned", "log_loss", "brier", "ece")

_USABLE = 0.95  # of the best validation PR-AUC: a rate that gets that much is usable
_ROWS_PER_S, _MOST_ROWS = 1000, (20_000, 200_000)  # scoring grows with the rows; fewer leave time for steps
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}

Progress = Callable[[str, int, int], None]


def compare(
    source: Any,
    label: str | Sequence[str],
    *,
    features: Sequence[str] | None = None,
    model: str | Callable[[int, int], Any] | None = None,
    budget: str | float = "5m",
    output: str | Path | None = None,
    seed: int = 0,
    n_seeds: int = 5,
    batch_rows: int | None = None,
    max_rows: int | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on a table with natural, weighted and resampled batches under equal budgets, and say what to use.

    Args:
        source: Path, glob, directory, URI; `pa.Table`, dict of arrays or tensors, `datasets.Dataset`; `Dataset`.
        label: The label column, or several.
        features: Columns to learn from; None: all that can be used.
        model: A function of n_features and n_classes that returns a module which gives logits, or its name
            "module:factory"; None: a perceptron of two layers of 64.
        budget: Wall time: seconds, or "90s", "5m", "1h".
        output: The HTML file to write; None: none.
        seed: The first of the seeds; each fixes a split, first parameters and the order of the batches.
        n_seeds: How many seeds, at least 3.
        batch_rows: Rows of a batch; None: 256, or fewer where the training split is short.
        max_rows: Most rows to read; None: 1,000 for each second of the budget, from 20,000 to 200,000.
        n_jobs: Processes; None: one for each core, up to one for each of the eight methods. They share the budget.
        progress: Called as `progress(stage, done, total)`.

    Returns:
        What `--json` prints. Interrupted by Ctrl-C, what was finished until then, and `"interrupted": True`.

    Raises:
        ArgumentError: A budget, model or number of seeds that is none.
        SourceError, LabelError, ColumnError: As for `Dataset.open`, or nothing to learn from.
        FastbalanceError: The packages of `fastbalance[compare]` are missing.
        KeyboardInterrupt: Before anything was finished.
    """
    budget_s = parse_budget(budget)
    if n_seeds < LEAST_SEEDS:
        raise ArgumentError(explain("n_seeds", got=n_seeds, allowed=f">= {LEAST_SEEDS}, for an interval"))
    try:
        from .compare_arms import METHODS, RATES, load_factory
        from .compare_data import read_sample
        from .compare_report import write_report
        from .compare_runs import run
    except ImportError as error:
        raise FastbalanceError(f"compare: {error}. To get it: pip install 'fastbalance[compare]'") from error
    started_s = time.perf_counter()
    factory = load_factory(model) if model is None or isinstance(model, str) else model
    tell = progress or (lambda stage, done, total: None)
    tell("reading", 0, 1)
    most_rows = max_rows or int(np.clip(_ROWS_PER_S * budget_s, *_MOST_ROWS))
    sample = read_sample(source, label, features, most_rows, seed)
    tell("reading", 1, 1)
    runs, notes = run(sample, factory, range(seed, seed + n_seeds), batch_rows, budget_s, started_s, n_jobs, tell)
    results = {
        "source": _paths(source),
        "label": label if isinstance(label, str) else list(label),
        "model": model if isinstance(model, str) else "perceptron" if model is None else repr(model),
        **_facts(sample, notes),
        "n_seeds": sum(len(run) == len(METHODS) for run in runs),
        "rates": list(RATES),
        "arms": summaries(runs),
    }
    results["missing"] += _at_the_edge(results["arms"], RATES[-1])
    results["passes"] = results["n_steps"] * results["batch_rows"] / results["rows"]["train"]
    results["recommendation"] = cautious(recommend(results["arms"], results["n_seeds"]), results["passes"])
    results["seconds"] = time.perf_counter() - started_s
    if output is not None:
        write_report(results, Path(output))
    return results


def _paths(source: Any) -> str | list[str] | None:
    """What names the data; None where it is in memory."""
    if isinstance(source, list | tuple):
        return [str(path) for path in source]
    return str(source) if isinstance(source, str | Path) else None


def cautious(recommendation: dict[str, Any], passes: float) -> dict[str, Any]:
    """Say where networks stopped early: balanced batches start faster, and that may be all that is seen."""
    from .compare_runs import ENOUGH_PASSES

    if passes >= ENOUGH_PASSES or recommendation["verdict"] == "undecided":
        return recommendation
    caution = (
        f"This holds for {passes:.1f} passes over the training rows. Balanced batches learn a rare class in fewer "
        "steps; a longer training (--budget) can close the gap, or turn it."
    )
    short = f" But training saw the rows only {passes:.1f} times: see the caution."
    evidence = [*recommendation["evidence"], caution]
    return {**recommendation, "headline": recommendation["headline"] + short, "evidence": evidence}


def _at_the_edge(arms: dict[str, dict[str, Any]], largest: float) -> list[str]:
    names = [name for name, arm in arms.items() if set(arm["rate"]["seeds"]) == {largest}]
    return [f"rates above {largest}: {', '.join(names)} did best at the largest that was tried"] if names else []


def parse_budget(budget: str | float) -> float:
    """Seconds of a budget.

    Raises:
        ArgumentError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(budget))
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise ArgumentError(explain("--budget", got=repr(budget), allowed='a time > 0, as "90s", "5m" or "1h"'))
    return seconds


def summaries(runs: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Results of each arm: every number with its seeds, mean, and paired difference to fastbalance uniform."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for name, job in run.items():
            for arm, result in _decisions(name, job):
                arms.setdefault(arm, []).append(result)
    out: dict[str, dict[str, Any]] = {}
    for arm, results in arms.items():
        out[arm] = {key: _summary([result[key] for result in results]) for key in results[0]}
        tried = results[0]["valid_by_rate"]
        out[arm]["usable_rates"] = {"rates": [rate for rate, v in tried.items() if v >= _USABLE * max(tried.values())]}
    for name, numbers in out.items():
        if name != OURS and OURS in out:
            for key in DIFFERENCES:
                numbers[key]["ours_minus_this"] = paired(out[OURS][key]["seeds"], numbers[key]["seeds"])
    return out


def _decisions(name: str, job: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The arms that a trained method stands for: the natural one is three, which only decide differently."""
    if name != "natural":
        return [(name, job)]
    job = dict(job)
    others = job.pop("adjusted")
    as_is = {**job, **{f"{key}_tuned": job[key] for key in ("balanced_accuracy", "worst_recall")}}
    tuned = {**job, **{key: job[f"{key}_tuned"] for key in ("balanced_accuracy", "worst_recall")}}
    return [(AS_IS, as_is), (NEITHER, tuned), (ADJUSTED, job | others)]


def _summary(values: Sequence[Any]) -> dict[str, Any]:
    """Values of the seeds, and their mean where they are numbers or lists of one length."""
    if isinstance(values[0], dict) or (isinstance(values[0], list) and len({np.shape(v) for v in values}) > 1):
        return {"seeds": list(values)}
    return {"seeds": list(values), "mean": np.mean(values, axis=0).tolist()}


def _facts(sample: Any, notes: dict[str, Any]) -> dict[str, Any]:
    return {
        "rows": {"used": len(sample.y), "total": sample.n_rows_total, "train": notes.pop("n_train")},
        "classes": {name: int(n) for name, n in zip(sample.classes, np.bincount(sample.y), strict=True)},
        "columns": sample.names,
        "warnings": list(sample.warnings),
        **notes,
    }
