"""The verb `check`: hold baselines to what their files say: identity, tokens per step."""

from __future__ import annotations

import argparse
from pathlib import Path

from fspad_bench.cli.arguments import REPORT_FORMATS, add_format
from fspad_bench.util.terminal import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "baselines", nargs="*", type=Path, help="YAML files (default: those of this suite)"
    )
    parser.add_argument("--target", help="check only the expectations on this target")
    parser.add_argument("--decoder", help="check only these decoders, comma-separated")
    parser.add_argument(
        "--update",
        action="store_true",
        help="measure these expectations anew, and write what an unchanged decoder reaches",
    )
    add_format(parser, REPORT_FORMATS)


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.cli.environment import quiet_libraries
    from fspad_bench.decoders.options import split_names
    from fspad_bench.lossless.baselines import check_baselines, require_runs
    from fspad_bench.lossless.checks import passed
    from fspad_bench.lossless.report import render

    quiet_libraries()
    decoders = split_names(arguments.decoder) if arguments.decoder else None
    if arguments.update:
        return _update(arguments.baselines, decoders, arguments.target)
    part = check_baselines(arguments.baselines, decoders, arguments.target)
    show(render([part], arguments.format))
    require_runs(part)
    return 0 if passed([part]) else 1


def _update(paths: list[Path], decoders: list[str] | None, target: str | None) -> int:
    """Write what was measured, and say what has changed; return 1 if something could not be."""
    from fspad_bench.lossless.baselines import update_baselines

    updates = update_baselines(paths, decoders, target)
    for update in updates:
        show(str(update))
    return int(any(update.bound is None for update in updates))
