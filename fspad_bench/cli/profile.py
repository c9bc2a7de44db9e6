"""The verb `profile`: show where a decoder's steps spend their time on this machine.

- By default a decoder runs on bundled samples and each part of its steps is timed.
- `--target random:SHAPE[:LAYERS]` times the forwards of random weights of that shape, nothing else.
- `--kernels` times the GPU kernels at the target's shape.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fspad_bench.cli.arguments import (
    add_decoder_options,
    add_device,
    add_dtype,
    add_samples,
    add_threads,
    picture,
    sizes,
)
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import show

if TYPE_CHECKING:
    from fspad_bench.core.sampling import Sampler


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder",
        default="fspad",
        help="name, name@preset or module:Class (default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        default="smollm2-135m",
        help="preset, folder, hub id; or random:SHAPE[:LAYERS], which times forwards only "
        "(default: %(default)s)",
    )
    _add_kernels(parser)
    add_decoder_options(parser)
    add_samples(parser, max_new_tokens=96)
    add_dtype(parser, ["float32", "bfloat16", "float16", "float64"])
    add_device(parser)
    add_threads(parser)
    parser.add_argument("--picture", type=picture, metavar="FILE.png")


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.benchmark.tasks import load, load_card
    from fspad_bench.cli.environment import quiet_libraries, use_threads
    from fspad_bench.core.sampling import Sampler
    from fspad_bench.decoders.build import check_options
    from fspad_bench.decoders.options import read_options
    from fspad_bench.models.presets import RANDOM

    quiet_libraries()
    options = read_options(arguments.options)
    check_options([arguments.decoder], options)
    sampler = Sampler(arguments.temperature, stream="profile")
    samples = load(load_card(arguments.task), "bundled", arguments.limit)
    use_threads(arguments.threads)
    is_forward = arguments.target.startswith(RANDOM) and not arguments.kernels
    if arguments.picture and is_forward:
        raise BenchError(
            f"--picture shows steps or kernels: of {arguments.target} forwards are timed",
            "leave it out, or add --kernels",
        )
    if arguments.kernels:
        _profile_kernels(arguments)
    elif is_forward:
        _profile_forward(arguments)
    else:
        questions = [question.turns[0] for question in samples.questions]
        _profile_steps(arguments, options, sampler, questions)
    return 0


def _profile_steps(
    arguments: argparse.Namespace,
    options: dict[str, dict[str, str]],
    sampler: Sampler,
    questions: list[str],
) -> None:
    from fspad_bench.decoders.build import build_decoder
    from fspad_bench.models.chat import Chat, user
    from fspad_bench.models.load import load_target
    from fspad_bench.profiling import steps

    target = load_target(arguments.target, device=arguments.device, dtype=arguments.dtype)
    decoder = build_decoder(arguments.decoder, target, options)
    _ = decoder.options  # as a run would name it
    if decoder.drafter is None:
        raise BenchError(
            f"{arguments.decoder} is an engine of its own: its steps cannot be timed",
            "name a decoder that runs in our loop",
        )
    chat = Chat(target.tokenizer, target.stop_ids)
    prompts = [chat.prompt([user(question)]).tokens for question in questions]
    profile = steps.profile(target, decoder, prompts, sampler, arguments.max_new_tokens)
    show(steps.render(profile))
    if arguments.picture:
        steps.draw(profile, arguments.picture)


def _profile_forward(arguments: argparse.Namespace) -> None:
    from fspad_bench.models.random_weights import random_target
    from fspad_bench.profiling import forward

    target = random_target(arguments.target, device=arguments.device, dtype=arguments.dtype)
    show(forward.render(forward.forward_costs(target)))


def _profile_kernels(arguments: argparse.Namespace) -> None:
    import torch

    from fspad_bench.models.load import default_dtype, device_named
    from fspad_bench.models.random_weights import shape
    from fspad_bench.profiling import kernels

    device = device_named(arguments.device)
    profile = kernels.profile_kernels(
        shape(arguments.target),
        torch.device(device),
        getattr(torch, arguments.dtype or default_dtype(device)),
        arguments.prefixes,
        arguments.nodes,
    )
    show(kernels.render(profile))
    if arguments.picture:
        kernels.draw(profile, arguments.picture)


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="time the GPU kernels instead, at the target's shape",
    )
    parser.add_argument(
        "--prefixes",
        type=sizes,
        default=(),
        metavar="N,...",
        help="with --kernels: numbers of cached tokens",
    )
    parser.add_argument(
        "--nodes",
        type=sizes,
        default=(),
        metavar="N,...",
        help="with --kernels: numbers of tree nodes",
    )
