"""The executor `ray`: cells of a sweep on a Ray cluster, or on this machine where there is none.

Workers need the package and the target, and no folder in common: records come back with the result.
A worker or a node that dies is replaced, and its cell begins anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fspad_bench.benchmark.sweep import Cell, Outcome, Resources, perform
from fspad_bench.util.errors import BenchError
from fspad_bench.util.strangers import first_line_of


class CellKilledError(Exception):
    """A cell's process was killed; its worker lives."""


class RayExecutor:
    """Reserves processors and GPUs for each cell."""

    def __init__(self, resources: Resources, output: Path) -> None:
        try:
            import ray
        except ImportError as error:
            raise BenchError(
                "Ray is not installed", "pip install 'fspad-bench[ray]', or leave --on out"
            ) from error
        self.ray: Any = ray
        self.resources = resources

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        """Start Ray, or join the cluster that RAY_ADDRESS names, and run every cell."""
        mine = not self.ray.is_initialized()
        if mine:
            self.ray.init(log_to_driver=False, **self._settings())
        try:
            yield from self._run(cells)
        finally:
            if mine:
                self.ray.shutdown()

    def _settings(self) -> dict[str, int]:
        """Return the size of a Ray of our own; a cluster has its own size, and takes none."""
        workers = self.resources.workers
        if not workers or os.environ.get("RAY_ADDRESS"):
            return {}
        return {"num_cpus": workers * self.resources.cpus}

    def _run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        task = self.ray.remote(
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            max_retries=self.resources.retries,
            retry_exceptions=[CellKilledError],
        )(performed)
        queue = list(cells)
        at_once = self.resources.workers or len(queue)
        waiting = {task.remote(cell): cell for cell in queue[:at_once]}
        while waiting:
            (done, *_), _ = self.ray.wait(list(waiting))
            outcome = self._outcome(waiting.pop(done), done)
            waiting |= {task.remote(cell): cell for cell in queue[at_once : at_once + 1]}
            at_once += 1
            yield outcome

    def _outcome(self, cell: Cell, done: Any) -> Outcome:
        """Return how a cell ended; one whose workers all died has the code of a killed process."""
        try:
            return self.ray.get(done)
        except self.ray.exceptions.RayError as error:
            return Outcome(cell, -9, f"its workers died: {first_line_of(error)}")


def performed(cell: Cell) -> Outcome:
    """Run a cell on a worker. Raises CellKilledError where it was killed, so that it is tried
    again.
    """
    with TemporaryDirectory() as folder:
        outcome = perform(cell, Path(folder))
        if outcome.died:
            raise CellKilledError(f"{cell.title}: signal {outcome.signal}")
        files = {path.name: path.read_text("utf-8") for path in Path(folder).glob("*.jsonl")}
        return Outcome(cell, outcome.code, outcome.words, files)
