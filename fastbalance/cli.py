"""The command `fastbalance`: look at a data set, save its index, audit a plan, rewrite it by class, run the demo.

Results go to stdout: tables, or with `--json` one JSON object that says the same. What is wrong goes to stderr as one
plain message, with exit code 2. Tables fit a terminal; in a file or pipe their lines are left whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer import Argument, Option
from typer.core import TyperGroup

from fastbalance import __version__
from fastbalance.balance import Balance, power, ratio, resolve, target
from fastbalance.comparison import compare as run_comparison
from fastbalance.dataset import Dataset
from fastbalance.engines import Engine
from fastbalance.errors import ArgumentError, FastbalanceError, explain
from fastbalance.plan import Tail, make_plan
from fastbalance.resharding import INDEX_NAME
from fastbalance.resharding import reshard as write_shards
from fastbalance.split import check_ranks
from fastbalance.storage import Format
from fastbalance.tables import data_facts, plan_facts, print_data, print_json, print_plan

_USAGE_ERROR: Any = typer.BadParameter.__base__  # typer has no public name for the base of all usage errors
_BALANCES = 'uniform, natural, sqrt, power:ALPHA, ratio:MAX >= 1, target:\'{"yes": 1, "no": 3}\' for all labels'
_EPOCH_ROWS = "Rows of an epoch; over: as few as draw every row; under: as many as draw none twice."


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
Where = Annotated[Engine, Option(help="Where tasks run: threads, or Ray (extra 'ray').")]


@app.callback()
def _options(version: Version = False) -> None:
    """Class-balanced batches from Parquet and Arrow: look at data, index it, audit a plan before training."""


@app.command()
def inspect(
    paths: Paths, label: Label, index: Index = None, max_classes: MaxClasses = 2**20, as_json: Json = False
) -> None:
    """Show the columns, the groups, and how the rows are spread over the classes."""
    show = print_json if as_json else print_data
    show(data_facts(_open(paths, label, index, max_classes)))


@app.command("index")
def save_index(
    paths: Paths,
    label: Label,
    output: Annotated[Path, Option(metavar="FILE", help="The index to write.")],
    engine: Where = "local",
    max_classes: MaxClasses = 2**20,
    as_json: Json = False,
) -> None:
    """Scan the labels once and save the counts, so that later runs start at once."""
    data = _open(paths, label, None, max_classes, engine)
    data.save_index(output)
    facts = {"output": str(output), "bytes": output.stat().st_size, "label": data.label}
    _print_written(output, facts, {}, data, as_json)


@app.command()
def reshard(
    paths: Paths,
    destination: Annotated[Path, Argument(metavar="DIR", help="What to write: a directory that is not there yet.")],
    label: Label,
    format: Annotated[Format, Option(help="Of the shards; ipc: Arrow files, not compressed.")] = "parquet",
    group_rows: Annotated[
        int | None, Option(min=1, metavar="N", help="Most rows of a group.", show_default="2^17 rows or 32 MiB")
    ] = None,
    shard_bytes: Annotated[str, Option(metavar="SIZE", help="Bytes of a shard in memory.")] = "256MiB",
    memory: Annotated[str, Option(metavar="SIZE", help="What all tasks may use together.")] = "1GiB",
    seed: Annotated[int, Option(min=0, metavar="N", help="Of the shuffle.")] = 0,
    engine: Where = "local",
    workers: Annotated[
        int | None, Option(min=1, metavar="N", help="Most tasks at a time.", show_default="CPUs")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace what an earlier run wrote or began.")] = False,
    max_classes: MaxClasses = 2**20,
    as_json: Json = False,
) -> None:
    """Rewrite data so that every group holds rows of one class, each class shuffled, with an index beside them.

    A run that was interrupted goes on when the command is given again.
    """
    sizes: Any = {"group_rows": group_rows, "shard_bytes": shard_bytes, "memory": memory, "workers": workers}
    options: Any = {"seed": seed, "engine": engine, "overwrite": overwrite, "max_classes": max_classes}
    with _progress() as progress:
        write_shards(_source(paths), destination, label, format=format, progress=progress, **sizes, **options)
    data = Dataset.open(destination, label, destination / INDEX_NAME)
    shards = data.source.shards
    n_bytes = sum(Path(shard.name).stat().st_size for shard in shards)
    facts = {"output": str(destination), "bytes": n_bytes, "label": data.label, "index": str(destination / INDEX_NAME)}
    _print_written(destination, facts, {"n_shards": len(shards)}, data, as_json)


def _print_written(path: Path, facts: dict[str, Any], counts: dict[str, int], data: Dataset, as_json: bool) -> None:
    counts = {"n_rows": data.n_rows, **counts, "n_groups": len(data.groups), "n_classes": data.n_classes}
    if as_json:
        print_json({**facts, **counts})
    else:
        typer.echo(f"wrote {path}: " + ", ".join(f"{name[2:]} {n:,}" for name, n in counts.items()))


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
        print_json(plan_facts(plan))
    else:
        print_plan(plan)


@app.command()
def compare(
    paths: Paths,
    label: Label,
    features: Annotated[str | None, Option(metavar="A,B", help="Columns to learn from.", show_default="all")] = None,
    model: Annotated[
        str | None, Option(metavar="MODULE:FACTORY", help="f(n_features, n_classes).", show_default="perceptron")
    ] = None,
    budget: Annotated[str, Option(metavar="TIME", help="Wall time, as 90s, 5m or 1h.")] = "5m",
    output: Annotated[Path, Option(metavar="FILE", help="The report to write.")] = Path("fastbalance-compare.html"),
    seed: Annotated[int, Option(min=0, metavar="N", help="The first seed.")] = 0,
    seeds: Annotated[int, Option(min=3, metavar="N", help="Splits and networks of each arm.")] = 5,
    jobs: Annotated[int | None, Option(min=1, metavar="N", help="Processes.", show_default="cores, up to 8")] = None,
    as_json: Json = False,
) -> None:
    """Resample, weight the loss, or neither? Train every way on your table, and get a report that says which."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ArgumentError(explain("--output", got=repr(str(output)), allowed="a file in a folder that is there"))
    names = None if features is None else [name.strip() for name in features.split(",")]
    options: Any = {"features": names, "model": model, "budget": budget, "seed": seed, "n_seeds": seeds, "n_jobs": jobs}
    with _progress() as progress:
        results = run_comparison(
            _source(paths), label[0] if len(label) == 1 else label, output=output, progress=progress, **options
        )
    if as_json:
        print_json(results)
    else:
        advice = results["recommendation"]
        typer.echo("\n".join([advice["headline"], *advice["evidence"], *results["missing"], *results["warnings"]]))
        typer.echo(f"wrote {output}")
    if results["interrupted"]:
        typer.echo(f"interrupted: what was finished is in {output}", err=True)
        raise typer.Exit(130)


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


def _source(paths: list[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else paths


def _open(
    paths: list[str], label: list[str], index: Path | None, max_classes: int, engine: Engine = "local"
) -> Dataset:
    """Open the data; a bar on stderr shows the scan of labels, if that is a terminal."""
    with _progress() as tell:

        def progress(done: int, total: int) -> None:
            tell("scanning labels", done, total)

        return Dataset.open(_source(paths), label, index, max_classes=max_classes, progress=progress, engine=engine)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows how far a stage is, on stderr if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield tell


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


def main() -> None:
    """Run the command line. Characters that stdout has no code for are printed as question marks."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="fastbalance")
