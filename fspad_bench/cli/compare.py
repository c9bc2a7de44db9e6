"""The verb `compare`: print which rows of two sets of records differ beyond noise."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fspad_bench.cli.arguments import COMPARISON_FORMATS, add_format
from fspad_bench.cli.table import record_files
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import note, show

if TYPE_CHECKING:
    from fspad_bench.benchmark.matching import Side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", nargs="+", type=Path, help="records, or folders of them: A, then B")
    parser.add_argument(
        "--to",
        nargs="+",
        type=Path,
        metavar="B",
        help="records of B, or folders; all before are of A",
    )
    add_format(parser, COMPARISON_FORMATS)


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.benchmark.compare import compare
    from fspad_bench.benchmark.compare_report import render

    a, b = _sides(arguments.a, arguments.to)
    comparison = compare(_side(a), _side(b))
    show(render(comparison, arguments.format))
    return int(comparison.worse)


def _sides(given: list[Path], to: list[Path] | None) -> tuple[list[Path], list[Path]]:
    if to:
        return given, to
    if len(given) != 2:
        raise BenchError(
            f"{len(given)} records to compare: which are A, and which B?",
            "name one of each, or several: `compare A A --to B B`",
        )
    return given[:1], given[1:]


def _side(paths: list[Path]) -> Side:
    """Read one side. Raises BenchError for a damaged record: what is missing would look equal."""
    from fspad_bench.benchmark.matching import Side
    from fspad_bench.benchmark.record import REPAIR, Records

    every = {path: Records.read(path) for path in record_files(paths)}
    for records in every.values():
        if records.damaged:
            raise BenchError(records.damaged[0], REPAIR)
    side = Side(list(every.values()))
    if not side.rows:
        raise BenchError(
            f"{paths[0]} holds no generation yet", "compare runs that have measured something"
        )
    for path, records in every.items():
        if not records.complete:
            note(f"note: {path} is not finished: only what it holds is compared")
    return side
