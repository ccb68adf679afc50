"""The command `fastbalance`: look at a data set, save its index, audit a plan, run the demo.

Results go to stdout: tables, or with `--json` one JSON object that says the same. What is wrong goes to stderr as one
plain message, with exit code 2. Tables fit a terminal; in a file or pipe their lines are left whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import typer
from rich import box
from rich.bar import Bar
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from fastbalance import __version__
from fastbalance.arena import make_layout
from fastbalance.balance import Balance, Target, power, ratio, resolve, target
from fastbalance.dataset import Dataset
from fastbalance.errors import ArgumentError, ColumnError, FastbalanceError, explain
from fastbalance.plan import BalancePlan, Tail, make_plan
from fastbalance.split import check_ranks

_USAGE_ERROR: Any = typer.BadParameter.__base__  # typer has no public name for the base of all usage errors
_BALANCES = (
    "uniform, natural, sqrt, power:ALPHA, ratio:MAX with MAX >= 1, or target:JSON with a share >= 0 for "
    'every label, as target:\'{"yes": 1, "no": 3}\''
)
_BAR_WIDTH = 24
_SHOWN_ROWS = 20


class _Commands(TyperGroup):
    """The commands; an error becomes one plain message on stderr, and exit code 2."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        args = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            sys.exit(super().main(args, *rest, **{**options, "standalone_mode": False}))
        except FastbalanceError as error:
            _fail(str(error))
        except _USAGE_ERROR as error:
            command = error.ctx.command_path if error.ctx else "fastbalance"
            _fail(f"{error.format_message().rstrip('.')}. Try '{command} --help'.")
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(130)


def _fail(message: str) -> None:
    prefix = typer.style("fastbalance: error:", fg=typer.colors.RED, bold=True)
    typer.echo(f"{prefix} {message}", err=True)
    sys.exit(2)


app = typer.Typer(cls=_Commands, add_completion=False, pretty_exceptions_enable=False)

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH...", help="Files, quoted globs, directories or URIs of one data set.", show_default=False
    ),
]
Label = Annotated[
    list[str],
    typer.Option(metavar="COLUMN", help="Label column; given twice or more: a class is a tuple.", show_default=False),
]
Index = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Index from 'fastbalance index'; without one the labels are scanned."),
]
MaxClasses = Annotated[int, typer.Option(min=2, help="Refuse labels with more classes than this.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Class-balanced batches from Parquet and Arrow: look at data, index it, and audit plans before training."""


def main() -> None:
    """Run the command line."""
    app(prog_name="fastbalance")
