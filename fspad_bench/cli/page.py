"""The verb `page`: publish records as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from fspad_bench.cli.table import read_rows, record_files
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import disk_errors, write_atomically
from fspad_bench.util.terminal import show

NAME = "index.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", nargs="+", type=Path, help="record files, or folders of them")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("site"),
        metavar="FOLDER",
        help=f"the page is {NAME} there (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page; its rows may have any verdict, which it shows."""
    from fspad_bench.publishing.page import page
    from fspad_bench.publishing.sources import sources

    target = _target(arguments.output)
    paths = record_files(arguments.records)
    records, table = read_rows(paths)
    left_out = [_without_folder(line, paths) for line in records.damaged]
    text = page(table, sources(paths), left_out)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, text)
    show(f"{target}: {len(table)} rows")
    return 0


def _target(folder: Path) -> Path:
    """Return the file to write. Raises BenchError where it would replace what is not ours."""
    from fspad_bench.publishing.page import is_page

    if folder.exists() and not folder.is_dir():
        raise BenchError(f"{folder} is not a folder", "give the folder of the page with -o")
    target = folder / NAME
    if target.exists() and not is_page(target):
        raise BenchError(
            f"{target} exists and is no page of fspad-bench",
            "give another folder with -o, or move that file away",
        )
    return target


def _without_folder(line: str, paths: list[Path]) -> str:
    """Return a complaint about a record without the folders of this machine."""
    for path in paths:
        line = line.replace(str(path), path.name)
    return line
