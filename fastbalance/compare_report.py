"""What `compare` found, as one HTML file that needs no network: the recommendation, figures, tables, and what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from .compare_figures import draw_calibration, draw_curves, draw_pr, draw_spread, figure, sample
from .compare_verdict import ADJUSTED, AS_IS, NEITHER, OURS, WEIGHTED
from .errors import ArgumentError, explain

_COLUMNS = {
    "pr_auc": "PR-AUC",
    "balanced_accuracy": "balanced accuracy",
    "balanced_accuracy_tuned": "balanced accuracy, tuned",
    "worst_recall_tuned": "worst recall, tuned",
    "log_loss": "log loss",
    "brier": "Brier",
    "ece_raw": "ECE before correction",
    "ece": "ECE after",
}
_STYLE = """
:root { color-scheme: light dark;
  --ink: #1c2024; --dim: #5c646e; --paper: #fff; --box: #f3f5f7; --line: #d8dde3; --key: #b3301d }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --dim: #9aa4af; --paper: #14171a; --box: #1e2328; --line: #343b43; --key: #ff8a75 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere }
h1 { font-size: 1.25rem; margin: 0 0 .5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.answer { border-left: .3rem solid var(--key); background: var(--box); padding: .8rem 1rem }
.answer strong { font-size: 1.25rem; line-height: 1.3; display: block; margin-bottom: .4rem }
.dim, figcaption { color: var(--dim); font-size: .875rem }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem }
figure { margin: 0; max-width: 32rem } figure svg { width: 100%; height: auto }
.key { align-self: center; list-style: none; margin: 0; padding: 0 }
.key svg { vertical-align: middle; margin-right: .6rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .45rem; text-align: right; border-bottom: 1px solid var(--line); overflow-wrap: normal }
th { vertical-align: bottom; width: 5rem; font-size: .75rem }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); width: auto;
  min-width: 9rem; overflow-wrap: anywhere }
