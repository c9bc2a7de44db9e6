"""The machine of a run: its processor, the cores available, and how much other work it did
meanwhile.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from pathlib import Path
from time import perf_counter, process_time

CPU_INFO = Path("/proc/cpuinfo")
CPU_TIMES = Path("/proc/stat")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd")
"""The vector instructions that decide how fast a step is, the fastest first."""
_helpers: set[int] = set()  # processes that work for this one
NOISY = 0.05  # cores; where other work uses more, times are not reliable


def describe(gpu: str = "") -> str:
    """Return the processor, its fastest vector instructions and its available cores, after the GPU
    where that is the device. Hypervisors give processors of several generations one name.
    """
    parts = [gpu, _processor(), _instructions(), f"{cores()} cores"]
    return ", ".join(part for part in parts if part)


def cores() -> int:
    """Return how many cores this process may use, by its affinity and its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or one without a quota
        return count


class Load:
    """The load that other processes put on the machine, since this object was made.

    `helpers`: processes that work for this one meanwhile, and are not others.
    """

    def __init__(self, helpers: Collection[int] = ()) -> None:
        self.helpers = frozenset(helpers) - _helpers
        self.wall = perf_counter()
        self.busy = _busy_seconds()
        self.own = self._own()

    def others(self) -> float:
        """Return the cores that other processes used on average; 0 where that cannot be read."""
        busy = _busy_seconds() - self.busy
        own = self._own() - self.own
        wall = perf_counter() - self.wall
        return max(0.0, busy - own) / max(1e-9, wall)

    def _own(self) -> float:
        return _own_seconds() + sum(map(_seconds_of, self.helpers))


def _processor() -> str:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _instructions() -> str:
    """Return the first of INSTRUCTIONS that the processor has; nothing where that is unknown."""
    if not CPU_INFO.exists():
        return ""
    lines = CPU_INFO.read_text().splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    return next((name for name in INSTRUCTIONS if name in flags), "")


def _busy_seconds() -> float:
    """Return the processor seconds of all processes since boot; 0 where they cannot be read."""
    try:
        words = CPU_TIMES.read_text().split("\n", 1)[0].split()
        ticks = [int(word) for word in words[1:9]]
        user, nice, system, _idle, _wait, irq, softirq, steal = ticks
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def count_as_own(process: int) -> None:
    """Let the load of another process, by its number, count as this one's: it works for it."""
    _helpers.add(process)


def forget(process: int) -> None:
    """Count another process no more: it has ended, and its number may come again."""
    _helpers.discard(process)


def _own_seconds() -> float:
    """Return the processor seconds of this process and of those that work for it, all threads
    included.
    """
    return process_time() + sum(map(_seconds_of, _helpers))


def _seconds_of(process: int) -> float:
    """Return the processor seconds of a process; 0 where it has ended."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
