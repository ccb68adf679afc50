"""Paths, globs, directories and URIs -> data files, each on its file system."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from copy import copy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from .errors import SourceError, explain
from .retries import READ_ERRORS, is_denied, mend, passes

SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".arrows")
KINDS = "a path, glob, directory or URI, a list of those, pa.Table, dict of arrays, datasets.Dataset"

_PYARROW_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "hf")
_GCS_RETRY_S = 10  # for each request; the client's own is 15 minutes
_SILENCE_S = 5  # of a web server; S3 is given 3 s by its client


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
        remote = filesystem is not None or bool(_scheme(os.fspath(item)))
        errors = (Exception,) if remote else (*READ_ERRORS, ValueError)  # clients of stores raise all kinds
        try:
            where, path = _locate(os.fspath(item), filesystem)
            files = _expand(where, path)
        except errors as error:
            fix = mend(error, "") if remote else ""
            raise SourceError(explain(f"source {_shown(item)}", got=error, allowed=KINDS, fix=fix)) from error
        if not files:
            fix = "Check the path; names that begin with '.' or '_' are skipped"
            allowed = f"a file, a glob, or a directory with files ending in {' '.join(SUFFIXES)}"
            raise SourceError(explain(f"source {_shown(item)}", got="no such file", allowed=allowed, fix=fix))
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
        return filesystem if known else pafs.PyFileSystem(_Fsspec(filesystem)), path
    scheme = _scheme(path)
    if not scheme:
        return pafs.LocalFileSystem(), Path(path).expanduser().as_posix()
    # Brackets are not allowed in a URI, and "?" begins its options: what precedes the first glob is parsed.
    address, question, options = path.partition("?")
    parts = address.split("/")
    plain = next((i for i, part in enumerate(parts) if _is_glob(part)), len(parts))
    where, base = _connect(scheme, "/".join(parts[:plain]), question + options)
    return where, "/".join([base.rstrip("/"), *parts[plain:]])


def _connect(scheme: str, address: str, options: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI and the path on it; pyarrow's, and fsspec's of schemes that pyarrow does not know."""
    if scheme not in _PYARROW_SCHEMES:
        from fsspec.core import url_to_fs

        where, base = url_to_fs(address + options, **_client_options(scheme))
        return pafs.PyFileSystem(_Fsspec(where)), base
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in options:
        options += f"{'&' if options else '?'}retry_limit_seconds={_GCS_RETRY_S}"
    where, base = pafs.FileSystem.from_uri(address + options)
    if scheme == "s3":
        # From a URI every request is repeated each 0.2 s for 6 s, which feeds a "503 Slow Down". A copy, which is made
        # of the same options, repeats as `S3FileSystem(...)` does: 3 requests, with growing and random delays.
        where = copy(where)
    return where, base


def _client_options(scheme: str) -> dict[str, Any]:
    """What fsspec should tell its client: that of HTTP would wait for 5 minutes."""
    if scheme not in ("http", "https"):
        return {}
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)}}


class _Fsspec(pafs.FSSpecHandler):
    """Reads what is asked for: fsspec would read 5 MiB ahead each time, far more than a column of a group."""

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        infos = super().get_file_info(paths)
        for info in infos:
            if info.type == pafs.FileType.NotFound:
                self._check_answered(info.path)
        return infos

    def _check_answered(self, path: str) -> None:
        """HTTP's client says "not found" of an error 403, and of a lost connection, too."""
        try:
            self.fs.info(path)
        except FileNotFoundError as error:
            cause = error.__cause__
            if cause is not None and (is_denied(cause) or passes(cause)):
                raise OSError(f"{type(cause).__name__}: {cause}") from error

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self.fs.open(path, mode="rb", cache_type="none"), mode="r")


def _scheme(path: str) -> str:
    """The scheme of a URI, in lower case; "" of a path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", path)
    return match[1].lower() if match else ""


def _shown(item: Any) -> str:
    """A source as messages quote it: without the secrets that a URI may hold."""
    hidden = re.sub(r"(?<=://)[^/?@:]*:[^/?@]*@", "...@", str(item))
    return repr(
        re.sub(r"(?<=[?&])([^=&]*(?:key|token|secret|sig|password)[^=&]*)=[^&]*", r"\1=...", hidden, flags=re.I)
    )


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
