"""The user's table -> numbers to learn from: a sample of the rows, the columns that are used, splits, encoding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from .compare_columns import as_numbers, nearly_tells, problem
from .dataset import Dataset
from .errors import ColumnError, LabelError, explain
from .labels import label_names

MAX_CATEGORIES = 32  # of one column; rarer ones share a place
LEAST_CLASS_ROWS = 10  # 6 to train, 2 to validate, 2 to test
TRAIN, VALID, TEST = 0, 1, 2

_MEMORY_SHARE = 0.25  # of what is free, for the encoded sample
_CLIP = 10.0  # standard deviations: a tail that is heavier than that makes networks diverge, whatever the arm


@dataclass(frozen=True)
class Sample:
    """A sample of the rows, as numbers.

    Attributes:
        numbers: float64 [n_rows, n_numbers], NaN where missing.
        codes: float64 [n_rows, n_categories], numbers of the values of a column, -1 where missing.
        names: The columns that are used, and what each is taken for.
        y: int64 [n_rows], class ids.
        classes: Names of the classes.
        n_rows_total: Rows of the data, of which these are a sample.
        warnings: What was left out, and why.
    """

    numbers: np.ndarray
    codes: np.ndarray
    names: dict[str, str]
    y: np.ndarray
    classes: tuple[str, ...]
    n_rows_total: int
    warnings: tuple[str, ...]

    @property
    def priors(self) -> np.ndarray:
        """Shares of the classes, float64 [n_classes]."""
        return np.bincount(self.y, minlength=len(self.classes)) / len(self.y)


@dataclass(frozen=True)
class Splits:
    """Train, valid and test, encoded by what the training rows showed: float32 [n, n_features], int64 [n]."""

    x: tuple[np.ndarray, np.ndarray, np.ndarray]
    y: tuple[np.ndarray, np.ndarray, np.ndarray]


def read_sample(
    source: Any,
    label: str | Sequence[str],
    features: Sequence[str] | None = None,
    max_rows: int = 200_000,
    seed: int = 0,
) -> Sample:
    """Read a uniform sample of the rows, as many as fit, and find out what their columns are.

    Args:
        source, label: As for `Dataset.open`.
        features: Columns to learn from; they are kept even if they look like an id or a leak. None: all others than
            the label.
        max_rows: Most rows to read; fewer where memory is short.
        seed: Fixes which.

    Raises:
        SourceError, LabelError: As for `Dataset.open`; or too few rows of every class but one.
        ColumnError: A feature is no column, is the label, or no column is left to learn from.
    """
    data = source if isinstance(source, Dataset) else Dataset.open(source, label)
    wanted = _wanted(data.schema.names, label_names(label), features)
    n_rows = min(data.n_rows, max_rows, _affordable_rows(len(wanted)))
    table, y = _read_rows(data, wanted, n_rows, seed)
    table, y, classes, cautions = _without_tiny_classes(table, y, [_shown(value) for value in data.classes])
    if n_rows < data.n_rows:
        cautions.insert(0, f"{n_rows:,} of {data.n_rows:,} rows were used, drawn at random")
    numbers: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    names = {}
    for name in wanted:
        kind, columns = as_numbers(table[name])
        reason = (
            f"a column of type {table[name].type} cannot become numbers" if not columns else problem(columns, kind, y)
        )
        if reason:
            kept = features is not None and bool(columns)
            cautions.append(f"column {name!r} is {'kept, as you named it, but: ' if kept else 'left out: '}{reason}")
            if not kept:
                continue
        elif told := nearly_tells(columns[0], kind, y, classes):
            cautions.append(f"column {name!r} is kept, but look at it: {told}")
        names[name] = kind
        (codes if kind == "category" else numbers).extend(columns)
    if not names:
        raise ColumnError(
            explain("features", got="no column to learn from: " + "; ".join(cautions), allowed="at least one")
        )
    stacked = [np.stack(part, axis=1) if part else np.empty((len(y), 0)) for part in (numbers, codes)]
    return Sample(stacked[0], stacked[1], names, y, classes, data.n_rows, tuple(cautions))


def split(sample: Sample, seed: int) -> Splits:
    """Deal the rows of each class 3 : 1 : 1, at random, and encode them by what the training rows show."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    part = deal(sample.y, seed)
    n_numbers, n_codes = sample.numbers.shape[1], sample.codes.shape[1]
    values = np.concatenate([sample.numbers, sample.codes], axis=1)
    # The median of a column without any value in the training rows is 0: its place is kept, and says nothing.
    numbers = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
    )
    categories = OneHotEncoder(
        max_categories=MAX_CATEGORIES, handle_unknown="infrequent_if_exist", sparse_output=False, dtype=np.float32
    )
    encoder = ColumnTransformer([
        ("numbers", numbers, list(range(n_numbers))),
        ("categories", categories, list(range(n_numbers, n_numbers + n_codes))),
    ])  # fmt: skip
    encoder.fit(values[part == TRAIN])

    def encode(which: int) -> np.ndarray:
        with warnings.catch_warnings():
            # A value that the training rows do not have is all zeros: that is wanted.
            warnings.filterwarnings("ignore", message="Found unknown categories")
            x = encoder.transform(values[part == which])
        return np.ascontiguousarray(np.clip(x, -_CLIP, _CLIP), np.float32)

    return Splits(
        (encode(TRAIN), encode(VALID), encode(TEST)),
        (sample.y[part == TRAIN], sample.y[part == VALID], sample.y[part == TEST]),
    )


