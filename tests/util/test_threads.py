"""Clocks of threads."""

import sys
import threading
import time

import pytest

from fspad_bench.util.threads import cpu_seconds, thread_ids

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells threads apart")


def test_a_thread_that_works_is_told_from_one_that_waits():
    stop = threading.Event()

    def work():
        while not stop.is_set():
            sum(range(1000))

    busy = threading.Thread(target=work)
    idle = threading.Thread(target=stop.wait)
    try:
        for thread in (busy, idle):
            thread.start()
        assert {busy.native_id, idle.native_id} <= thread_ids()
        before = cpu_seconds({busy.native_id, idle.native_id})
        after = before
        while after[busy.native_id] - before[busy.native_id] < 0.02:
            time.sleep(0.01)
            after = cpu_seconds(set(before))
    finally:
        stop.set()
        busy.join()
        idle.join()
    worked = {thread: after[thread] - before[thread] for thread in before}
    assert worked[busy.native_id] > 10 * worked[idle.native_id]
