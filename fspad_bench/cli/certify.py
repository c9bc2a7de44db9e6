"""The verb `certify`: prove that decoders, or a served engine, are lossless: a table of checks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fspad_bench.cli import certify_served
from fspad_bench.cli.arguments import (
    CERTIFYING,
    REPORT_FORMATS,
    add_decoder_options,
    add_device,
    add_dtype,
    add_format,
    add_penalties,
    add_target,
    add_threads,
)
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import show

if TYPE_CHECKING:
    from fspad_bench.core.sampling import Sampler
    from fspad_bench.lossless.certify import Effort
    from fspad_bench.lossless.checks import Part


OF_DECODERS = (
    *("options", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    "no_repeat_ngram_size",
)
OF_SERVED = (
    *("plain", "model", "dialect", "served_extra", "plain_extra", "prompts", "tokenizer"),
    *("depths", "depth_extra", "concurrency", "prompt_lengths", "sampling", "rounds"),
    *("max_new_tokens", "logprobs", "error", "tie", "seeded", "stop_at_finding", "output"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder",
        help="names, name@preset or module:Class, comma-separated, or all",
    )
    add_target(parser, default="tiny")
    add_device(parser)
    add_dtype(parser, ["float32", "bfloat16", "float64"], CERTIFYING)
    add_decoder_options(parser)
    add_penalties(parser.add_argument_group("sampling of the decoders' checks"))
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument(
        "--quick",
        action="store_true",
        help="less power: within minutes on tiny; a quarter of the rounds of a served engine",
    )
    effort.add_argument("--thorough", action="store_true", help="more of everything, for a night")
    add_threads(parser)
    add_format(parser, REPORT_FORMATS)
    certify_served.add_arguments(parser)
    usual = {name: parser.get_default(name) for name in (*OF_DECODERS, *OF_SERVED)}
    parser.set_defaults(usual=usual)


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.cli.environment import quiet_libraries, use_threads
    from fspad_bench.lossless.checks import passed
    from fspad_bench.lossless.report import render

    if bool(arguments.decoder) == bool(arguments.served):
        raise BenchError(
            "the following arguments are required: --decoder or --served, one of them",
            "`fspad-bench certify --help` lists the arguments",
        )
    _check_others(arguments)
    quiet_libraries()
    use_threads(arguments.threads)
    certified = certify_served.certify_served if arguments.served else _decoders
    parts = certified(arguments)
    show(render(parts, arguments.format))
    return 0 if passed(parts) else 1


def _check_others(arguments: argparse.Namespace) -> None:
    """Raise BenchError for a flag of the other kind of certification, which would do nothing."""
    others, kind = (OF_SERVED, "--served") if arguments.decoder else (OF_DECODERS, "--decoder")
    for name in others:
        if getattr(arguments, name) != arguments.usual[name]:
            flag = "-D" if name == "options" else f"--{name.replace('_', '-')}"
            raise BenchError(
                f"{flag} belongs to certify {kind}", f"leave it out, or certify {kind}"
            )


def _decoders(arguments: argparse.Namespace) -> list[Part]:
    """Certify the decoders that the arguments name."""
    from fspad_bench.decoders.options import decoder_labels, read_options
    from fspad_bench.lossless.certify import certify
    from fspad_bench.models.load import devices_named, load_target

    like = _sampler(arguments)
    labels = decoder_labels(arguments.decoder)
    options = read_options(arguments.options)
    devices = devices_named(arguments.device)
    tiny = load_target("tiny", device=devices[0])
    target = tiny
    if arguments.target != "tiny" or arguments.dtype or len(devices) > 1:
        dtype = arguments.dtype or (None if arguments.target == "tiny" else "float32")
        target = load_target(arguments.target, device=arguments.device, dtype=dtype)
    return certify(labels, options, target, tiny, _effort(arguments), like)


def _sampler(arguments: argparse.Namespace) -> Sampler:
    """Return a sampler with the penalties and the min-p that the arguments name."""
    from fspad_bench.core.sampling import Sampler
    from fspad_bench.engine.penalties import Penalties

    penalties = Penalties(
        arguments.repetition_penalty,
        arguments.presence_penalty,
        arguments.frequency_penalty,
        arguments.no_repeat_ngram_size,
    )
    return Sampler(min_p=arguments.min_p, processors=penalties.processors)


def _effort(arguments: argparse.Namespace) -> Effort:
    from fspad_bench.lossless import certify

    if arguments.thorough:
        return certify.THOROUGH
    if arguments.quick:
        return certify.QUICK
    return certify.STANDARD
