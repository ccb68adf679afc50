"""Remote file systems: errors that pass are waited out, and others are told what mends them.

What pyarrow's clients try again themselves (3 requests in about 2 s, for S3) comes below this: `patiently` sees an
error when they have given up.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception, stop_after_attempt
from tenacity import wait_exponential as growing
from tenacity import wait_random as random_wait

from .errors import FastbalanceError

T = TypeVar("T")
READ_ERRORS = (OSError, pa.ArrowException)
TRIES = 6
FIRST_WAIT_S, MAX_WAIT_S = 1.0, 30.0  # 1, 2, 4, 8, 16 s, each up to a second more: readers do not come back together

# Stores give an OSError whatever happened: the text tells. Bodies that are cut short come as connection errors.
_PASSES = re.compile(
    "connect|network|curlcode|curl error|broken pipe|reset by peer|timed? ?out|timeout|deadline.?exceeded"
    "|unavailable|slow.?down|throttl|too.?many.?requests|resource.?exhausted|server.?busy|bad gateway"
    r"|internal.?(failure|error|server)|http status (429|5\d\d)|too.?skewed|resolve|name or service"
    "|payload|incomplete.?read|partial file",
    re.IGNORECASE,
)
_DENIED = re.compile(
    "access.?denied|forbidden|unauthori[sz]ed|unauthenticated|permission.?denied|expired.?token|token.{0,20}expired"
    "|credential|authenticationfailed|invalid.?access.?key|invalid.?token|signature.?does.?not|http status 40[013]",
    re.IGNORECASE,
)


def is_local(filesystem: pafs.FileSystem) -> bool:
    """Whether no network lies between, as far as one can tell."""
    if isinstance(filesystem, pafs.SubTreeFileSystem):
        return is_local(filesystem.base_fs)
    if isinstance(filesystem, pafs.PyFileSystem):
        protocol = getattr(getattr(filesystem.handler, "fs", None), "protocol", ())
        return not {protocol} - {"file", "local", "memory"} if isinstance(protocol, str) else "file" in protocol
    return isinstance(filesystem, pafs.LocalFileSystem)


class GaveUpError(OSError):
    """The last of several tries failed with an error that passes; it is the cause."""


def patiently(what: str, read: Callable[..., T], *args: Any) -> T:
    """Call `read(*args)` on a remote file system, again after errors that pass, at most `TRIES` times.

    Raises:
        GaveUpError: The last try failed too.
        OSError, pa.ArrowException: Another error; those of Python clients that are neither come as OSError.
    """

    def warn(state: RetryCallState) -> None:
        error, wait_s = state.outcome and state.outcome.exception(), state.upcoming_sleep
        logging.getLogger("fastbalance").warning("%s: %s; trying again in %.1f s", what, error, wait_s)

    tries = Retrying(
        stop=stop_after_attempt(TRIES),
        wait=growing(FIRST_WAIT_S, MAX_WAIT_S) + random_wait(0, FIRST_WAIT_S),
        retry=retry_if_exception(passes),
        before_sleep=warn,
    )
    try:
        return tries(_with_known_errors, read, *args)
    except RetryError as given_up:
        last = given_up.last_attempt
        text = f"no answer in {last.attempt_number} tries, the last time {last.exception()}"
        raise GaveUpError(text) from last.exception()


def passes(error: BaseException) -> bool:
    """Whether the same read may succeed later: the store was busy, or the connection was lost."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, FileNotFoundError | pa.ArrowInvalid):
        return False
    return bool(_PASSES.search(_text(error))) and not is_denied(error)


def is_denied(error: BaseException) -> bool:
    """Whether the store refused to serve."""
    return isinstance(error, PermissionError) or bool(_DENIED.search(_text(error)))


def _text(error: BaseException) -> str:
    """Type and message, without the names of objects: they may contain any word."""
    return re.sub(r"\b(key|bucket|url)[ =]'[^']*'", r"\1", f"{type(error).__name__}: {error}")


def mend(error: BaseException, otherwise: str) -> str:
    """What the reader of an error of a remote file system can do."""
    if is_denied(error):
        return "Access was denied: renew the credentials if they have expired, and check what they may read"
    if passes(error):
        return "The store could not be reached, or did not answer: check the endpoint, region and network"
    if isinstance(error, FileNotFoundError) or "not_found" in str(error).lower():
        return "There is no such object (any more): write or copy it again, and open the data anew"
    return otherwise


def _with_known_errors(read: Callable[..., T], *args: Any) -> T:
    try:
        return read(*args)
    except (*READ_ERRORS, FastbalanceError):
        raise
    except Exception as error:  # of a Python client: aiohttp's, botocore's, httpx's
        raise OSError(f"{type(error).__name__}: {error}") from error
