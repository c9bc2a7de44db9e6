"""A clock that tests move by hand: a busy machine changes nothing that it shows."""

from types import ModuleType

import pytest

READING = 1e-6


class Clock:
    """Seconds that pass where a test says so, and a microsecond with each reading."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += READING
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def stopped(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> Clock:
    """Return a clock that these modules read instead of the machine's."""
    clock = Clock()
    for module in modules:
        monkeypatch.setattr(module, "perf_counter", clock)
    return clock
