"""The verb `explain`: say why the decoders of existing records are as fast as they are."""

from __future__ import annotations

import argparse
from pathlib import Path

from fspad_bench.cli.arguments import EXPLANATION_FORMATS, add_format
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import note, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", nargs="+", type=Path, help="record files, or folders of them")
    parser.add_argument(
        "--decoder",
        default="",
        help="comma-separated decoders, each compared with the next (default: all)",
    )
    parser.add_argument(
        "--without-loops", action="store_true", help="leave out outputs that end in a loop"
    )
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also write SVG pictures")
    add_format(parser, EXPLANATION_FORMATS)


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.analysis.explain import reports
    from fspad_bench.analysis.pictures import draw
    from fspad_bench.analysis.text import render
    from fspad_bench.cli.table import read_records, record_files
    from fspad_bench.util.paths import user_path

    records = read_records(record_files(arguments.records))
    if not records.samples:
        raise BenchError(
            f"{arguments.records[0]} holds no generation yet",
            "repeat the same `fspad-bench run` command to resume it",
        )
    wanted = [name.strip() for name in arguments.decoder.split(",") if name.strip()]
    every = reports(records, wanted, without_loops=arguments.without_loops)
    if arguments.pictures:
        for picture in draw(every, user_path(arguments.pictures)):
            note(f"written: {picture}")
    show(render(every, arguments.format))
    return 0
