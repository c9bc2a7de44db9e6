"""The verb `export`: write a trained head in the layout that EAGLE and FSPAD publish."""

from __future__ import annotations

import argparse
from pathlib import Path

from fspad_bench.errors import BenchError
from fspad_bench.util.paths import user_path


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
    from fspad_bench.drafts.head import load_head
    from fspad_bench.drafts.published import write_published
    from fspad_bench.models.load import load_target

    quiet_libraries()
    target = load_target(arguments.target, dtype="bfloat16")
    head = load_head(user_path(arguments.head), target)
    draft_size = len(head.vocabulary)
    full_size = target.config.vocab_size
    if draft_size < full_size:
        raise BenchError(
            f"{arguments.head} drafts {draft_size} of {full_size} tokens; that layout needs all",
            f"train a head with --draft-vocabulary {full_size}",
        )
    write_published(head.network, target.embedding.weight, arguments.output)
    return 0
