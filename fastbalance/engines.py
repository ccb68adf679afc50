"""Where independent tasks run: threads of this process, or Ray. Ray is imported only when it is asked for.

The work on Arrow data lets go of the GIL, so threads keep all cores busy: two of them scatter and gather 4 M rows of
33 columns in 3.7 and 4.0 s, two processes in 3.9 and 3.8, after 3 s and with 340 MiB each to start.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import pyarrow as pa

from .errors import ArgumentError, SourceError, TaskError, explain
from .ranks import found_ranks, gathered, in_process_group
from .source import Source

T = TypeVar("T")
Engine = Literal["local", "ray"]
ScanEngine = Literal["local", "ray", "ranks"]
_TASK_ROWS = 2**23  # of a label scan in Ray: some 40 ms of work, against 1 ms to hand it over
_thread = threading.local()


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """The run that a task belongs to has ended; raised in the task, and seen by nobody."""


def check_stopped() -> None:
    """Called by long tasks now and then.

    Raises:
        Stopped: Nobody waits for the task any more.
    """
    stop = getattr(_thread, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped


def check_engine(engine: str, kind: Any = Engine) -> None:
    """Raise `ArgumentError` unless it is the name of an engine, and for "ranks" unless there are ranks."""
    if engine not in get_args(kind):
        allowed = " or ".join(f'"{name}"' for name in get_args(kind))
        raise ArgumentError(explain("engine", got=repr(engine), allowed=allowed))
    if engine == "ranks" and not in_process_group():
        got, allowed = "'ranks', without a process group", '"local", or torch.distributed.init_process_group before'
        raise ArgumentError(explain("engine", got=got, allowed=allowed))


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_tasks(
    work: Callable[[Any, Any], T],
    shared: Any,
    tasks: Iterable[Any],
    engine: Engine = "local",
    workers: int | None = None,
) -> Iterator[T]:
    """Run `work(shared, task)` for every task; yield the results in the order of the tasks.

    The first error ends the run: it is raised here as it was in the task, and tasks under way are stopped. So are
    they when the iterator is closed, as by Ctrl-C.

    Args:
        work: A function; for Ray it, its arguments and its result must be picklable.
        shared: What all tasks need. For Ray it is sent to each node once.
        tasks: What each task needs, taken as workers become free.
        engine: "local": threads of this process. "ray": tasks of one CPU each, in the Ray that runs already, or in
            the cluster that RAY_ADDRESS names, else in one that is started on this machine and ended afterwards.
        workers: Most tasks at a time; None: as many as there are CPUs.

    Raises:
        ArgumentError: No such engine, or Ray is not installed.
        TaskError: A Ray worker died.
    """
    with session(engine, workers):
        pool: _Pool = _Local(work, shared, workers) if engine == "local" else _Ray(work, shared, workers)
        rest, n_yielded = enumerate(tasks), 0
        running: dict[Any, int] = {}
        results: dict[int, T] = {}
        try:
            while True:
                while len(running) < pool.workers and (item := next(rest, None)) is not None:
                    running[pool.submit(item[1])] = item[0]
                if not running:
                    return
                for handle in pool.wait(list(running)):
                    results[running.pop(handle)] = pool.result(handle)
                while n_yielded in results:
                    yield results.pop(n_yielded)
                    n_yielded += 1
        finally:
            pool.close(list(running))


def scan_groups(
    source: Source, columns: Sequence[str], visit: Callable[[int, pa.Table], T], engine: ScanEngine = "local"
) -> Iterator[T]:
    """`Source.scan` by any engine: `visit(group, table)` of every group, in order.

    Raises:
        SourceError: A group cannot be read; by ranks also where they do not see the same groups.
    """
    if engine == "local":
        yield from source.scan(columns, visit)
        return
    if engine == "ranks":
        yield from _scan_by_ranks(source, columns, visit)
        return
    runs = source.runs(range(len(source.groups)), _TASK_ROWS)
    for results in map_tasks(_visit_run, (source, list(columns), visit), runs, engine):
        yield from results


def _scan_by_ranks(source: Source, columns: Sequence[str], visit: Callable[[int, pa.Table], T]) -> Iterator[T]:
    """Every rank scans an equal part of the groups, and tells the others."""
    rank, world_size = found_ranks()
    mine = np.array_split(np.arange(len(source.groups)), world_size)[rank].tolist()
    rows = source.groups.n_rows.tobytes()
    found = gathered(lambda: (rows, list(source.scan(columns, visit, mine))))
    for other, (other_rows, _) in enumerate(found):
        if other_rows != rows:
            got, allowed = f"other groups on rank {other} than on rank {rank}", "the same files on all ranks"
            raise SourceError(explain("data", got=got, allowed=allowed))
    for _, results in found:
        yield from results


def _visit_run(shared: tuple[Source, list[str], Callable[[int, pa.Table], T]], run: range) -> list[T]:
    source, columns, visit = shared
    return [visit(group, source.read_group(group, columns)) for group in run]


@contextmanager
def session(engine: Engine, workers: int | None = None) -> Iterator[None]:
    """Keep Ray, where it is asked for and does not run yet, from the first `map_tasks` to the last."""
    check_engine(engine)
    ray = _import_ray() if engine == "ray" else None
    if ray is None or ray.is_initialized():
        yield
        return
    here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or cpus(), "include_dashboard": False}
    ray.init(logging_level="error", log_to_driver=False, **here)
    try:
        yield
    finally:
        ray.shutdown()


def count_workers(engine: Engine) -> int:
    """CPUs of this process, or of the Ray that runs (within a `session`)."""
    return cpus() if engine == "local" else max(1, int(_import_ray().cluster_resources().get("CPU", 1)))


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        fix = "pip install 'fastbalance[ray]'"
        raise ArgumentError(explain("engine", got="'ray', which is missing", allowed='"local"', fix=fix)) from error
    return ray


class _Pool(Protocol):
    workers: int

    def submit(self, task: Any) -> Any: ...
    def wait(self, handles: list[Any]) -> Iterable[Any]:
        """Those that are done, at least one."""

    def result(self, handle: Any) -> Any: ...
    def close(self, running: list[Any]) -> None: ...


class _Local:
    """Threads."""

    def __init__(self, work: Callable, shared: Any, workers: int | None) -> None:
        self.workers = workers or cpus()
        self._work, self._shared = work, shared
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(self.workers, "fastbalance")

    def submit(self, task: Any) -> Future:
        return self._threads.submit(self._run, task)

    def _run(self, task: Any) -> Any:
        _thread.stop = self._stop
        return self._work(self._shared, task)

    def wait(self, handles: list[Future]) -> Iterable[Future]:
        return wait_for(handles, return_when=FIRST_COMPLETED).done

    def result(self, handle: Future) -> Any:
        return handle.result()

    def close(self, running: list[Future]) -> None:
        self._stop.set()
        self._threads.shutdown(cancel_futures=True)


class _Ray:
    """Ray tasks."""

    def __init__(self, work: Callable, shared: Any, workers: int | None) -> None:
        self._ray = ray = _import_ray()
        self.workers = workers or count_workers("ray")
        self._shared = ray.put((work, shared))
        self._remote = ray.remote(num_cpus=1)(_run_remotely)

    def submit(self, task: Any) -> Any:
        return self._remote.remote(self._shared, task)

    def wait(self, handles: list[Any]) -> Iterable[Any]:
        return self._ray.wait(handles, num_returns=1)[0]

    def result(self, handle: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            fix = "Look at the node's memory and at Ray's logs; the run can be repeated"
            got = str(error).strip().partition("\n")[0]
            raise TaskError(explain("Ray worker", got=got, allowed="one that lives", fix=fix)) from error

    def close(self, running: list[Any]) -> None:
        if not running:
            return
        # A task that ends while it is being cancelled can bring Ray 2.60 down: short ones may end by themselves.
        _, pending = self._ray.wait(running, num_returns=len(running), timeout=2)
        for handle in pending:
            self._ray.cancel(handle)
        if pending:
            self._ray.wait(pending, num_returns=len(pending), timeout=10)


def _run_remotely(shared: tuple[Callable, Any], task: Any) -> Any:
    work, rest = shared
    return work(rest, task)