.ours td { font-weight: 600 } pre { background: var(--box); padding: .8rem; overflow-x: auto; font-size: .8125rem }
.columns { columns: 18rem }
"""


def write_report(results: dict[str, Any], path: Path) -> None:
    """Write the page.

    Raises:
        ArgumentError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        temporary.write_text(page(results), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        allowed = "a file in a directory that can be written to"
        raise ArgumentError(explain("--output", got=error, allowed=allowed)) from error
    finally:
        temporary.unlink(missing_ok=True)


def page(results: dict[str, Any]) -> str:
    """The HTML of the results of `compare`."""
    arms = results["arms"]
    # Of the natural arms, which only decide differently, figures show the one network.
    trained = {
        "natural" if name == AS_IS else name: arm for name, arm in arms.items() if name not in (NEITHER, ADJUSTED)
    }
    figures = [
        figure("curve", "PR-AUC on validation rows while training", draw_curves(trained, results["n_steps"])),
        figure("pr", "Precision and recall on test rows, first seed; scaled to recalls from 0.05", draw_pr(trained)),
        figure(
            "raw",
            "Calibration as trained: said against true, first seed",
            draw_calibration(trained, "calibration_raw"),
        ),
        figure("natural", "Calibration after prior correction, first seed", draw_calibration(trained, "calibration")),
        figure("spread", "Unevenness of the lengths of the steps", draw_spread(trained)),
    ]
    recommendation = results["recommendation"]
    evidence = "".join(f"<p>{escape(text)}</p>" for text in recommendation["evidence"])
    cautions = [*results["missing"], *results["warnings"]]
    if results["interrupted"]:
        cautions.insert(0, "this run was interrupted: only what was finished is here")
    subject = f"{results['source'] or 'a table in memory'}, label {results['label']}"
    body = [
        f"<h1>Resample, or weight the loss? {escape(subject)}</h1>",
        f'<div class="answer"><strong>{escape(recommendation["headline"])}</strong>{evidence}</div>',
        f'<p class="dim">{escape(_set_up(results))}</p>',
        "<h2>Left out, and other cautions</h2>" + _listed(map(escape, cautions)) if cautions else "",
        f"<h2>How to apply it</h2><pre>{escape(how_to_apply(results))}</pre>" if recommendation["weighted"] else "",
        f'<h2>Figures</h2><div class="figures">{_key(trained)}{"".join(figures)}</div>',
        "<h2>Arms</h2>" + _arm_table(arms) + (_difference_table(arms) if OURS in arms else ""),
        "<h2>Classes</h2>" + _class_table(results) + "<h2>Cost and learning rates</h2>" + _cost_table(results),
        "<h2>Columns</h2>"
        + _listed([_breakable(": ".join(column)) for column in results["columns"].items()], "columns"),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = "fastbalance compare"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{title}</title><style>{_STYLE}</style></head>'
        f"<body>{chr(10).join(body)}</body></html>\n"
    )


def how_to_apply(results: dict[str, Any]) -> str:
    """Code to paste, for the verdict."""
    recommendation, label, rows = results["recommendation"], results["label"], results["batch_rows"]
    balance = "uniform" if recommendation["verdict"] == "resample" else "natural"
    source = "data" if results["source"] is None else repr(results["source"])
    lines = [
        "import fastbalance as fb",
        "",
        f"loader = fb.BalancedLoader({source}, label={label!r}, batch_size={rows}, balance={balance!r})",
    ]
    if recommendation["verdict"] == "resample":
        lines += [
            "# Train on its batches. For natural probabilities add this to the logits afterwards:",
            "correction = fb.log_prior_correction(loader)",
        ]
    elif recommendation["verdict"] == "weight":
        by_sum = recommendation["weighted"] == WEIGHTED[1]
        lines += [
            "counts = torch.as_tensor(loader.class_counts, dtype=torch.float32)",
            "weight = counts.sum() / (len(counts) * counts)",
            "loss = cross_entropy(logits, class_id, weight=weight)  # divided by the sum of weights"
            if by_sum
            else "loss = (weight[class_id] * cross_entropy(logits, class_id, reduction='none')).mean()",
        ]
    elif len(results["classes"]) > 2:
        lines += [
            "# Train as usual. Then decide by logits from which a multiple of the log priors is taken; choose it on",
            "# validation rows, by balanced accuracy: times = 0 is the plain decision, 1 is logit adjustment.",
            "priors = torch.as_tensor(loader.class_counts / loader.class_counts.sum())",
            "decision = (logits - times * priors.log()).argmax(dim=1)",
        ]
    else:
        lines += [
            "# Train as usual. Then, on validation rows, choose the threshold (two classes):",
            "fall_out, recall, thresholds = sklearn.metrics.roc_curve(y_valid, p_valid)",
            "threshold = thresholds[(recall - fall_out).argmax()]  # best balanced accuracy",
        ]
    return "\n".join(lines)


def _set_up(results: dict[str, Any]) -> str:
    rows, rates = results["rows"], ", ".join(map(str, results["rates"]))
    return (
        f"{rows['used']:,} of {rows['total']:,} rows, {results['n_features']} features, "
        f"{len(results['classes'])} classes; train, valid, test 3 : 1 : 1, at random within each class. "
        f"Model: {results['model']}; SGD with momentum 0.9, {results['n_steps']:,} steps of {results['batch_rows']} "
        f"rows in every arm, {results['passes']:.1f} passes; for each arm the rate of {rates} that the first seed's "
        "validation rows prefer, and for the other seeds that one or the one below. "
        f"{results['n_seeds']} seeds, each with a split, first parameters and order of its own; 95 % t intervals of "
        "paired differences, widened because the splits overlap. Rows that are related in time or by person are not "
        "kept together: if yours are, all arms look better than they are. Nothing is corrected for the number of "
        "comparisons."
    )


def _key(arms: dict[str, Any]) -> str:
    return '<ul class="key">' + "".join(f"<li>{sample(name)}{escape(name)}</li>" for name in arms) + "</ul>"


def _arm_table(arms: dict[str, Any]) -> str:
    lines = [[name, *(f"{arm[key]['mean']:.4f}" for key in _COLUMNS)] for name, arm in arms.items()]
    return _table(["arm", *_COLUMNS.values()], lines)


def _difference_table(arms: dict[str, Any]) -> str:
    keys = [key for key in _COLUMNS if any("ours_minus_this" in arm[key] for arm in arms.values())]
    lines = [
        [name, *(_interval(arm[key]["ours_minus_this"]) for key in keys)]
        for name, arm in arms.items()
        if "ours_minus_this" in arm["pr_auc"]
    ]
    caption = f'<p class="dim">{OURS}, minus the arm: mean and 95 % interval over the seeds.</p>'
    return "<h2>Differences</h2>" + caption + _table(["arm", *(_COLUMNS[key] for key in keys)], lines)


def _interval(difference: dict[str, Any]) -> str:
    mean = f"{difference['mean']:+.4f}".replace("-", "−")
    if difference["interval"] is None:
        return mean
    half = difference["interval"][1] - difference["mean"]
    return f"{mean} ±\N{NO-BREAK SPACE}{half:.4f}"


def _class_table(results: dict[str, Any]) -> str:
    names, total = list(results["classes"]), sum(results["classes"].values())
    # The arm without a tuned decision has the recalls of the tuned one here.
    arms = {name: arm for name, arm in results["arms"].items() if "mean" in arm["recalls"] and name != AS_IS}
    lines = [
        [
            name,
            f"{n:,}",
            f"{n / total:.3%}",
            *(f"{arm['recalls']['mean'][names.index(name)]:.3f}" for arm in arms.values()),
        ]
        for name, n in results["classes"].items()
    ]
    caption = '<p class="dim">Recall of each class on test rows, at the tuned decision.</p>'
    return caption + _table(["class", "rows", "share", *arms], lines)


def _cost_table(results: dict[str, Any]) -> str:
    lines = []
    for name, arm in results["arms"].items():
        means = {key: arm[key]["mean"] for key in ("train_s", "feed_s", "distinct_rows", "memory_bytes", "step_spread")}
        rates = ",\N{NO-BREAK SPACE}".join(map(str, sorted(set(arm["rate"]["seeds"]))))
        usable = ",\N{NO-BREAK SPACE}".join(map(str, arm["usable_rates"]["rates"]))
        rows = results["n_steps"] * results["batch_rows"]
        numbers = [f"{results['n_steps']:,}", f"{rows:,}", f"{means['distinct_rows']:,.0f}", f"{means['feed_s']:.3f}"]
        numbers += [f"{means['train_s']:.2f}", f"{means['memory_bytes'] / 2**20:,.0f}", f"{means['step_spread']:.3f}"]
        lines.append([name, *numbers, rates, usable])
    head = [
        "arm",
        "steps",
        "rows",
        "distinct rows",
        "drawing, s",
        "training, s",
        "memory, MiB",
        "step spread",
        "rates chosen",
    ]
    return _table([*head, "rates within 5 % of the best, first seed"], lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_breakable(name)}</th>" for name in head)
    rows = []
    for line in lines:
        ours = ' class="ours"' if line[0] == OURS else ""
        rows.append(f"<tr{ours}>" + "".join(f"<td>{_breakable(text)}</td>" for text in line) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _breakable(text: str) -> str:
    """HTML of a text that may break also inside names, as in Random|Sampler and no_|injury."""
    return "<wbr>".join(map(escape, re.split(r"(?<=_)|(?<=[a-z])(?=[A-Z])", text)))


def _listed(items: Iterable[str], kind: str = "cautions") -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{item}</li>" for item in items) + "</ul>"
