"""The command `fastbalance`: look at a data set, save its index, audit a plan, run the demo.

Results go to stdout: tables, or with `--json` one JSON object that says the same. What is wrong goes to stderr as one
plain message, with exit code 2. Tables fit a terminal; in a file or pipe their lines are left whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer
from rich import box
from rich.bar import Bar
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Column, Table
from typer import Argument, Option
from typer.core import TyperGroup

from fastbalance import __version__
from fastbalance.balance import Balance, power, ratio, resolve, target
from fastbalance.dataset import Dataset
from fastbalance.errors import ArgumentError, ColumnError, FastbalanceError, explain
from fastbalance.plan import BalancePlan, Tail, make_plan
from fastbalance.records import make_layout
from fastbalance.split import check_ranks

_USAGE_ERROR: Any = typer.BadParameter.__base__  # typer has no public name for the base of all usage errors
_BALANCES = 'uniform, natural, sqrt, power:ALPHA, ratio:MAX >= 1, target:\'{"yes": 1, "no": 3}\' for all labels'
_EPOCH_ROWS = "Rows of an epoch; over: as few as draw every row; under: as many as draw none twice."
_SHOWN_LINES = 10  # at each end of a long table


class _Commands(TyperGroup):
    """The commands; an error becomes one plain message on stderr, and exit code 2."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        args = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            sys.exit(super().main(args, *rest, **{**options, "standalone_mode": False}))
        except FastbalanceError as error:
            message = str(error)
        except _USAGE_ERROR as error:
            command = error.ctx.command_path if error.ctx else "fastbalance"
            message = f"{error.format_message().rstrip('.')}. Try '{command} --help'."
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(130)
        typer.secho("fastbalance: error:", fg=typer.colors.RED, bold=True, nl=False, err=True)
        typer.echo(f" {message}", err=True)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastbalance {__version__}")
        raise typer.Exit()


app = typer.Typer(cls=_Commands, add_completion=False, pretty_exceptions_enable=False)

Version = Annotated[bool, Option("--version", callback=_print_version, is_eager=True, help="The version.")]
Paths = Annotated[list[str], Argument(metavar="PATH", help="Files, quoted globs, directories, URIs.")]
Label = Annotated[list[str], Option(metavar="COLUMN", help="Label column; several: a class is a tuple.")]
Index = Annotated[Path | None, Option(metavar="FILE", help="What 'index' saved; else labels are scanned.")]
MaxClasses = Annotated[int, Option(min=2, metavar="N", help="Refuse labels with more classes.")]
Json = Annotated[bool, Option("--json", help="Print one JSON object and nothing else.")]


@app.callback()
def _options(version: Version = False) -> None:
    """Class-balanced batches from Parquet and Arrow: look at data, index it, audit a plan before training."""


@app.command()
def inspect(
    paths: Paths, label: Label, index: Index = None, max_classes: MaxClasses = 2**20, as_json: Json = False
) -> None:
    """Show the columns, the groups, and how the rows are spread over the classes."""
    show = _print_json if as_json else _print_data
    show(_data_facts(_open(paths, label, index, max_classes)))


@app.command("index")
def save_index(
    paths: Paths,
    label: Label,
    output: Annotated[Path, Option(metavar="FILE", help="The index to write.")],
    max_classes: MaxClasses = 2**20,
    as_json: Json = False,
) -> None:
    """Scan the labels once and save the counts, so that later runs start at once."""
    data = _open(paths, label, None, max_classes)
    data.save_index(output)
    facts = {"output": str(output), "bytes": output.stat().st_size, "label": data.label}
    counts = {"n_rows": data.n_rows, "n_groups": len(data.groups), "n_classes": data.n_classes}
    if as_json:
        _print_json({**facts, **counts})
    else:
        typer.echo(f"wrote {output}: " + ", ".join(f"{name[2:]} {n:,}" for name, n in counts.items()))


