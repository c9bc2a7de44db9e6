"""Threads of this process that work in another decoder's turn.

- A thread belongs to the decoder in whose turn it first appeared, and to the engine where it
  appeared in vanilla's or outside of all: torch's own workers, the progress bar's.
- Another process is other load already (`util.machine`); this is the same for our own.
"""

from __future__ import annotations

from collections import defaultdict
from time import perf_counter

from fspad_bench.benchmark.record import VANILLA
from fspad_bench.util.machine import NOISY
from fspad_bench.util.threads import cpu_seconds, thread_ids

ENGINE = ""


class ThreadsGuard:
    """Who owns which thread, and how long threads have worked in the turns of others."""

    def __init__(self) -> None:
        self.owners = dict.fromkeys(thread_ids(), ENGINE)
        self.seconds: dict[str, float] = defaultdict(float)  # by owner, in turns of others
        self.wall: dict[str, float] = defaultdict(float)  # by owner, of those turns
        self.began = 0.0
        self.before: dict[int, float] = {}

    def before_turn(self, label: str) -> None:
        """Give new threads to the engine, and read the clocks of those that are others'."""
        self.claim(ENGINE)
        others = {t for t, owner in self.owners.items() if owner not in (ENGINE, label)}
        self.before = cpu_seconds(others)
        self.began = perf_counter()

    def after_turn(self, label: str) -> float:
        """Return the cores that others' threads used in this turn, on average.

        Threads that appeared in it are this decoder's.
        """
        wall = perf_counter() - self.began
        now = cpu_seconds(set(self.before))
        self.claim(label)
        total = 0.0
        for thread, seconds in now.items():
            worked = seconds - self.before[thread]
            self.seconds[self.owners[thread]] += worked
            total += worked
        for owner in {self.owners[thread] for thread in now}:
            self.wall[owner] += wall
        return total / max(1e-9, wall)

    def claim(self, label: str) -> None:
        """Give all threads that have appeared since the last call to `label`."""
        owner = ENGINE if label == VANILLA else label
        alive = thread_ids()
        known = {t: self.owners[t] for t in alive & self.owners.keys()}
        self.owners = dict.fromkeys(alive, owner) | known

    def disturbance(self, label: str) -> float:
        """Return the cores that a decoder's threads used in others' turns; 0 if hardly any."""
        wall = self.wall[label]
        cores = self.seconds[label] / wall if wall else 0.0
        return cores if cores > NOISY else 0.0
