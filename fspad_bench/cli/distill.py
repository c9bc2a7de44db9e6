"""The verb `distill`: write a data set of a target's own conversations, for training drafts."""

from __future__ import annotations

import argparse
from pathlib import Path

from fspad_bench.cli.arguments import (
    LEARNING,
    add_device,
    add_dtype,
    add_target,
    add_threads,
    count,
    positive,
    whole,
)
from fspad_bench.util.terminal import note, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="folder of the data set; an unfinished one is resumed",
    )
    parser.add_argument(
        "--tokens",
        type=count,
        default=1_000_000,
        metavar="N[k|M]",
        help="answer tokens to generate (default: 1M)",
    )
    parser.add_argument(
        "--of",
        metavar="DATA",
        help="import conversations instead: ShareGPT JSON, JSONL, hub:OWNER/NAME@COMMIT",
    )
    parser.add_argument(
        "--regenerate",
        action="store_true",
        help="with --of: replace the answers by the target's own",
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="SOURCE",
        help="further prompts for the overlap report, besides the bundled ones: "
        "hub, or spec-bench=FILE",
    )
    parser.add_argument(
        "--rows", type=positive, default=64, help="conversations at once (default: %(default)s)"
    )
    parser.add_argument(
        "--shard", type=positive, default=128, help="conversations per file (default: %(default)s)"
    )
    parser.add_argument("--seed", type=whole, default=0)
    add_dtype(parser, ["float32", "bfloat16", "float64"], LEARNING)
    add_device(parser)
    add_threads(parser)


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.benchmark.tasks import prompts_of
    from fspad_bench.cli.environment import quiet_libraries
    from fspad_bench.distill import job as distilling

    quiet_libraries()
    job = distilling.DistillJob(
        output=arguments.output,
        target=arguments.target,
        tokens=arguments.tokens,
        given=arguments.of or "",
        regenerate=arguments.regenerate,
        prompts=prompts_of(["bundled", *arguments.against]),
        slots=arguments.rows,
        shard=arguments.shard,
        seed=arguments.seed,
        dtype=arguments.dtype,
        device=arguments.device,
        threads=arguments.threads,
    )
    distilled = distilling.run(job)
    if left_out := distilled.left_out:
        note(f"left out {len(left_out)} rows, the first {left_out[0]}")
    show("\n".join(distilled.overlap_summary()))
    return 0
