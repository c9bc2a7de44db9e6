"""The processor time of each thread of this process, by the kernel's own clocks.

Linux gives every thread a clock, whose number is made of the thread's id; elsewhere nothing is
known of threads, and the functions say so by an empty result.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

TASKS = Path("/proc/self/task")
PER_THREAD_CLOCK = 6  # the kernel's CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED


def thread_ids() -> set[int]:
    """Return the ids of all threads of this process; empty where they cannot be listed."""
    if sys.platform != "linux":
        return set()
    try:
        return {int(name) for name in os.listdir(TASKS)}
    except OSError:
        return set()


def cpu_seconds(threads: set[int]) -> dict[int, float]:
    """Return the processor seconds of each of these threads that still runs."""
    seconds = {}
    for thread in threads:
        with suppress(OSError):  # it has ended
            seconds[thread] = time.clock_gettime((~thread << 3) | PER_THREAD_CLOCK)
    return seconds
