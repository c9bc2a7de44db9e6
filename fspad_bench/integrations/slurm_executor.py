"""The executor `slurm`: each cell of a sweep is a job of Slurm, submitted by submitit.

The sweep's folder is on a file system that all nodes share. `--set partition=gpu` and the like are
submitit's parameters for Slurm; `--set cluster=local` runs the jobs on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fspad_bench.benchmark.sweep import Cell, Outcome, Resources, perform
from fspad_bench.util.errors import BenchError
from fspad_bench.util.strangers import first_line_of

POLL_SECONDS = 1.0


class SlurmExecutor:
    """Submits every cell at once; one whose job was killed is submitted again."""

    def __init__(self, resources: Resources, output: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            raise BenchError(
                "submitit is not installed", "pip install 'fspad-bench[slurm]', or leave --on out"
            ) from error
        self.output = output
        self.retries = resources.retries
        settings = dict(resources.settings)
        self.executor: Any = submitit.AutoExecutor(
            folder=output / "slurm", cluster=settings.pop("cluster", None)
        )
        self._parametrise(resources, settings)

    def _parametrise(self, resources: Resources, settings: dict[str, str]) -> None:
        chosen: dict[str, Any] = {f"slurm_{name}": value for name, value in settings.items()}
        if resources.workers:
            chosen["slurm_array_parallelism"] = resources.workers
        try:
            self.executor.update_parameters(
                name="fspad-bench",
                cpus_per_task=resources.cpus,
                gpus_per_node=resources.gpus,
                **chosen,
            )
        except (NameError, TypeError, ValueError) as error:
            raise BenchError(
                f"submitit refuses these settings: {first_line_of(error)}", "correct --set"
            ) from error

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        with self.executor.batch():
            jobs = [self._submit(cell) for cell in cells]
        waiting = [(cell, job, 0) for cell, job in zip(cells, jobs, strict=True)]
        try:
            yield from self._ended(waiting)
        finally:
            for _, job, _ in waiting:  # none, unless the sweep is interrupted
                job.cancel()

    def _ended(self, waiting: list[tuple[Cell, Any, int]]) -> Iterator[Outcome]:
        """Yield how each job ends, and take it out of those that are waited for."""
        while waiting:
            ended = [entry for entry in waiting if entry[1].done()]
            for entry in ended:
                waiting.remove(entry)
                cell, job, tries = entry
                outcome = _outcome(cell, job)
                if outcome.died and tries < self.retries:
                    waiting.append((cell, self._submit(cell), tries + 1))
                else:
                    yield outcome
            if waiting and not ended:
                time.sleep(POLL_SECONDS)

    def _submit(self, cell: Cell) -> Any:
        return self.executor.submit(perform, cell, self.output / cell.name)


def _outcome(cell: Cell, job: Any) -> Outcome:
    """Return how a job ended; one that left no result was killed."""
    try:
        return job.result()
    except Exception as error:  # submitit raises whatever the job left behind
        return Outcome(cell, -9, f"job {job.job_id} left no result: {first_line_of(error)}")
