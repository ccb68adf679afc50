"""Paths, globs, directories and URIs -> data files, each on its file system."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from .errors import SourceError, explain
from .shards import READ_ERRORS

SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".arrows")
KINDS = "a path, glob, directory or URI, a list of those, pa.Table, dict of arrays, datasets.Dataset"


def list_files(source: Any, filesystem: Any) -> list[tuple[pafs.FileSystem, str]]:
    """Resolve paths, globs, directories and URIs to files, each on its file system."""
    items = list(source) if isinstance(source, list | tuple) else [source]
    for item in items:
        if not isinstance(item, str | os.PathLike):
            raise SourceError(explain("source", got=type(item).__name__, allowed=KINDS))
        if not os.fspath(item):
            raise SourceError(explain("source", got="an empty path", allowed=KINDS))
    found = []
    for item in items:
        try:
            where, path = _locate(os.fspath(item), filesystem)
            files = _expand(where, path)
        except (*READ_ERRORS, ValueError) as error:
            raise SourceError(explain(f"source {item!r}", got=error, allowed=KINDS)) from error
        if not files:
            fix = "Check the path; names that begin with '.' or '_' are skipped"
            allowed = f"a file, a glob, or a directory with files ending in {' '.join(SUFFIXES)}"
            raise SourceError(explain(f"source {str(item)!r}", got="no such file", allowed=allowed, fix=fix))
        found += [(where, file) for file in files]
    names = [file for _, file in found]
    if not found or len(set(names)) < len(names):
        twice = next((f"{name!r} twice" for name in names if names.count(name) > 1), "an empty list")
        raise SourceError(explain("source", got=twice, allowed="each file once"))
    return found


def _locate(path: str, filesystem: Any) -> tuple[pafs.FileSystem, str]:
    """Split a path or URI into a file system and the path on it, which may be a glob."""
    if filesystem is not None:
        known = isinstance(filesystem, pafs.FileSystem)
        return filesystem if known else pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
        return pafs.LocalFileSystem(), Path(path).expanduser().as_posix()
    # Brackets are not allowed in a URI, and "?" begins its options: what precedes the first glob is parsed.
    address, question, options = path.partition("?")
    parts = address.split("/")
    plain = next((i for i, part in enumerate(parts) if _is_glob(part)), len(parts))
    where, base = pafs.FileSystem.from_uri("/".join(parts[:plain]) + question + options)
    return where, "/".join([base.rstrip("/"), *parts[plain:]])


def _is_glob(path: str) -> bool:
    return any(character in path for character in "*?[")


def _expand(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """The files that a path, directory or glob stands for, sorted."""
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        return [path]
    if info.type == pafs.FileType.Directory:
        return [file for file, _ in _walk(filesystem, path) if file.endswith(SUFFIXES)]
    if not _is_glob(path):
        return []
    parts = path.split("/")
    plain = next(i for i, part in enumerate(parts) if _is_glob(part))
    base = "/".join(parts[:plain]) or ("/" if path.startswith("/") else ".")
    return [file for file, below in _walk(filesystem, base) if _matches(below, parts[plain:])]


def _walk(filesystem: pafs.FileSystem, base: str) -> list[tuple[str, list[str]]]:
    """All files below `base` and the parts of their paths below it, sorted, without hidden ones."""
    infos = filesystem.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    paths = sorted(info.path for info in infos if info.type == pafs.FileType.File)
    below = [path.removeprefix(base).lstrip("/").split("/") for path in paths]
    hidden = [any(part.startswith((".", "_")) for part in parts) for parts in below]
    return [(p.removeprefix("./"), b) for p, b, skip in zip(paths, below, hidden, strict=True) if not skip]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a glob, part by part; `**` stands for any number of directories.

    A directory that matches stands for the data files in it.
    """
    if not pattern:
        return not parts or parts[-1].endswith(SUFFIXES)
    if pattern[0] == "**" and _matches(parts, pattern[1:]):
        return True
    rest = pattern if pattern[0] == "**" else pattern[1:]
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], rest)
