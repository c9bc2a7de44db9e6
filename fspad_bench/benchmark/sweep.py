"""Sweeps: one run for each decoder, task and target, on whatever machines there are.

- A cell is a run of its own, vanilla included, in a process and a folder of its own. So its
  speedups are paired on the machine that measured them, and nothing of it reaches another cell.
- Where cells run is an executor's business (entry-point group `fspad_bench.executors`): processes
  of this machine, Ray, Slurm.
- A cell that is complete is not run again: the same command goes on where a sweep stopped.
- An executor that is interrupted ends its cells: none goes on when the sweep's command has ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.record import VANILLA
from fspad_bench.benchmark.record_file import header_of, is_complete
from fspad_bench.util import registry

LAST_LINES = 3  # of what a cell that failed has said
SIGNALLED = {143: 15, 129: 1}  # exit codes of a run that SIGTERM or SIGHUP ended -> the signal


@dataclass(frozen=True)
class Cell:
    """The run of one decoder on one task of one target."""

    plan: Plan

    @property
    def title(self) -> str:
        decoders = [name for name in self.plan.decoders if name != VANILLA] or [VANILLA]
        return f"{', '.join(decoders)} on {', '.join(self.plan.tasks)} of {self.plan.target}"

    @property
    def name(self) -> str:
        """Return the name of its folder: what it is, and a hash of all its settings."""
        digest = hashlib.sha256(self.json.encode()).hexdigest()[:8]
        words = re.sub(r"[^\w.-]+", "-", self.title.replace(" on ", "-").replace(" of ", "-"))
        return f"{words[:80]}-{digest}"

    @property
    def json(self) -> str:
        return json.dumps(asdict(self.plan), sort_keys=True)


@dataclass(frozen=True)
class Outcome:
    """The end of a cell: the exit code of its run, negative where a signal ended it, and its last
    words.

    `files` holds its records, name -> content, where they are not in the sweep's folder already.
    """

    cell: Cell
    code: int
    words: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def signal(self) -> int:
        """The signal that ended it, also where it wrote what it knew before; 0 without one."""
        return -self.code if self.code < 0 else SIGNALLED.get(self.code, 0)

    @property
    def died(self) -> bool:
        """Whether it was killed: another try may end otherwise."""
        return self.signal > 0

    @property
    def measured(self) -> bool:
        return self.code in (0, 1)


@dataclass(frozen=True)
class Resources:
    """The resources of each cell, and how often one that was killed is tried again.

    `workers` cells run at once; 0 leaves their number to the executor. `settings` are the
    executor's own, such as a partition of Slurm.
    """

    workers: int = 0
    cpus: int = 1
    gpus: int = 0
    retries: int = 2
    settings: Mapping[str, str] = field(default_factory=dict)


class Executor(Protocol):
    """An executor, which runs cells."""

    def __init__(self, resources: Resources, output: Path) -> None: ...

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        """Run every cell, and yield how each ended as it ends."""


def cells(plan: Plan, targets: Sequence[str], cpus: int) -> list[Cell]:
    """Return a cell for each decoder, task and target of a plan, whose threads are `cpus` unless it
    names their number.
    """
    decoders = [name for name in plan.decoders if name != VANILLA] or [VANILLA]
    threads = plan.threads or cpus
    return [
        Cell(
            replace(
                plan,
                decoders=list(dict.fromkeys([VANILLA, decoder])),
                tasks=[task],
                target=target,
                threads=threads,
                options={name: o for name, o in plan.options.items() if _is_of(name, decoder)},
            )
        )
        for target in targets
        for task in plan.tasks
        for decoder in decoders
    ]


def _is_of(option: str, decoder: str) -> bool:
    from fspad_bench.decoders.label import Label

    return option in Label.of(decoder).option_prefixes


def executor(name: str) -> type[Executor]:
    """Return a registered executor. Raises BenchError with the near match."""
    return registry.resolve(registry.EXECUTORS, name)


def is_finished(cell: Cell, output: Path) -> bool:
    """Return whether a complete record of a cell stands in its folder."""
    return record_of(cell, output) is not None


def record_of(cell: Cell, output: Path) -> Path | None:
    """Return the newest complete record of a cell, None without one.

    One that an older version began, and that no run continues, may stand beside it.
    """
    plan = asdict(cell.plan)
    for path in sorted((output / cell.name).glob("*.jsonl"), reverse=True):
        if header_of(path).get("plan") == plan and is_complete(path):
            return path
    return None


def perform(
    cell: Cell,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    started: Callable[[subprocess.Popen[str]], None] | None = None,
) -> Outcome:
    """Run a cell in a process of its own, its record in `folder`, and return how it ended.

    `started` is given the process, so that a caller can end it.
    """
    words = [sys.executable, "-m", "fspad_bench", "run", "--plan", "-", "--output", str(folder)]
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
    ) as process:
        if started:
            started(process)
        try:
            _, stderr = process.communicate(cell.json)
        except BaseException:  # a job that is cancelled takes its cell with it
            process.terminate()
            raise
    said = [line for line in stderr.splitlines() if line.strip()]
    return Outcome(cell, process.returncode, "\n".join(said[-LAST_LINES:]))
