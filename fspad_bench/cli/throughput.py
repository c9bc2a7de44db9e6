"""The verb `throughput`: measure tokens a second of several requests at once, vanilla beside every
decoder, and print the batch size from which on speculation should be switched off.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fspad_bench.cli.arguments import (
    add_decoder_options,
    add_device,
    add_dtype,
    add_format,
    add_samples,
    add_target,
    add_threads,
    sizes,
    whole,
)
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import show

if TYPE_CHECKING:
    from fspad_bench.core.shared_loop import Question
    from fspad_bench.decoders.build import Decoder
    from fspad_bench.engine.target import TransformersTarget

FORMATS = ["text", "markdown", "json"]
LARGEST_BATCH = 256
FAILED = 1  # the exit code where a request got other tokens than alone, and rounding is not why


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder",
        default="fspad",
        help="names, name@preset or module:Class, comma-separated; vanilla always runs "
        "(default: %(default)s)",
    )
    add_target(parser)
    add_decoder_options(parser)
    parser.add_argument(
        "--batch",
        type=sizes,
        default=(1, 2, 4, 8, 16),
        metavar="N,...",
        help="numbers of requests at once (default: 1,2,4,8,16)",
    )
    parser.add_argument(
        "--speculate-up-to",
        type=whole,
        metavar="N",
        help="draft nothing in rounds of more requests (default: always draft)",
    )
    add_samples(parser, max_new_tokens=48)
    parser.add_argument("--seed", type=int, default=0)
    add_dtype(parser, ["float32", "bfloat16", "float16", "float64"])
    add_device(parser)
    add_threads(parser)
    add_format(parser, FORMATS)


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.cli.environment import quiet_libraries, use_threads
    from fspad_bench.models.load import load_target
    from fspad_bench.profiling.throughput import measure

    quiet_libraries()
    batches = sorted(set(arguments.batch))
    if batches[-1] > LARGEST_BATCH:
        raise BenchError(f"--batch {batches[-1]} is too large", f"at most {LARGEST_BATCH}")
    labels, options = _decoders(arguments)
    use_threads(arguments.threads)
    target = load_target(arguments.target, device=arguments.device, dtype=arguments.dtype)
    questions = _questions(arguments, target)
    decoders = _built(labels, target, options)
    measured = measure(target, decoders, questions, batches, arguments.speculate_up_to)
    if arguments.format == "json":
        from fspad_bench.profiling.throughput_table import facts

        _show_json({**_settings(arguments, target, decoders), **facts(measured)})
    else:
        from fspad_bench.profiling.throughput_table import render

        show(render(measured, is_markdown=arguments.format == "markdown"))
    return FAILED if measured.is_lossy else 0


def _decoders(arguments: argparse.Namespace) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Return the labels, vanilla first, and the options of decoders."""
    from fspad_bench.benchmark.record import VANILLA
    from fspad_bench.decoders.build import check_options
    from fspad_bench.decoders.options import read_options, split_names

    others = [name for name in split_names(arguments.decoder) if name != VANILLA]
    labels = [VANILLA, *others]
    options = read_options(arguments.options)
    check_options(labels, options)
    return labels, options


def _built(
    labels: list[str], target: TransformersTarget, options: dict[str, dict[str, str]]
) -> list[Decoder]:
    """Build the decoders; those that may not share a batch are refused before any is measured."""
    from fspad_bench.decoders.batching import check_may_share
    from fspad_bench.decoders.build import build_decoder

    decoders = [build_decoder(label, target, options) for label in labels]
    for decoder in decoders:
        check_may_share(decoder)
    return decoders


def _questions(arguments: argparse.Namespace, target: TransformersTarget) -> list[Question]:
    """Return the first turns of bundled samples, with the noise that `run` gives them."""
    from fspad_bench.benchmark.prompts import prompts_of
    from fspad_bench.benchmark.tasks import load, load_card
    from fspad_bench.core.protocols import Limit
    from fspad_bench.core.sampling import Sampler, stream_of
    from fspad_bench.core.shared_loop import Question

    card = load_card(arguments.task)
    samples = load(card, "bundled", arguments.limit)
    prompts = prompts_of(target, arguments.target, [card]).of(card)
    limit = Limit(arguments.max_new_tokens, target.stop_ids, prompts.stop(card))
    sampler = Sampler(arguments.temperature, seed=arguments.seed)
    return [
        Question(
            prompts.ask(question.turns[0]),
            sampler.streamed(stream_of(card.task, question.id, 0)),
            limit,
        )
        for question in samples.questions
    ]


def _settings(
    arguments: argparse.Namespace, target: TransformersTarget, decoders: list[Decoder]
) -> dict[str, Any]:
    """Return what was measured, and where."""
    import torch

    from fspad_bench.util import machine

    names = ("task", "max_new_tokens", "temperature", "seed", "speculate_up_to")
    return {
        "target": target.name,
        "target_identity": target.identity,
        "dtype": str(target.dtype).removeprefix("torch."),
        "forward": target.forward_name,
        "machine": machine.describe(target.gpu),
        "threads": torch.get_num_threads(),
        **{name: getattr(arguments, name) for name in names},
        "decoders": {decoder.label: decoder.options for decoder in decoders},
    }


def _show_json(content: dict[str, Any]) -> None:
    import json

    show(json.dumps(content, indent=2, allow_nan=False))
