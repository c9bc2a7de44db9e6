"""Where a run takes place: the machine, the versions, the commit, and how much else it was doing meanwhile."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
    "sacrebleu",
    "triton",
)

QUOTA = Path("/sys/fs/cgroup/cpu.max")
NOISY = 0.05  # cores; where other work takes more, times are not to be relied on


def describe(gpu: str = "") -> str:
    """The processor and how many of its cores this process may use, behind the GPU where one is the device."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = (
            line.split(":", 1)[1]
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        )
        model = next(named, model).strip()
    return ", ".join(filter(None, [gpu, model, f"{cores()} cores"]))


def cores() -> int:
    """How many processor cores this process may use, by its affinity and its container's quota."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = QUOTA.read_text().split()
        return min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or one that may use all
        return count


def provenance() -> dict[str, Any]:
    """What a record says of its origin; the commit is of the installed package's checkout, if it is one."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    about = {
        "machine": describe(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    return about | {"packages": found, "argv": sys.argv[1:], **_commit()}


def _commit() -> dict[str, Any]:
    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", folder, *words], capture_output=True, text=True, timeout=5
        ).stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", __file__)
        return (
            {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
            if tracked
            else {}
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}


class Load:
    """How busy the machine was with other things since this was made, in cores; 0 where that cannot be read."""

    def __init__(self) -> None:
        self.wall = perf_counter()
        self.busy = _busy_seconds()
        self.own = _own_seconds()

    def others(self) -> float:
        busy = _busy_seconds() - self.busy
        own = _own_seconds() - self.own
        return max(0.0, busy - own) / max(1e-9, perf_counter() - self.wall)


def _busy_seconds() -> float:
    """Processor seconds spent by everything since boot, from /proc/stat."""
    try:
        ticks = [
            int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ]
        user, nice, system, _idle, _wait, irq, softirq, steal = ticks
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    mine = resource.getrusage(resource.RUSAGE_SELF)
    return mine.ru_utime + mine.ru_stime
