"""What the commands print: facts ready for JSON, and tables of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import typer
from rich import box
from rich.bar import Bar
from rich.console import Console
from rich.filesize import decimal
from rich.table import Column, Table

from fastbalance.dataset import Dataset
from fastbalance.errors import ColumnError
from fastbalance.plan import BalancePlan
from fastbalance.records import make_layout

_SHOWN_LINES = 10  # at each end of a long table


def data_facts(data: Dataset) -> dict[str, Any]:
    """What `inspect` says, ready for JSON."""
    shards, columns = data.source.shards, data.schema.names
    group_rows = np.percentile(data.groups.n_rows, [0, 50, 100], method="lower").tolist()
    counts = data.class_counts
    lines = zip(data.classes, counts.tolist(), (counts / data.n_rows).tolist(), strict=True)
    return {
        "n_rows": data.n_rows,
        "n_shards": len(shards),
        "n_groups": len(data.groups),
        "group_rows": dict(zip(("min", "median", "max"), group_rows, strict=True)),
        "bytes": sum(int(shard.group_bytes(columns).sum()) for shard in shards),
        "schema": [{"column": f.name, "type": str(f.type), "tensor": _tensor(f)} for f in data.schema],
        "label": data.label,
        "n_classes": data.n_classes,
        "imbalance": float(counts.max() / counts.min()),
        "classes": [dict(zip(("label", "rows", "share"), line, strict=True)) for line in lines],
    }


def _tensor(column: pa.Field) -> str | None:
    """Type and shape of one row of a column as a tensor; None where it cannot be one."""
    try:
        layout = make_layout(pa.schema([column]), [column.name])
    except ColumnError:
        return None
    if layout.ragged:
        return f"{layout.ragged[0].dtype} [any]".removeprefix("torch.")
    field = layout.fields[0]
    dtype = str(field.dtype).removeprefix("torch.")
    return f"{dtype} {list(field.shape)}" if field.shape else dtype


def plan_facts(plan: BalancePlan) -> dict[str, Any]:
    """What `plan` says, ready for JSON."""
    columns = {
        "label": plan.classes,
        "rows": plan.class_counts.tolist(),
        "share": (plan.class_counts / plan.n_rows).tolist(),
        "quota": plan.quotas.tolist(),
        "share_drawn": (plan.quotas / plan.epoch_rows).tolist(),
        "repeats": plan.repeats.tolist(),
        "coverage": plan.coverage.tolist(),
        "epochs_to_cover": [int(n) if np.isfinite(n) else None for n in plan.epochs_to_cover],
    }
    scalars = ("n_rows", "n_classes", "epoch_rows", "n_batches", "global_batch_rows", "tail_rows")
    return {
        "balance": plan.balance,
        **{name: getattr(plan, name) for name in (*scalars, "fingerprint")},
        "classes": [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)],
    }


def print_json(facts: dict[str, Any]) -> None:
    """Print one JSON object; values that JSON has no type for become strings."""
    typer.echo(json.dumps(facts, default=str))


def _console() -> Console:
    """Stdout, as wide as the terminal; lines of a file or pipe are not cut. Brackets are just brackets."""
    return Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 10**5)


def print_data(facts: dict[str, Any]) -> None:
    """Print what `inspect` says as tables."""
    summary, group = Table.grid(padding=(0, 3)), facts["group_rows"]
    summary.add_row("rows", f"{facts['n_rows']:,}")
    summary.add_row("shards", f"{facts['n_shards']:,}")
    rows = f"{group['min']:,} to {group['max']:,} rows, median {group['median']:,}"
    summary.add_row("groups", f"{facts['n_groups']:,} of {rows}")
    summary.add_row("bytes", f"{decimal(facts['bytes'])} in all columns")
    summary.add_row("classes", f"{facts['n_classes']:,} of {', '.join(facts['label'])}")
    summary.add_row("imbalance", f"{facts['imbalance']:,.1f} : 1, largest to smallest class")

    schema = _table(["column", "Arrow type", "tensor"])
    for line in _ends(facts["schema"], schema):
        schema.add_row(_shown(line["column"]), line["type"], line["tensor"] or "no")

    classes = _table(["class"], ["rows", "share"])
    classes.add_column(no_wrap=True)
    ordered = sorted(facts["classes"], key=lambda line: -line["rows"])
    most = ordered[0]["rows"]
    for line in _ends(ordered, classes):
        bar = Bar(most, 0, max(line["rows"], most / 100), width=24, color="cyan")  # never less than a hair
        classes.add_row(_shown(line["label"]), f"{line['rows']:,}", f"{line['share']:.4%}", bar)
    _console().print(summary, "", schema, "", classes, sep="\n")


def print_plan(plan: BalancePlan) -> None:
    """Print the audit of a plan: its summary, and a table of its classes."""
    numbers = ["rows", "share", "quota", "share\ndrawn", "repeats", "coverage", "epochs\nto cover"]
    table = _table(["class"], numbers)
    for label, *cells in plan.table():
        table.add_row(_shown(label), *cells)
    _console().print(str(plan).partition("\n")[0], "", table, sep="\n")


def _table(texts: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    """An empty table: columns of text, which fold where the terminal is narrow, then columns of numbers."""
    left = [Column(header, overflow="fold") for header in texts]
    right = [Column(header, justify="right", no_wrap=True) for header in numbers]
    return Table(*left, *right, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)


def _ends(lines: Sequence[Any], table: Table) -> Iterator[Any]:
    """The lines, or of many the first and the last; between those the table says how many are left out."""
    left_out = len(lines) - 2 * _SHOWN_LINES
    yield from lines[:_SHOWN_LINES] if left_out > 0 else lines
    if left_out > 0:
        table.add_row(f"... {left_out:,} more")
        yield from lines[-_SHOWN_LINES:]


def _shown(label: Any) -> str:
    """A label as text; quoted where it is empty or would disturb the terminal."""
    text = str(label)
    return text if text and text.isprintable() else repr(text)
