"""The verb `invariance`: name the first operation that gives a row other bits in company.

`--served URL` asks an engine the same from outside, where operations have no names.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from fspad_bench.cli.arguments import (
    add_device,
    add_dtype,
    add_format,
    add_threads,
    positive,
    sizes,
)
from fspad_bench.util.terminal import show

if TYPE_CHECKING:
    from fspad_bench.engine.target import TransformersTarget
    from fspad_bench.lossless.invariance.probe import Subject
    from fspad_bench.lossless.invariance.problem import Problem

SUBJECTS = ("transformers", "ours", "kernels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        default="smollm2-135m",
        help="preset, folder, hub id, or random:SHAPE[:LAYERS] (default: %(default)s)",
    )
    parser.add_argument(
        "--of",
        choices=[*SUBJECTS, "all"],
        default="all",
        help="whose rows: transformers' forward, our own, or single kernels (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=sizes,
        default=(1, 2, 3, 4, 8, 16, 32, 64),
        metavar="N,...",
        help="rows that are asked together (default: 1,2,3,4,8,16,32,64)",
    )
    parser.add_argument(
        "--prefix",
        type=positive,
        default=200,
        metavar="N",
        help="cached tokens before the rows (default: %(default)s)",
    )
    _add_served(parser.add_argument_group("a served engine"))
    add_dtype(parser, ["float32", "bfloat16", "float16", "float64"])
    add_device(parser)
    add_threads(parser)
    add_format(parser, ["text", "json"])


def _add_served(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--served",
        metavar="URL",
        help="ask the engine behind this OpenAI API instead, with the target's tokenizer",
    )
    group.add_argument("--model", help="one of the server's models (default: its first)")
    group.add_argument(
        "--concurrency",
        type=sizes,
        default=(2, 4, 8, 16),
        metavar="N,...",
        help="requests sent at once (default: 2,4,8,16)",
    )
    group.add_argument(
        "--depths", type=sizes, default=(), metavar="N,...", help="draft depths to ask again at"
    )
    group.add_argument(
        "--depth-extra",
        default='{"num_speculative_tokens": N}',
        metavar="JSON",
        help="what sets a request's depth, N standing for it (default: %(default)s)",
    )
    group.add_argument("--dialect", help="how the server is spoken to (default: told by it)")
    group.add_argument(
        "--limit", type=positive, default=8, metavar="N", help="prompts (default: %(default)s)"
    )
    group.add_argument("--max-new-tokens", type=positive, default=64, metavar="N")


def run(arguments: argparse.Namespace) -> int:
    if arguments.served:
        return _ask_served(arguments)
    return _probe(arguments)


def _ask_served(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from fspad_bench.benchmark.tasks import load, load_card
    from fspad_bench.cli.environment import quiet_libraries
    from fspad_bench.models.tokenizers import load_tokenizer
    from fspad_bench.serving import invariance
    from fspad_bench.serving.engine import depth_body
    from fspad_bench.serving.openai import OpenAIEngine

    quiet_libraries()
    others = {
        f"depth {depth}": depth_body(arguments.depth_extra, depth) for depth in arguments.depths
    }
    tokenizer = load_tokenizer(arguments.target)
    engine = OpenAIEngine(
        arguments.served,
        model=arguments.model,
        dialect=arguments.dialect,
        text_of=tokenizer.decode,
    )
    questions = load(load_card("mt_bench"), "bundled", arguments.limit).questions
    prompts = [tuple(tokenizer.encode(question.turns[0])) for question in questions]
    findings = invariance.ask_in_company(
        engine,
        prompts,
        concurrencies=arguments.concurrency,
        others=others,
        max_tokens=arguments.max_new_tokens,
    )
    if arguments.format == "json":
        fields = [asdict(finding) | {"same": finding.same} for finding in findings]
        about = {"served": engine.facts(), "kept": invariance.kept(findings)}
        show(json.dumps({**about, "findings": fields}, indent=2))
    else:
        show(invariance.render(findings))
    return 0 if invariance.kept(findings) else 1


def _probe(arguments: argparse.Namespace) -> int:
    import torch

    from fspad_bench.cli.environment import quiet_libraries, use_threads
    from fspad_bench.lossless.invariance.probe import kept, probe
    from fspad_bench.lossless.invariance.problem import problem_for
    from fspad_bench.lossless.invariance.report import as_json, render
    from fspad_bench.util.progress import Progress

    quiet_libraries()
    use_threads(arguments.threads)
    target = _target(arguments)
    problem = problem_for(target, arguments.prefix, arguments.rows)
    with torch.inference_mode():
        subjects = _subjects(arguments.of, target, problem)
    findings = []
    total = sum(len(subject.kinds) for subject in subjects) * len(arguments.rows)
    with Progress("rows in company", total) as progress:
        for finding in probe(subjects, arguments.rows):
            findings.append(finding)
            progress.advance()
    setting: dict[str, object] = {
        "target": target.name,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": target.gpu or target.device.type,
        "forward": target.forward_name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "prefix": len(problem.prefix),
    }
    show((as_json if arguments.format == "json" else render)(findings, setting))
    return 0 if kept(findings) else 1


def _target(arguments: argparse.Namespace) -> TransformersTarget:
    from fspad_bench.models.load import load_target
    from fspad_bench.models.presets import RANDOM
    from fspad_bench.models.random_weights import random_target

    build = random_target if arguments.target.startswith(RANDOM) else load_target
    return build(arguments.target, device=arguments.device, dtype=arguments.dtype)


def _subjects(of: str, target: TransformersTarget, problem: Problem) -> list[Subject]:
    from fspad_bench.lossless.invariance.kernels import kernel_subjects
    from fspad_bench.lossless.invariance.ours import own_subjects
    from fspad_bench.lossless.invariance.stock import stock_subject

    subjects: list[Subject] = []
    if of in ("transformers", "all"):
        subjects.append(stock_subject(target, problem))
    if of in ("ours", "all"):
        subjects += own_subjects(target, problem)
    if of in ("kernels", "all"):
        subjects += kernel_subjects(target, problem)
    return subjects
