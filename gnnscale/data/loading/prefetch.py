"""What is needed next, made by threads while the present is worked on; in order, and the same however many threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

K = TypeVar("K")
J = TypeVar("J")
R = TypeVar("R")


def ahead(
    plan: Iterable[tuple[K, list[J]]], make: Callable[[J], R], workers: int, depth: int = 2
) -> Iterator[tuple[K, list[Callable[[], R]]]]:
    """For every (key, jobs) of the plan, (key, functions that give what was made of the jobs).

    Threads serve, as making a batch is spent in NumPy's gathers and in the compiled neighbour list, which let others
    run. The plan is drawn up and at most `depth` of its steps are made ahead. A mistake in a thread is raised where its
    result is asked for. Without workers everything is made when it is asked for.
    """
    if not workers:
        for key, jobs in plan:
            yield key, [partial(make, job) for job in jobs]
        return
    waiting: queue.Queue = queue.Queue(maxsize=max(1, depth - 1))  # one more is in the planner's hand
    over = threading.Event()

    def draw_up(pool: ThreadPoolExecutor) -> None:
        try:
            for key, jobs in plan:
                if not _put(waiting, (key, [pool.submit(make, job).result for job in jobs]), over):
                    return
            _put(waiting, None, over)
        except BaseException as error:  # said where the plan is used, not in a thread that nobody looks at
            _put(waiting, error, over)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    planner = threading.Thread(target=draw_up, args=(pool,), name="plan", daemon=True)
    planner.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:  # also when whoever asked has had enough
        over.set()
        planner.join()
        pool.shutdown(wait=True, cancel_futures=True)


def _put(waiting: queue.Queue, item: object, over: threading.Event) -> bool:
    while not over.is_set():
        try:
            waiting.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