@app.command("plan")
def audit(
    paths: Paths,
    label: Label,
    batch_size: Annotated[int, Option(min=1, metavar="N", help="Rows for each rank and batch.")],
    balance: Annotated[str, Option(metavar="BALANCE", help=_BALANCES)] = "uniform",
    epoch_rows: Annotated[str | None, Option(metavar="N|over|under", help=_EPOCH_ROWS)] = None,
    world_size: Annotated[int, Option(min=1, metavar="W", help="Number of ranks.")] = 1,
    tail: Annotated[Tail, Option(help="For natural: what becomes of rows that fill no batch.")] = "keep",
    index: Index = None,
    max_classes: MaxClasses = 2**20,
    as_json: Json = False,
) -> None:
    """Show what an epoch would deliver: the draws of each class, repeats and coverage of its rows."""
    _parse_balance(balance)  # a mistake shows before the labels are scanned
    rows: Any = int(epoch_rows) if epoch_rows and epoch_rows.isdecimal() else epoch_rows
    data = _open(paths, label, index, max_classes)
    wanted, batch_rows = _parse_balance(balance, data.classes), batch_size * world_size
    plan = make_plan(data.class_counts, wanted, rows, batch_rows, classes=data.classes, tail=tail)
    check_ranks(plan, 0, world_size)
    if as_json:
        _print_json(_plan_facts(plan))
    else:
        _print_plan(plan)


@app.command()
def demo(
    output: Annotated[Path, Option(metavar="DIR", help="Where its files go.")] = Path("fastbalance-demo"),
    seeds: Annotated[int, Option(min=2, metavar="N", help="Networks of each method.")] = 5,
    quick: Annotated[bool, Option("--quick", help="Less data and fewer steps.")] = False,
) -> None:
    """Train on imbalanced data with and without balanced batches, and compare."""
    try:
        from fastbalance.demo import run

        run(output, seeds, quick)
    except ImportError as error:
        raise FastbalanceError(f"demo: {error}. To get it: pip install 'fastbalance[demo]'") from error


def _open(paths: list[str], label: list[str], index: Path | None, max_classes: int) -> Dataset:
    """Open the data; while labels are scanned, a terminal shows how far the scan is."""
    columns = "scanning labels", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=None, visible=False)
        return Dataset.open(
            paths[0] if len(paths) == 1 else paths,
            label,
            index,
            max_classes=max_classes,
            progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )


def _parse_balance(text: str, classes: Sequence[Any] = ()) -> Balance:
    """The balance that an option names; the names in a target stand for the classes that read the same."""
    kind, _, value = text.partition(":")
    labels: dict[str, Any] = {str(label).lower(): label for label in classes if isinstance(label, bool)}
    labels |= {str(label): label for label in classes}
    try:
        if kind == "target":
            return target({labels.get(name, name): float(share) for name, share in json.loads(value).items()})
        if kind in ("power", "ratio"):
            return power(float(value)) if kind == "power" else ratio(float(value))
        return resolve(text)
    except (ValueError, TypeError, AttributeError) as error:
        raise ArgumentError(explain("--balance", got=repr(text), allowed=_BALANCES)) from error


def _data_facts(data: Dataset) -> dict[str, Any]:
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


def _plan_facts(plan: BalancePlan) -> dict[str, Any]:
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


def _print_json(facts: dict[str, Any]) -> None:
    """Print one JSON object; values that JSON has no type for become strings."""
    typer.echo(json.dumps(facts, default=str))


def _console() -> Console:
    """Stdout, as wide as the terminal; lines of a file or pipe are not cut. Brackets are just brackets."""
    return Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 10**5)


def _print_data(facts: dict[str, Any]) -> None:
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


def _print_plan(plan: BalancePlan) -> None:
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


def main() -> None:
    """Run the command line. Characters that stdout has no code for are printed as question marks."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="fastbalance")
