"""Settings of torch and of the process that every decoder's speed depends on.

They are read before any decoder exists, put back after each of its turns, and what had changed is
told.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch


class Setting(NamedTuple):
    """A setting by the name that a user knows, with how it is read and written."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _collect(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()


def _set_default_device(device: torch.device) -> None:
    # none at all is quicker than the CPU by name
    torch.set_default_device(None if device.type == "cpu" else device)


def _autocast() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(kind) for kind in AUTOCAST)


def _set_autocast(enabled: tuple[bool, ...]) -> None:
    for kind, value in zip(AUTOCAST, enabled, strict=True):
        torch.set_autocast_enabled(kind, value)


def _folder() -> str:
    with suppress(OSError):  # it may have been removed
        return os.getcwd()
    return ""


def _enter(folder: str) -> None:
    with suppress(OSError):
        os.chdir(folder)


def _cores() -> set[int]:
    """Return the cores that this thread may use; none where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _set_cores(cores: set[int]) -> None:
    with suppress(OSError):  # some were taken from the whole process
        os.sched_setaffinity(0, cores)


AUTOCAST = ("cpu", "cuda")
SETTINGS = (
    Setting("torch's CPU threads", torch.get_num_threads, torch.set_num_threads),
    Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch's default device", torch.get_default_device, _set_default_device),
    Setting("torch's autocast", _autocast, _set_autocast),
    Setting("torch's gradients", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting(
        "torch's deterministic algorithms",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    Setting(
        "torch's float32 matmul precision",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    Setting(
        "cuDNN's benchmark mode",
        partial(getattr, torch.backends.cudnn, "benchmark"),
        partial(setattr, torch.backends.cudnn, "benchmark"),
    ),
    Setting("garbage collection", gc.isenabled, _collect),
    Setting("garbage collection's thresholds", gc.get_threshold, lambda t: gc.set_threshold(*t)),
    Setting("Python's profiler", sys.getprofile, sys.setprofile),
    Setting("Python's tracer", sys.gettrace, sys.settrace),
    Setting("Python's recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("the working directory", _folder, _enter),
    Setting("sys.stdout", partial(getattr, sys, "stdout"), partial(setattr, sys, "stdout")),
    Setting("sys.stderr", partial(getattr, sys, "stderr"), partial(setattr, sys, "stderr")),
    Setting("the cores of its thread", _cores, _set_cores),
    Setting("Python's switch interval", sys.getswitchinterval, sys.setswitchinterval),
)


class MachineGuard:
    """The settings as they were when this object was made."""

    def __init__(self) -> None:
        self.known = {setting.name: setting.read() for setting in SETTINGS}

    def restore(self) -> list[str]:
        """Put every setting back; return those that had changed, in words."""
        changed = []
        for setting in SETTINGS:
            value = setting.read()
            known = self.known[setting.name]
            if value != known:
                setting.write(known)
                changed.append(f"{setting.name} ({known} to {value})")
        return changed
