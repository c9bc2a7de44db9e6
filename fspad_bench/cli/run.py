"""The verb `run`: measure decoders on tasks and print the table of the record."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

from fspad_bench.cli import table
from fspad_bench.cli.arguments import (
    TABLE_FORMATS,
    add_decoder_options,
    add_device,
    add_dtype,
    add_format,
    add_target,
    add_threads,
    numbers,
    positive,
)
from fspad_bench.util.terminal import note


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_subject(parser.add_argument_group("subject"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_place(parser.add_argument_group("machine and output"))
    add_format(parser, TABLE_FORMATS)


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.benchmark.runner import VANILLA, Plan, Runner
    from fspad_bench.benchmark.tasks import card_names
    from fspad_bench.cli.environment import quiet_libraries
    from fspad_bench.decoders.options import read_options, split_names

    quiet_libraries()
    tasks = list(card_names()) if arguments.task == "all" else split_names(arguments.task)
    others = [name for name in split_names(arguments.decoder) if name != VANILLA]
    plan = Plan(
        decoders=[VANILLA, *others],
        tasks=tasks,
        target=arguments.target,
        options=read_options(arguments.options),
        data=arguments.data,
        limit=arguments.limit,
        temperatures=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
        dtype=arguments.dtype,
        device=arguments.device,
        threads=arguments.threads,
        log_samples=arguments.log_samples,
    )
    with redirect_stdout(sys.stderr):  # decoders may print; stdout is for the table
        path = Runner(plan, arguments.output).run()
    note(f"record: {path}")
    return table.print_table([path], arguments.format)


def _add_subject(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--decoder",
        required=True,
        help="names, name@preset or module:Class, comma-separated; vanilla always runs",
    )
    group.add_argument(
        "--task", required=True, help="names or card files (my_task.yaml), comma-separated, or all"
    )
    add_target(group)
    add_decoder_options(group)
    group.add_argument(
        "--data",
        default="auto",
        help="auto, hub, bundled, spec-bench=FILE, or a JSONL file (default: %(default)s)",
    )
    group.add_argument(
        "--limit",
        type=_limit,
        default=16,
        metavar="N|all",
        help="samples per task, evenly spaced (default: %(default)s)",
    )


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--temperature",
        type=numbers,
        default=[0.0],
        metavar="T[,T]",
        help="0 is greedy (default: 0)",
    )
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument("--top-k", type=int, default=0)
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--max-new-tokens", type=positive, help="default: the task's own")


def _add_place(group: argparse._ArgumentGroup) -> None:
    add_dtype(group, ["float32", "bfloat16", "float16", "float64"])
    add_device(group)
    add_threads(group)
    group.add_argument(
        "--output",
        type=Path,
        default=Path("fspad-results"),
        help="folder of records (default: %(default)s)",
    )
    group.add_argument(
        "--log-samples",
        action="store_true",
        help="keep texts in the record; show where outputs diverge",
    )


def _limit(text: str) -> int | None:
    return None if text == "all" else positive(text)
