"""The verb `project`: what the recorded acceptance would give at other costs.

- By default at the costs of this machine, measured now: `--target`, `--dtype`, `--threads`.
- With `--shape`, `--bandwidth` and `--tflops` at those of another target on another device.
- With `--golden FILE` published acceptance lengths are replayed instead of a record.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fspad_bench.cli.arguments import (
    above_zero,
    add_device,
    add_dtype,
    add_format,
    add_threads,
    positive,
)
from fspad_bench.cli.table import read_records, record_files
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import show

if TYPE_CHECKING:
    from fspad_bench.profiling.cost_models import Roofline
    from fspad_bench.profiling.projection import Case, Projection

GIGA = 1e9
TERA = 1e12
FORMATS = ["text", "markdown", "json"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", nargs="*", type=Path, help="record files, or folders of them")
    parser.add_argument("--against", type=Path, help="a record of those costs: states the error")
    parser.add_argument("--golden", type=Path, metavar="FILE.yaml", help="acceptance lengths")
    parser.add_argument("--model", help="of the golden file (default: all)")
    here = parser.add_argument_group("at the costs of this machine")
    here.add_argument("--target", help="preset, folder or hub id (default: the record's)")
    add_dtype(here, ["float32", "bfloat16", "float16", "float64"])
    add_device(here)
    add_threads(here)
    there = parser.add_argument_group("at the costs of another target and device")
    there.add_argument("--shape", help="such as llama3-8b, or llama3-70b:8 with eight layers")
    there.add_argument("--bandwidth", type=above_zero, metavar="GB/S", help="of its memory")
    there.add_argument("--tflops", type=above_zero, help="of its products in bfloat16")
    there.add_argument("--batch", type=positive, default=1, metavar="N", help="requests at once")
    there.add_argument(
        "--draft-cost",
        type=above_zero,
        metavar="SHARE",
        help="of a step's drafting, over a forward of one node (default: as recorded); with "
        "--golden of each drafted token",
    )
    there.add_argument(
        "--prefix", type=positive, default=512, metavar="N", help="of --golden (default: 512)"
    )
    add_format(parser, FORMATS)


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.cli.environment import quiet_libraries

    _check(arguments)
    quiet_libraries()
    if arguments.golden:
        _project_golden(arguments)
    else:
        _project_records(arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise BenchError for arguments that do not go together."""
    if bool(arguments.records) == bool(arguments.golden):
        raise BenchError("name records, or a file with --golden", "one of the two")
    if arguments.golden and arguments.against:
        raise BenchError(
            "--against is of a record: golden lengths name no decoder and no task", "leave it out"
        )
    device = [arguments.shape, arguments.bandwidth, arguments.tflops]
    if any(device) and not all(device):
        raise BenchError(
            "a roofline is a shape on a device", "give --shape, --bandwidth and --tflops"
        )
    if arguments.golden and not (arguments.shape and arguments.draft_cost):
        raise BenchError(
            "golden lengths say nothing about costs",
            "give --shape, --bandwidth, --tflops and --draft-cost",
        )
    if not arguments.shape and (arguments.batch > 1 or arguments.draft_cost):
        raise BenchError(
            "--batch and --draft-cost are of a roofline",
            "give --shape, --bandwidth and --tflops too",
        )


def _roofline(arguments: argparse.Namespace) -> Roofline:
    from fspad_bench.models.random_weights import shape
    from fspad_bench.profiling.cost_models import Roofline

    return Roofline.of(
        shape(arguments.shape),
        arguments.bandwidth * GIGA,
        arguments.tflops * TERA,
        arguments.batch,
    )


def _project_golden(arguments: argparse.Namespace) -> None:
    from fspad_bench.profiling.cost_models import Overhead
    from fspad_bench.profiling.golden import golden_speedup, read_golden, selected
    from fspad_bench.profiling.projection_table import golden_table

    curves = selected(read_golden(arguments.golden), arguments.model)
    forwards = _roofline(arguments)
    draft = arguments.draft_cost * forwards.seconds(1, arguments.prefix)
    overhead = Overhead(draft=draft)
    speedups = {
        (curve, drafts): golden_speedup(length, drafts, forwards, overhead, arguments.prefix)
        for curve in curves
        for drafts, length in curve.lengths.items()
    }
    show(golden_table(speedups, arguments.format))


def _project_records(arguments: argparse.Namespace) -> None:
    from fspad_bench.profiling.projection_table import projection_table

    cases = _cases(arguments.records)
    against = _cases([arguments.against]) if arguments.against else []
    if arguments.shape:
        projections = _at_roofline(arguments, cases, against)
    else:
        projections = _here(arguments, cases, against)
    show(projection_table(projections, arguments.format))


def _cases(paths: Sequence[Path]) -> list[Case]:
    from fspad_bench.profiling.projection import cases

    files = record_files(list(paths))
    known = cases(read_records(files))
    if not known:
        raise BenchError(
            f"{files[0]} has no decoder beside vanilla whose steps are known",
            "give a record of decoders that run in our loop",
        )
    return known


def _measured(
    arguments: argparse.Namespace,
    cases: Sequence[Case],
    against: Sequence[Case],
    target: str | None = None,
) -> list[float | None]:
    """Return the speedup that each case has in the record of --against, None where it has none."""
    from fspad_bench.profiling.projection import measured_speedups

    measured = measured_speedups(cases, against, target)
    if against and not any(measured):
        raise BenchError(
            f"{arguments.against} has no row of these decoders, tasks and temperatures with a "
            "speedup that is known",
            "give a record of the same plan",
        )
    return measured


def _at_roofline(
    arguments: argparse.Namespace, cases: Sequence[Case], against: Sequence[Case]
) -> list[Projection]:
    from fspad_bench.profiling.projection import at_roofline

    measured = _measured(arguments, cases, against)
    return at_roofline(cases, _roofline(arguments), arguments.draft_cost, measured)


def _here(
    arguments: argparse.Namespace, cases: Sequence[Case], against: Sequence[Case]
) -> list[Projection]:
    from fspad_bench.cli.environment import use_threads
    from fspad_bench.drafts.sizing.costs import is_tiny
    from fspad_bench.models.load import load_target
    from fspad_bench.profiling.cost_models import MeasuredForwards
    from fspad_bench.profiling.probe import probe
    from fspad_bench.profiling.projection import Overheads, project, recorded_options

    use_threads(arguments.threads)
    names = {case.key.target for case in cases}
    if not arguments.target and len(names) > 1:
        raise BenchError(
            f"these records are of several targets: {', '.join(sorted(names))}",
            "name one with --target",
        )
    target = load_target(
        arguments.target or names.pop(), device=arguments.device, dtype=arguments.dtype
    )
    measured = _measured(arguments, cases, against, target.name)
    if is_tiny(target):
        raise BenchError(
            f"the costs of {target.name} are made up, so that tests depend on no machine",
            "give --shape, --bandwidth and --tflops, or a record of another target",
        )
    options = recorded_options(record_files(arguments.records))
    places = [case.place for case in cases]
    probed = probe(target, places, options)
    overheads = [Overheads(probed.overheads[place], probed.vanilla(place)) for place in places]
    return project(cases, MeasuredForwards(probed.forwards), overheads, measured)
