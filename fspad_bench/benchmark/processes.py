"""The executor `processes`: cells of a sweep side by side on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from subprocess import Popen
from threading import Event

from fspad_bench.benchmark.sweep import Cell, Outcome, Resources, perform
from fspad_bench.util.errors import BenchError

MASK = "CUDA_VISIBLE_DEVICES"  # the GPUs that a process may use, by number or UUID


class Processes:
    """Runs as many cells at once as there are workers; each has GPUs of its own where it asks for
    some.
    """

    def __init__(self, resources: Resources, output: Path) -> None:
        self.retries = resources.retries
        self.output = output
        places = _gpus(resources.gpus) if resources.gpus else [""] * (resources.workers or 1)
        self.workers = min(resources.workers or len(places), len(places))
        self.places: SimpleQueue[str] = SimpleQueue()
        for place in places:
            self.places.put(place)
        self.started: list[Popen[str]] = []
        self.interrupted = Event()

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        with ThreadPoolExecutor(self.workers) as pool:
            waiting = [pool.submit(self._try, cell) for cell in cells]
            try:
                yield from (future.result() for future in as_completed(waiting))
            except BaseException:
                self._end(waiting)
                raise

    def _end(self, waiting: Sequence[Future[Outcome]]) -> None:
        """Start no more cells, and interrupt those that run: what they know is written."""
        self.interrupted.set()
        for future in waiting:
            future.cancel()
        for process in list(self.started):
            process.terminate()

    def _keep(self, process: Popen[str]) -> None:
        self.started.append(process)
        if self.interrupted.is_set():
            process.terminate()

    def _try(self, cell: Cell) -> Outcome:
        """Run a cell, and again if it is killed: it goes on where it stopped."""
        place = self.places.get()
        try:
            for _ in range(self.retries + 1):
                outcome = perform(
                    cell,
                    self.output / cell.name,
                    {MASK: place} if place else None,
                    self._keep,
                )
                if not outcome.died or self.interrupted.is_set():
                    break
            return outcome
        finally:
            self.places.put(place)


def _gpus(count: int) -> list[str]:
    """Return the GPUs that this process may use in groups of `count`, as CUDA names them. Raises
    BenchError where there is no group.
    """
    names = _visible_gpus()
    groups = [names[first : first + count] for first in range(0, len(names) - count + 1, count)]
    if not groups:
        raise BenchError(
            f"a cell asks for {count} GPUs, and this process may use {len(names)}",
            "give a smaller --gpus",
        )
    return [",".join(group) for group in groups]


def _visible_gpus() -> list[str]:
    """Return the names of the GPUs that torch counts: numbers or UUIDs, as the user's own mask has
    them, where there is one.

    CUDA reads a mask up to the first name that it does not know.
    """
    import torch

    count = torch.cuda.device_count()
    mask = os.environ.get(MASK)
    names = map(str, range(count)) if mask is None else map(str.strip, mask.split(","))
    return list(names)[:count]
