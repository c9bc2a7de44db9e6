"""Settings of torch and of the process that every decoder's speed depends on.

They are read before any decoder exists, put back after each of its turns, and what had changed is
told.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
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


SETTINGS = (
    Setting("torch's CPU threads", torch.get_num_threads, torch.set_num_threads),
    Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
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
