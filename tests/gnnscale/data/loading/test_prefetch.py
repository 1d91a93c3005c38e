"""Batches made ahead equal those made on request: same order, same errors, no thread left running."""

import signal
import threading
import time
from contextlib import closing

import pytest

from gnnscale.data.loading import prefetch
from gnnscale.data.loading.prefetch import make_ahead
from tests.support.cluster import wait_until


def plan(steps, most=5):
    return ((step, [10 * step + k for k in range(1 + step % most)]) for step in range(steps))


@pytest.mark.parametrize("workers", [None, 0, 1, 2, 5])
def test_all_comes_in_order_whatever_the_number_of_workers(workers):
    def make(job):
        time.sleep(0.002 * (job % 3))  # so that threads finish out of turn
        return job * job

    before = threading.active_count()
    found = [(key, [part() for part in parts]) for key, parts in make_ahead(plan(12), make, workers)]
    assert found == [(key, [job * job for job in jobs]) for key, jobs in plan(12)]
    assert threading.active_count() <= before


def test_only_so_much_is_made_ahead():
    made, before = [], threading.active_count()
    with closing(make_ahead(((k, [k]) for k in range(100)), made.append, 2, depth=3)) as found:
        next(found)
        wait_until(lambda: len(made) >= 3, "what is made ahead")
        time.sleep(0.3)
        assert sorted(made)[:2] == [0, 1] and 3 <= len(made) <= 4, "the one in use and three more"
    assert threading.active_count() <= before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_is_raised_where_its_result_is_asked_for(workers):
    def make(job):
        if job == 31:
            raise ValueError("structure 31 is broken")
        return job

    seen, before = [], threading.active_count()
    with pytest.raises(ValueError, match="structure 31 is broken"):
        for _, parts in make_ahead(plan(6), make, workers):
            seen += [part() for part in parts]
    assert seen == [0, 10, 11, 20, 21, 22]
    assert threading.active_count() <= before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_in_the_plan_is_raised_in_its_turn(workers):
    def broken():
        yield from plan(2)
        raise ValueError("no such step")

    seen, before = [], threading.active_count()
    with pytest.raises(ValueError, match="no such step"):
        for key, _ in make_ahead(broken(), lambda job: job, workers):
            seen.append(key)
    assert seen == [0, 1] and threading.active_count() <= before


def test_a_signal_ends_it_at_once():
    """The signal handler raises while this thread waits for a slow batch, as when a stage is stopped."""

    class Stopped(Exception):
        pass

    def stop(signum, frame):
        heard.set()
        raise Stopped

    def make(job):
        begun.append(job)
        if job == 10:
            signal.pthread_kill(main, signal.SIGUSR1)  # any thread may get what is sent to the process
            heard.wait(600)

    begun, heard, main = [], threading.Event(), threading.main_thread().ident
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # whatever an earlier test has left
    threads, before = threading.active_count(), signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stopped), closing(make_ahead(plan(50), make, 1)) as batches:
            for _, parts in batches:
                for part in parts:
                    part()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert begun[:2] == [0, 10] and len(begun) < 25, "the batches made ahead are waited for, and not all 150"
    wait_until(lambda: threading.active_count() <= threads, "its threads to end")


def test_a_signal_at_the_very_start_leaves_no_thread(monkeypatch):
    class Started(threading.Thread):
        def start(self):
            super().start()
            if self.name == "plan":
                raise KeyboardInterrupt  # as a signal handler does that runs before start() has returned

    before = threading.active_count()
    monkeypatch.setattr(prefetch.threading, "Thread", Started)
    with pytest.raises(KeyboardInterrupt), closing(make_ahead(plan(50), lambda job: job, 1)) as batches:
        next(batches)
    assert threading.active_count() <= before
