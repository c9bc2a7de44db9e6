"""The verb `sweep`: run decoders x tasks x targets, each cell where there is room for it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fspad_bench.cli import run as run_verb
from fspad_bench.cli import table
from fspad_bench.cli.arguments import positive, whole
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import note

if TYPE_CHECKING:
    from fspad_bench.benchmark.sweep import Outcome

FAILED = 1  # the exit code where a cell failed, or a row is lossy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where cells run")
    group.add_argument(
        "--on",
        default="processes",
        metavar="EXECUTOR",
        help="processes of this machine, ray, slurm, or a package's (default: %(default)s)",
    )
    group.add_argument(
        "--workers",
        type=whole,
        default=0,
        metavar="N",
        help="cells at once (default: what fits; 1 on processes without --gpus)",
    )
    group.add_argument("--cpus", type=positive, default=1, help="processors a cell (default: 1)")
    group.add_argument("--gpus", type=whole, default=0, help="GPUs a cell (default: 0)")
    group.add_argument(
        "--retries", type=whole, default=2, help="of a cell that was killed (default: 2)"
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME=VALUE",
        help="a setting of the executor, such as partition=gpu; may be repeated",
    )
    run_verb.add_plan_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.benchmark import sweep
    from fspad_bench.decoders.build import check_options
    from fspad_bench.decoders.options import split_names
    from fspad_bench.models.presets import resolve

    plan = run_verb.plan_from(arguments)
    targets = split_names(arguments.target)
    check_options(plan.decoders, plan.options)  # once, here, and not in each cell
    for target in targets:
        resolve(target)
    every = sweep.cells(plan, targets, arguments.cpus)
    output = arguments.output
    resources = sweep.Resources(
        arguments.workers,
        arguments.cpus,
        arguments.gpus,
        arguments.retries,
        _settings(arguments.settings),
    )
    executor = sweep.executor(arguments.on)(resources, output)
    waiting = [cell for cell in every if not sweep.is_finished(cell, output)]
    failed = _run(executor.run(waiting) if waiting else (), len(every), len(waiting), output)
    measured = [path for cell in every if (path := sweep.record_of(cell, output))]
    if not measured:
        raise BenchError(f"no cell of {len(every)} was measured", "see the messages above")
    return max(failed, table.print_table(measured, arguments.format))


def _run(outcomes: Iterable[Outcome], total: int, waiting: int, output: Path) -> int:
    """Tell how each cell ends, keep its records, and return 1 if one failed."""
    from fspad_bench.util.progress import Progress

    failed = 0
    with Progress("cells", total, start=total - waiting) as progress:
        for outcome in outcomes:
            _keep(outcome, output)
            progress.advance(1, outcome.cell.title)
            if not outcome.measured:
                failed = FAILED
                _tell(outcome)
    return failed


def _keep(outcome: Outcome, output: Path) -> None:
    """Write the records that came back with an outcome into the cell's folder."""
    from fspad_bench.util.paths import disk_errors, write_atomically

    folder = output / outcome.cell.name
    with disk_errors(folder):
        for name, text in outcome.files.items():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / Path(name).name, text)


def _tell(outcome: Outcome) -> None:
    how = f"killed by signal {outcome.signal}" if outcome.died else f"exit code {outcome.code}"
    note(f"failed: {outcome.cell.title}: {how}")
    for line in outcome.words.splitlines():
        note(f"  {line}")


def _settings(given: list[str]) -> dict[str, str]:
    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise BenchError(f"--set {text} is not NAME=VALUE", "write it like --set partition=gpu")
        settings[name] = value
    return settings
