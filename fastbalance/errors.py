"""Every exception of fastbalance, and the one helper that words them.

A message says four things: which argument or file, what came, what is allowed, what to do.
"""

from __future__ import annotations


class FastbalanceError(Exception):
    """Base of all errors that fastbalance raises on purpose."""


class SourceError(FastbalanceError, ValueError):
    """The data cannot be found, opened or read, or its shards do not fit together."""


class LabelError(FastbalanceError, ValueError):
    """The label column cannot define classes."""


class ColumnError(FastbalanceError, ValueError):
    """A column cannot become a tensor."""


class PlanError(FastbalanceError, ValueError):
    """The wanted balance cannot be planned."""


class StarvedClassError(PlanError):
    """The epoch is so short that a class would not be drawn at all. (More ranks stretch an epoch.)"""


class LanesError(PlanError):
    """The lanes of a stream do not fit the batch and the ranks. (Another number of ranks makes another batch.)"""


class IndexFileError(FastbalanceError, ValueError):
    """A saved index is damaged, or belongs to other data."""


class StateError(FastbalanceError, ValueError):
    """A saved state belongs to another data set, plan or batch size."""


class ArgumentError(FastbalanceError, ValueError):
    """An argument is outside what is allowed."""


class TaskError(FastbalanceError, RuntimeError):
    """A worker process died."""


class ReadWarning(UserWarning):
    """More will be read than need be; the message says how to mend that."""


def explain(subject: str, *, got: object, allowed: str, fix: str = "") -> str:
    """Word an error: `subject: got ...; allowed: ...; fix`.

    Args:
        subject: The argument, file or column that is wrong.
        got: What came.
        allowed: What would have been accepted.
        fix: What the reader can do about it; empty where `allowed` says it already.
    """
    text = f"{subject}: got {got}; allowed: {allowed}"
    if not fix:
        return f"{text}."
    return f"{text}. {fix}" if fix.endswith((".", "?")) else f"{text}. {fix}."
