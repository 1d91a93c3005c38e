"""Making the next items in threads while the present ones are used: in order, and the same with any number of threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

Key = TypeVar("Key")
Task = TypeVar("Task")
Made = TypeVar("Made")


def make_ahead(
    plan: Iterable[tuple[Key, list[Task]]], make: Callable[[Task], Made], workers: int | None, depth: int = 2
) -> Iterator[tuple[Key, list[Callable[[], Made]]]]:
    """Yield, for every (key, tasks) of the plan, (key, functions that return what was made of the tasks).

    Threads suffice, as making a batch is spent in NumPy's gathers and in the compiled neighbour list, which release the
    GIL. At most `depth` steps of the plan are made ahead. An error in a thread is raised where its result is requested.
    With 0 workers everything is made when it is requested; None is one worker.
    """
    workers = 1 if workers is None else workers
    if not workers:
        for key, tasks in plan:
            yield key, [partial(make, task) for task in tasks]
        return
    waiting: queue.Queue = queue.Queue(maxsize=max(1, depth - 1))  # the planner holds one more
    over = threading.Event()

    def draw_up(pool: ThreadPoolExecutor) -> None:
        try:
            for key, tasks in plan:
                if not _put(waiting, (key, [pool.submit(make, task).result for task in tasks]), over):
                    return
            _put(waiting, None, over)
        except BaseException as error:  # raised where the plan is used, not in this thread
            _put(waiting, error, over)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    planner = threading.Thread(target=draw_up, args=(pool,), name="plan", daemon=True)
    try:  # a signal may arrive already while the thread is started
        planner.start()
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:  # also when the caller stops early
        over.set()
        if planner.is_alive():
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
