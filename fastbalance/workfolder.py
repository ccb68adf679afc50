"""The folder where `reshard` works until all is done: whose it is, what it belongs to, and how it becomes the result.

.NAME.reshard/lock            held by the run
              manifest.json   what was asked for
              chunks/         temporary files
              data/           finished shards; becomes NAME
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .dataset import Dataset
from .errors import ArgumentError, StateError, explain
from .regroup import Job
from .source import Source
from .storage import whole_file, writing

INDEX_NAME = "_index.fastbalance"  # not data: names that begin with "_" are skipped in directories and globs
_VERSION = 1
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def work_folder(
    target: Path, data: Dataset, ask: dict[str, Any], task_bytes: int, overwrite: bool
) -> Iterator[tuple[Path, int]]:
    """Make the folder, or take up the one that an unfinished run left.

    Yields:
        The folder; and `task_bytes`, or what they were when the run was begun: they decide the temporary files.

    Raises:
        StateError: It belongs to other data or arguments, or a run is using it.
        ArgumentError: It cannot be made.
    """
    folder = _folder_of(target)
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        with writing(target):
            begun = _prepare(folder, data, ask, task_bytes, overwrite)
        yield folder, begun


def _prepare(folder: Path, data: Dataset, ask: dict[str, Any], task_bytes: int, overwrite: bool) -> int:
    """Keep what belongs to the run and remove the rest; its `task_bytes`."""
    ask = {"version": _VERSION, "source": _fingerprint(data), "label": list(data.label), **ask}
    found = _read_manifest(folder)
    if found and found["ask"] != ask and ask["source"] is not None and not overwrite:
        raise _of_another_run(folder, found["ask"], ask)
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    if found.get("ask") != ask or ask["source"] is None:  # nobody can say whether a table in memory is the same
        _clear(folder)
        found = {"ask": ask, "task_bytes": task_bytes}
    elif found["boot"] != boot:  # temporary files were not flushed to the disk when the machine went down
        shutil.rmtree(folder / "chunks", ignore_errors=True)
    for name in ("chunks", "data"):
        (folder / name).mkdir(exist_ok=True)
        for left in (folder / name).glob(".*.tmp"):
            left.unlink()
    with whole_file(folder / "manifest.json", durable=True) as path:
        Path(path).write_text(json.dumps({**found, "boot": boot}))
    return int(found["task_bytes"])


def commit(folder: Path, target: Path) -> None:
    """Let the result appear, in the place of an earlier one if there is one; remove the rest."""
    with writing(target):
        shutil.rmtree(folder / "chunks")
        if target.exists():
            os.rename(target, folder / "replaced")
        os.rename(folder / "data", target)
        _sync(target)
        _sync(target.parent)
        shutil.rmtree(folder)


def check_target(source: Any, target: Path, overwrite: bool) -> None:
    """Refuse a destination that is there, or that would become a part of the source.

    Raises:
        ArgumentError: It is refused.
    """
    subject = f"destination {str(target)!r}"
    for item in source if isinstance(source, list | tuple) else [source]:
        if isinstance(item, str | os.PathLike) and _covers(os.fspath(item), target):
            got, allowed = f"a path inside the source {os.fspath(item)!r}", "a directory that the source leaves out"
            raise ArgumentError(explain(subject, got=got, allowed=allowed))
    folder = _folder_of(target)
    if target.exists() and folder.exists() and not (folder / "data").exists():
        shutil.rmtree(folder)  # the last step of a run that was stopped right there
    if not os.path.lexists(target):
        return
    if not overwrite:
        fix = "Give another path, or pass overwrite=True (--overwrite)"
        raise ArgumentError(explain(subject, got="a path that exists", allowed="one that does not yet", fix=fix))
    ours = target.is_dir() and not target.is_symlink() and all(map(_is_ours, os.listdir(target)))
    if not ours:
        got, allowed = "a path with other files to overwrite", "an empty directory, or one that reshard wrote"
        raise ArgumentError(explain(subject, got=got, allowed=allowed, fix="Remove it yourself, or give another path"))


def check_outside(source: Source, target: Path) -> None:
    """Refuse a destination whose overwriting would remove a shard of the source.

    Raises:
        ArgumentError: It is refused.
    """
    for shard in source.shards:
        if Path(os.path.realpath(shard.name)).is_relative_to(os.path.realpath(target)):
            got, allowed = f"a directory that holds {shard.name!r} of the source", "one that does not"
            raise ArgumentError(explain(f"destination {str(target)!r}", got=got, allowed=allowed))


def check_room(job: Job, row_bytes: float) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        ArgumentError: There is less room than the temporary files and the result will take, about.
    """
    source = job.data.source
    stored = source.n_rows * row_bytes
    result = stored if job.format == "ipc" else min(stored, int(source.group_bytes(source.schema.names).sum()))
    written = sum(path.stat().st_size for path in job.folder.glob("*/*"))
    free, need = shutil.disk_usage(job.folder).free, int(stored + result) - written
    if free < need:
        got, allowed = f"{free:,} bytes of free space", f"about {need:,}: temporary files and the result"
        raise ArgumentError(explain(f"destination, {job.folder.parent}", got=got, allowed=allowed))


def _folder_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.reshard")


def _is_ours(name: str) -> bool:
    return name == INDEX_NAME or re.fullmatch(r"shard-\d{5,}\.(parquet|arrow)", name) is not None


def _covers(item: str, target: Path) -> bool:
    """Whether a directory or glob of the source would find files at `target`."""
    path = os.path.realpath(os.path.expanduser(item.removeprefix("file://")))
    if os.path.isdir(path):
        return Path(os.path.realpath(target)).is_relative_to(path)
    pattern, parts = Path(path).parts, Path(os.path.realpath(target)).parts
    plain = next((i for i, part in enumerate(pattern) if any(c in part for c in "*?[")), None)
    if plain is None or parts[:plain] != pattern[:plain]:
        return False
    return "**" in pattern or (len(parts) == len(pattern) and all(map(fnmatchcase, parts[plain:], pattern[plain:])))


def _fingerprint(data: Dataset) -> str | None:
    """Of the source's files, columns and labels; None for a table in memory."""
    shards = [(shard.name, shard.fingerprint()) for shard in data.source.shards]
    if any(mark is None for _, mark in shards):
        return None
    parts = (shards, str(data.schema), data.fingerprint)
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest; empty where there is none, or only a part of one."""
    with suppress(FileNotFoundError, json.JSONDecodeError):
        return json.loads((folder / "manifest.json").read_text())
    return {}


def _of_another_run(folder: Path, found: dict[str, Any], ask: dict[str, Any]) -> StateError:
    names = [name for name in ask if found.get(name) != ask[name]]
    was, is_now = (", ".join(f"{name} {of.get(name)!r}" for name in names) for of in (found, ask))
    fix = "Run it again as it was begun; or begin anew: overwrite=True (--overwrite), or remove the folder"
    return StateError(explain(f"unfinished run {str(folder)!r}", got=is_now, allowed=f"{was}, as begun", fix=fix))


def _clear(folder: Path) -> None:
    (folder / "manifest.json").unlink(missing_ok=True)
    for name in ("chunks", "data", "replaced"):
        shutil.rmtree(folder / name, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs out, where the system has file locks; the lock goes with the process.

    Raises:
        StateError: Another run is in.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            got, allowed = "a folder that another run is using", "one run at a time for a destination"
            raise StateError(explain(f"unfinished run {str(folder)!r}", got=got, allowed=allowed)) from error
        yield


def _sync(folder: Path) -> None:
    with suppress(OSError):  # not every system can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
