"""Data rewritten into shards whose groups hold rows of one class each, shuffled; and its index beside them.

source --scan--> class counts --layout--> scatter --> temporary files --gather--> shards, index --rename--> destination

Everything is written to a hidden folder beside the destination, which appears with one rename at the end. A run that
was interrupted goes on where it stopped: every finished file is kept, and the manifest says what it belongs to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from .checks import byte_size, whole
from .dataset import Dataset
from .engines import Engine, check_engine, count_workers, map_tasks, session
from .errors import ArgumentError, explain
from .index import save_index
from .labels import LabelScan, label_names
from .regroup import Job, gather, make_layout, scatter
from .source import Source, open_source
from .storage import Format, check_columns, collect_dictionaries
from .workfolder import INDEX_NAME, check_outside, check_room, check_target, commit, work_folder

_GROUP_ROWS, _GROUP_BYTES = 2**17, 32 * 2**20  # of a group at most, unless told: reads of megabytes
_PART_BYTES = 2**30  # of a chunk or bucket at most: Arrow's strings end at 2 GiB
_PART_COPIES = 3  # a task needs so many times the bytes of its chunk: what is read, what is taken, and Parquet's share
_GROUP_COPIES = 6  # and of its group: a bucket is a third, and a group is concatenated, taken, encoded, compressed
_SAMPLES = 16
Progress = Callable[[str, int, int], None]


def reshard(
    source: Any,
    destination: str | os.PathLike[str],
    label: str | Sequence[str] | None = None,
    *,
    format: Format = "parquet",
    group_rows: int | None = None,
    shard_bytes: int | str = "256MiB",
    memory: int | str = "1GiB",
    seed: int = 0,
    engine: Engine = "local",
    workers: int | None = None,
    overwrite: bool = False,
    filesystem: Any = None,
    max_classes: int = 2**20,
    progress: Progress | None = None,
) -> Path:
    """Rewrite data so that every group holds rows of one class, and each class is shuffled as a whole.

    Classes come in ascending order, and each in the order of a keyed bijection of all its rows, so what is written
    depends on the data, the format, the sizes and the seed alone. It takes two passes and, while it runs, disk space
    beside the destination for the data uncompressed. Columns keep their types and nulls; dictionaries become the
    union of those of all groups; the schema's metadata is not kept.

    An interrupted run is taken up by calling this again with the same arguments; `memory`, `workers` and `engine` may
    differ. A table in memory is begun anew.

    Args:
        source: Where the rows are (see `Dataset.open`), or a `Dataset`.
        destination: A local directory that does not exist; with Ray, one that all nodes see.
        label: A column, or several; None: those of the `Dataset`.
        format: "parquet", or "ipc": uncompressed Arrow files, mapped into memory when read.
        group_rows: Most rows of a group; None: 2^17, or fewer if these are more than 32 MiB.
        shard_bytes: Bytes of a shard in memory, about: bytes, or "256MiB".
        memory: What all tasks of a machine may use together, besides Python's own: bytes, or "1GiB".
        seed: Of the shuffle.
        engine: "local": threads; "ray": Ray tasks.
        workers: Most tasks at a time; None: as many as there are CPUs. Fewer where the memory allows no more.
        overwrite: Replace a destination that an earlier call wrote, and unfinished runs with other arguments.
        filesystem: Where the source's paths lie.
        max_classes: Most classes that a scan of labels accepts.
        progress: Called as `progress(stage, done, total)`; stages are "scanning labels", "scattering", "writing".

    Returns:
        The destination. `Dataset.open(destination, label, index=destination / INDEX_NAME)` scans nothing.

    Raises:
        ArgumentError: An argument is wrong, the destination exists or lies in the source, memory is too small for
            a group, or the disk for the data.
        StateError: An unfinished run with other arguments or of other data is there.
        SourceError, LabelError: As of `Dataset.open`; or a column has a type that cannot be rewritten.
        TaskError: A Ray worker died.
    """
    if format not in get_args(Format):
        raise ArgumentError(explain("format", got=repr(format), allowed='"parquet" or "ipc"'))
    check_engine(engine)
    workers = None if workers is None else whole("workers", workers, 1, 2**16)
    seed = whole("seed", seed, 0, 2**64)
    limit, shard_limit = byte_size("memory", memory), byte_size("shard_bytes", shard_bytes)
    group_rows = None if group_rows is None else whole("group_rows", group_rows, 1, 2**31)
    target = Path(os.path.abspath(os.path.expanduser(destination)))
    check_target(source, target, overwrite)
    tell = progress or (lambda stage, done, total: None)
    with session(engine, workers):
        data = _open(source, label, filesystem, max_classes, engine, tell)
        check_outside(data.source, target)
        check_columns(data.schema, format)
        row_bytes = _row_bytes(data.source)
        rows = group_rows or max(1, min(_GROUP_ROWS, int(_GROUP_BYTES / row_bytes)))
        workers = workers or count_workers(engine)
        task_bytes = _task_bytes(data, row_bytes, rows, limit, workers)
        ask = {"format": format, "group_rows": rows, "shard_bytes": shard_limit, "seed": seed}
        with work_folder(target, data, ask, task_bytes, overwrite) as (folder, task_bytes):
            workers = max(1, min(workers, limit // task_bytes))
            part_rows = int(min(task_bytes / _PART_COPIES, _PART_BYTES) / row_bytes)
            layout = make_layout(data.class_counts, data.groups.n_rows, rows, int(shard_limit / row_bytes), part_rows)
            data.first_slots(0)  # computed once, here, for all tasks
            dictionaries = collect_dictionaries(data.source, engine, workers)
            job = Job(data, layout, dictionaries, format, seed, folder)
            _run_passes(job, row_bytes, engine, workers, tell)
            _save_index(job)
            commit(folder, target)
    return target


def _open(source: Any, label: Any, filesystem: Any, max_classes: int, engine: Engine, tell: Progress) -> Dataset:
    if isinstance(source, Dataset):
        if label is not None and label_names(label) != source.label:
            got, allowed = repr(label), f"{source.label}, as in the Dataset, or None"
            raise ArgumentError(explain("label", got=got, allowed=allowed))
        return source
    return Dataset.open(
        source,
        label or (),
        filesystem=filesystem,
        max_classes=max_classes,
        progress=lambda *done: tell("scanning labels", *done),
        engine=engine,
    )


def _row_bytes(source: Source) -> float:
    """Bytes of a row in memory, from groups spread over the data."""
    full = np.flatnonzero(source.groups.n_rows)
    sample = full[np.unique(np.linspace(0, len(full) - 1, _SAMPLES).astype(np.int64))].tolist()
    n_bytes = sum(source.read_group(group, source.schema.names).nbytes for group in sample)
    return max(1.0, n_bytes / int(source.groups.n_rows[sample].sum())) + np.dtype(np.uint32).itemsize


def _task_bytes(data: Dataset, row_bytes: float, group_rows: int, limit: int, workers: int) -> int:
    """What one task may use: its part of the memory, if that is enough for the groups read and written.

    Raises:
        ArgumentError: The memory is not enough for one task.
    """
    source_bytes = int(data.groups.n_rows.max()) * row_bytes
    group_bytes = min(group_rows, int(data.class_counts.max())) * row_bytes
    least = int(max(_PART_COPIES * source_bytes, _GROUP_COPIES * group_bytes, 1))
    if least > limit:
        got, allowed = f"{limit:,} bytes", f"at least {least:,}"
        fix = f"A group of the source has up to {int(source_bytes):,} bytes, one to write {int(group_bytes):,}"
        raise ArgumentError(explain("memory", got=got, allowed=allowed, fix=fix))
    return limit // min(workers, limit // least)


def _run_passes(job: Job, row_bytes: float, engine: Engine, workers: int, tell: Progress) -> None:
    """Write what is missing."""
    shards = [s for s in range(job.layout.n_shards) if not job.shard_path(s).exists()]
    chunks = [c for c in range(job.layout.n_chunks) if shards and not job.chunk_path(c).exists()]
    if shards:
        check_room(job, row_bytes)
    steps: list[tuple[str, Any, list[int], int]] = [
        ("scattering", scatter, chunks, job.layout.n_chunks),
        ("writing", gather, shards, job.layout.n_shards),
    ]
    for stage, work, missing, total in steps:
        tell(stage, total - len(missing), total)
        for done, _ in enumerate(map_tasks(work, job, missing, engine, workers), 1):
            pa.default_memory_pool().release_unused()
            tell(stage, total - len(missing) + done, total)


def _save_index(job: Job) -> None:
    """Save the scan of the shards, which needs no reading: each of their groups has one class."""
    layout, counts = job.layout, job.data.class_counts
    scan = LabelScan(
        values=job.data._scan.values,
        group_ptr=np.arange(len(layout.group_class) + 1),
        group_classes=layout.group_class,
        group_counts=np.diff(layout.group_first),
        class_counts=counts,
    )
    save_index(job.folder / "data" / INDEX_NAME, open_source(job.folder / "data"), scan)
