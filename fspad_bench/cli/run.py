"""The verb `run`: measure decoders on tasks and print the table of the record."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fspad_bench.benchmark.plan import PRECISIONS, Plan
from fspad_bench.benchmark.shards import of_process
from fspad_bench.cli import table
from fspad_bench.cli.arguments import (
    TABLE_FORMATS,
    add_decoder_options,
    add_device,
    add_dtype,
    add_format,
    add_penalties,
    add_target,
    add_threads,
    numbers,
    positive,
    remember_given,
)
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import note, show

if TYPE_CHECKING:
    from fspad_bench.benchmark.record import Key
    from fspad_bench.benchmark.repeat import Reference

BESIDE_A_PLAN = {"--output", "--format"}
RENAMED = {"decoders": "decoder", "tasks": "task", "temperatures": "temperature"}
FLAGS = {field.name: RENAMED.get(field.name, field.name) for field in fields(Plan)}
"""Field of a plan -> the argument that gives it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a run that is known")
    group.add_argument(
        "--like",
        type=Path,
        metavar="RECORD",
        help="repeat the run of a record; other flags take the place of its own",
    )
    group.add_argument(
        "--plan",
        metavar="FILE|-",
        help="run a plan in JSON, as a record's first line has it, alone; - reads it from stdin",
    )
    add_plan_arguments(parser)


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is measured, where, and how it is printed."""
    remember_given(parser)
    _add_subject(parser.add_argument_group("subject"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_place(parser.add_argument_group("machine and output"))
    add_format(parser, TABLE_FORMATS)


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.benchmark.runner import Runner
    from fspad_bench.cli.environment import quiet_libraries

    quiet_libraries()
    if arguments.like is not None and not arguments.plan:
        return _repeat(arguments)
    plan = of_process(_read_plan(arguments) if arguments.plan else plan_from(arguments))
    path = Runner(plan, arguments.output).run()
    note(f"record: {path}")
    return table.print_table([path], arguments.format)


def plan_from(arguments: argparse.Namespace) -> Plan:
    """Return the plan that the arguments ask for. Raises BenchError where they are too few."""
    if missing := [f"--{name}" for name in ("decoder", "task") if name not in arguments.given]:
        raise BenchError(
            f"the following arguments are required: {', '.join(missing)}",
            "`--help` lists the arguments",
        )
    return Plan(**_chosen(arguments, arguments.data))


def _read_plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan in a JSON file, or on stdin. Raises BenchError for flags that it excludes."""
    from fspad_bench.benchmark.repeat import given_plan
    from fspad_bench.util.paths import user_path
    from fspad_bench.util.text import file_bytes, json_value

    if more := sorted(_flags(arguments) - BESIDE_A_PLAN):
        raise BenchError(
            f"--plan says all, and {more[0]} is given beside it", "leave one of them out"
        )
    name = arguments.plan
    content = sys.stdin.buffer.read() if name == "-" else file_bytes(user_path(name))
    try:
        return given_plan(json_value(content))
    except ValueError as error:
        raise BenchError(
            f"{name} holds no plan: {error}",
            "give a JSON object like `plan` in the first line of a record",
        ) from error


def _flags(arguments: argparse.Namespace) -> set[str]:
    """Return the flags that the user gave."""
    stored = {f"--{name.replace('_', '-')}" for name in arguments.given}
    others = {
        "--like": arguments.like is not None,
        "-D": bool(arguments.options),
        "--no-aa": not arguments.aa,
        "--log-samples": arguments.log_samples,
    }
    return stored | {flag for flag, is_given in others.items() if is_given}


def _chosen(arguments: argparse.Namespace, data: str) -> dict[str, Any]:
    """Return the fields of a plan as the arguments say, defaults included.

    `data`: the source whose tasks `--task all` stands for.
    """
    from fspad_bench.benchmark.record import VANILLA
    from fspad_bench.benchmark.tasks import tasks_of
    from fspad_bench.decoders.options import read_options, split_names

    chosen = {name: getattr(arguments, flag) for name, flag in FLAGS.items()}
    chosen["options"] = read_options(arguments.options)
    if arguments.decoder is not None:
        others = [name for name in split_names(arguments.decoder) if name != VANILLA]
        chosen["decoders"] = [VANILLA, *others]
    if arguments.task is not None:
        chosen["tasks"] = tasks_of(data) if arguments.task == "all" else split_names(arguments.task)
    return chosen


def _given(arguments: argparse.Namespace) -> set[str]:
    """Return the fields of a plan that the user gave."""
    given = {name for name, flag in FLAGS.items() if flag in arguments.given}
    given |= {name for name in ("options", "log_samples") if getattr(arguments, name)}
    return given if arguments.aa else given | {"aa"}


def _repeat(arguments: argparse.Namespace) -> int:
    """Run the plan of a record with what the user gives in its place, and compare the two."""
    from fspad_bench.benchmark.record import Records
    from fspad_bench.benchmark.repeat import Reference, overridden, side_by_side
    from fspad_bench.util.paths import user_path

    reference = Reference.read(table.record_file(user_path(arguments.like)))
    given = _given(arguments)
    if "data" not in given:
        reference.check_file(reference.plan.data)
    chosen = _chosen(arguments, arguments.data if "data" in given else reference.plan.data)
    plan = of_process(reference.changed({name: chosen[name] for name in given}))
    reference.check_output(arguments.output)
    note(f"repeating {reference.path}")
    for line in reference.records.damaged:
        note(f"left out: {line}")
    for line in overridden(reference.plan, plan):
        note(f"  {line}")
    path = _measured(reference, plan, given, arguments.output)
    note(f"record: {path}")
    code = table.print_table([path], arguments.format)
    is_text = arguments.format in ("text", "markdown")
    compared = side_by_side(
        reference, Records.read(path), is_markdown=arguments.format == "markdown"
    )
    title = f"beside {reference.path.name}"
    for line in ("", title, "", *compared.splitlines()):
        (show if is_text else note)(line)
    return code


def _measured(reference: Reference, plan: Plan, given: set[str], output: Path) -> Path:
    """Run a plan like the reference's; say what differs here before anything is measured."""
    from fspad_bench.benchmark.repeat import differences
    from fspad_bench.benchmark.runner import Runner

    def tell(keys: list[Key]) -> None:
        lines = differences(reference, keys) or ["nothing that decides a figure differs"]
        for line in lines:
            note(f"  {line}")

    try:
        runner = Runner(plan, output)
    except BenchError as error:
        raise reference.blamed(error) from error
    try:
        reference.check_questions(runner.data, given)
        return runner.run(tell)
    finally:
        runner.record.release()


def _add_subject(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--decoder",
        help="names, name@preset, module:Class or served:URL, comma-separated; vanilla always runs",
    )
    group.add_argument(
        "--task", help="names, card files (my_task.yaml) or lm_eval:NAME, comma-separated, or all"
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
    group.add_argument(
        "--repeats",
        type=positive,
        default=1,
        metavar="N",
        help="times that the whole set of generations is made (default: %(default)s)",
    )
    group.add_argument(
        "--shard",
        default="",
        metavar="K/N",
        help="measure every N-th question, from the K-th on (default: all, or the share of this "
        "process under `accelerate launch`)",
    )
    group.add_argument(
        "--no-aa",
        action="store_false",
        dest="aa",
        help="leave out the A/A run, vanilla measured twice, which gives the noise floor",
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
    add_penalties(group)
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--max-new-tokens", type=positive, help="default: the task's own")


def _add_place(group: argparse._ArgumentGroup) -> None:
    add_dtype(group, PRECISIONS)
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
