"""The verb `export`: write a trained head in the layout that EAGLE, EAGLE-3 and FSPAD publish."""

from __future__ import annotations

import argparse
from pathlib import Path

from fspad_bench.util.paths import user_path
from fspad_bench.util.terminal import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("head", type=Path, help="folder of a trained head")
    parser.add_argument(
        "--target",
        default="smollm2-135m",
        help="the target it was trained for (default: %(default)s)",
    )
    parser.add_argument("--output", required=True, type=Path)


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.cli.environment import quiet_libraries
    from fspad_bench.drafts.head import export_head, load_head
    from fspad_bench.models.load import load_target

    quiet_libraries()
    target = load_target(arguments.target)  # in full precision: its embedding is written too
    head = load_head(user_path(arguments.head), target)
    output = user_path(arguments.output)
    lost = export_head(head, target, output)
    show(f"{output}: a head of '{head.network.architecture}' for {target.name}")
    for what in lost:
        show(f"not kept: {what}")
    return 0
