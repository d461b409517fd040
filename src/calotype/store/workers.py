"""A few threads that share a series of jobs; the first error stops them all."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")

MOST = 8  # more would only add memory: by then the disk is the limit


class Stopped(Exception):
    """Another worker failed."""


def spread(
    jobs: Iterable[T], worker: Callable[[Callable[[], T | None]], None], count: int | None = None
) -> None:
    """Run ``worker(next_job)`` in several threads; ``next_job`` returns None when all are done.

    Raises:
        BaseException: the first error of any worker, after all have ended.
    """
    lock = threading.Lock()
    series = iter(jobs)
    stop = threading.Event()

    def next_job() -> T | None:
        if stop.is_set():
            raise Stopped
        with lock:
            return next(series, None)

    threads = count or min(os.cpu_count() or 1, MOST)
    with ThreadPoolExecutor(threads, thread_name_prefix="calotype-store") as pool:
        futures = [pool.submit(worker, next_job) for _ in range(threads)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # after an error or Ctrl-C the others end with their present job
    errors = [e for f in futures if (e := f.exception())]
    for error in errors:
        if not isinstance(error, Stopped):
            raise error
