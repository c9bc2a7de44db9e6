"""The executor `processes`: cells of a sweep side by side on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from subprocess import Popen
from threading import Event

from fspad_bench.benchmark.sweep import Cell, Outcome, Resources, perform
from fspad_bench.util.errors import BenchError


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
                    {"CUDA_VISIBLE_DEVICES": place} if place else None,
                    self._keep,
                )
                if not outcome.died or self.interrupted.is_set():
                    break
            return outcome
        finally:
            self.places.put(place)


def _gpus(count: int) -> list[str]:
    """Return the GPUs of this machine in groups of `count`, as CUDA names them. Raises BenchError
    where there is no group.
    """
    import torch

    there = torch.cuda.device_count()
    groups = [range(first, first + count) for first in range(0, there - count + 1, count)]
    if not groups:
        raise BenchError(
            f"a cell asks for {count} GPUs, and this machine has {there}", "give a smaller --gpus"
        )
    return [",".join(map(str, group)) for group in groups]