def deal(y: np.ndarray, seed: int) -> np.ndarray:
    """TRAIN, VALID or TEST for each row: of every class 3 : 1 : 1."""
    generator = np.random.default_rng([seed, 311])
    part = np.empty(len(y), np.int64)
    for c in np.unique(y):
        rows = np.flatnonzero(y == c)
        hands = np.array([TRAIN, VALID, TEST, TRAIN, TRAIN])[np.arange(len(rows)) % 5]
        part[generator.permutation(rows)] = hands
    return part


def _wanted(names: Sequence[str], label: Sequence[str], features: Sequence[str] | None) -> list[str]:
    if features is None:
        return [name for name in names if name not in label]
    for name in features:
        if name not in names or name in label:
            got = f"{name!r}, {'the label' if name in label else 'which is no column'}"
            others = ", ".join(other for other in names if other not in label)
            raise ColumnError(explain("features", got=got, allowed=others))
    return list(dict.fromkeys(features))


def _affordable_rows(n_columns: int) -> int:
    """Rows whose encoding fits: most columns are numbers, but any may become 32 categories."""
    row_bytes = (8 + 4 * MAX_CATEGORIES) * max(n_columns, 1)
    return max(1000, int(psutil.virtual_memory().available * _MEMORY_SHARE) // row_bytes)


def _read_rows(data: Dataset, columns: Sequence[str], n_rows: int, seed: int) -> tuple[pa.Table, np.ndarray]:
    """Rows drawn without replacement, in the order of the data, and their class ids."""
    generator = np.random.default_rng([seed, 977])
    rows = np.sort(generator.choice(data.n_rows, n_rows, replace=False, shuffle=False))
    first = data.groups.first_row
    ends = np.searchsorted(rows, first + data.groups.n_rows)
    starts = np.searchsorted(rows, first)

    def visit(group: int, table: pa.Table) -> tuple[pa.Table, np.ndarray]:
        taken = table.take(rows[starts[group] : ends[group]] - first[group])
        return taken.select(columns), data.encoder.encode(taken)

    read = list(dict.fromkeys([*columns, *data.label]))
    tables, ids = zip(*data.source.scan(read, visit), strict=True)
    return pa.concat_tables(tables), np.concatenate(ids).astype(np.int64)


def _without_tiny_classes(
    table: pa.Table, y: np.ndarray, names: Sequence[str]
) -> tuple[pa.Table, np.ndarray, tuple[str, ...], list[str]]:
    """Leave out classes that cannot be trained on, validated and tested.

    Raises:
        LabelError: Fewer than two classes are left.
    """
    counts = np.bincount(y, minlength=len(names))
    kept = np.flatnonzero(counts >= LEAST_CLASS_ROWS)
    if len(kept) < 2:
        shown = ", ".join(f"{name}: {n:,}" for name, n in zip(names[:8], counts[:8], strict=True))
        allowed = (
            f"two classes or more with at least {LEAST_CLASS_ROWS} rows each: 6 to train, 2 to validate, 2 to test"
        )
        raise LabelError(explain("label", got=f"rows in the sample: {shown}", allowed=allowed, fix="Use more rows"))
    if len(kept) == len(names):
        return table, y, tuple(names), []
    tiny = [f"{names[c]} ({counts[c]})" for c in np.flatnonzero(counts < LEAST_CLASS_ROWS).tolist()]
    shown = ", ".join(tiny[:8]) + (f" and {len(tiny) - 8} more" if len(tiny) > 8 else "")
    caution = f"classes of fewer than {LEAST_CLASS_ROWS} rows are left out: {shown}"
    rows = np.flatnonzero(np.isin(y, kept))
    return table.take(rows), np.searchsorted(kept, y[rows]), tuple(names[c] for c in kept.tolist()), [caution]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
