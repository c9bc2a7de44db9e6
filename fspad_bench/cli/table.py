"""The verb `table`: print the table of existing records."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fspad_bench.cli.arguments import TABLE_FORMATS, add_format
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import note, show

if TYPE_CHECKING:
    from fspad_bench.benchmark.record import Records
    from fspad_bench.benchmark.rows import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", nargs="+", type=Path, help="record files, or folders of them")
    add_format(parser, TABLE_FORMATS)


def run(arguments: argparse.Namespace) -> int:
    return print_table(record_files(arguments.records), arguments.format)


def print_table(paths: list[Path], style: str) -> int:
    """Print the table of some records; return 1 if a row is lossy or a sample failed."""
    from fspad_bench.benchmark.divergence import divergences
    from fspad_bench.benchmark.render import render
    from fspad_bench.benchmark.rows import failed

    records, table = read_rows(paths)
    show(render(table, style))
    if style == "text":
        lossy = {row["record_key"] for row in table if row["verdict"] == "lossy"}
        for divergence in divergences(records, lossy):
            show(f"\n{divergence}")
    return int(failed(table))


def read_rows(paths: list[Path]) -> tuple[Records, list[Row]]:
    """Return the content of records and its rows; name what is damaged on stderr.

    Raises BenchError if there are no rows.
    """
    from fspad_bench.benchmark.rows import rows

    records = read_records(paths)
    table = rows(records)
    if not table:
        raise BenchError(
            f"{paths[0]} holds no generation yet",
            "repeat the same `fspad-bench run` command to resume it",
        )
    return records, table


def read_records(paths: Sequence[Path]) -> Records:
    """Return the content of record files; name what is damaged on stderr."""
    from fspad_bench.benchmark.record import Records

    records = Records.read(*paths)
    for line in records.damaged:
        note(f"left out: {line}")
    return records


def record_files(given: list[Path]) -> list[Path]:
    """Return the files given and those in the folders given.

    Raises BenchError if there are none.
    """
    paths: list[Path] = []
    for path in given:
        paths += sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    for path in paths:
        if not path.is_file():
            raise BenchError(
                f"no such record: {path}", "name a record file, or a folder that contains some"
            )
    if not paths:
        raise BenchError(f"no records in {given[0]}", "`fspad-bench run` writes records")
    return paths


def record_file(given: Path) -> Path:
    """Return the record given, or the only one of a folder. Raises BenchError if it has several."""
    paths = record_files([given])
    if len(paths) > 1:
        raise BenchError(f"{given} holds {len(paths)} records", f"name one, such as {paths[-1]}")
    return paths[0]
