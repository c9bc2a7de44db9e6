"""`certify --served URL`: the arguments, and the run of a certification of a served engine."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from fspad_bench.cli.arguments import above_zero, json_object, positive, sizes, whole
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import note

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fspad_bench.lossless.checks import Part
    from fspad_bench.serving.certify.greedy import Scorer
    from fspad_bench.serving.certify.plan import Plan, Sampling
    from fspad_bench.serving.openai import OpenAIEngine

ROUNDS = {"quick": 4, "thorough": 128, "": 16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a served engine, in place of --decoder")
    group.add_argument("--served", metavar="URL", help="a server with speculation on")
    group.add_argument(
        "--plain", metavar="URL", help="one without (default: --served, switched by --plain-extra)"
    )
    group.add_argument("--model", help="the model's name in requests (default: the server's)")
    group.add_argument("--dialect", help="of the server (default: found by asking)")
    for side in ("served", "plain"):
        group.add_argument(
            f"--{side}-extra",
            type=json_object,
            default={},
            metavar="JSON",
            help=f"merged into {side} requests",
        )
    group.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSON lines of token ids or texts"
    )
    group.add_argument("--tokenizer", help="of texts: preset, folder or hub id of the model")
    _add_grid(group)
    _add_tests(group)
    group.add_argument(
        "--output",
        type=Path,
        default=Path("certify-served.jsonl"),
        metavar="FILE",
        help="every answer; the same command resumes (default: %(default)s)",
    )


def _add_grid(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--depths", type=sizes, default=(), metavar="N,...", help="depths of drafts")
    group.add_argument(
        "--depth-extra",
        default="",
        metavar="JSON",
        help="""what asks for a depth, N in its place: '{"num_speculative_tokens": N}'""",
    )
    group.add_argument(
        "--concurrency", type=sizes, default=(8,), metavar="N,...", help="(default: 8)"
    )
    group.add_argument(
        "--prompt-lengths", type=sizes, default=(), metavar="N,...", help="in tokens"
    )
    group.add_argument(
        "--sampling",
        action="append",
        metavar="SETTINGS",
        help="greedy, or such as temperature=1,top_k=20; may be repeated (default: seven, as far "
        "as the server can be told)",
    )


def _add_tests(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--rounds", type=positive, metavar="N", help="of 8 answers a prompt (default: 16)"
    )
    group.add_argument(
        "--max-new-tokens", type=positive, default=48, metavar="N", help="(default: 48)"
    )
    group.add_argument(
        "--logprobs", type=whole, default=20, metavar="N", help="alternatives a token (default: 20)"
    )
    group.add_argument(
        "--error", type=above_zero, default=0.01, help="family-wise error (default: %(default)s)"
    )
    group.add_argument(
        "--tie", type=above_zero, default=0.25, help="nats of a near tie (default: %(default)s)"
    )
    group.add_argument("--seeded", action="store_true", help="the engine promises plain's tokens")
    group.add_argument(
        "--stop-at-finding", action="store_true", help="ask no more in a cell with a finding"
    )


def certify_served(arguments: argparse.Namespace) -> list[Part]:
    """Certify the engine that the arguments name."""
    from fspad_bench.serving.certify.certify import certify

    plain_url = arguments.plain or arguments.served
    is_one = plain_url.rstrip("/") == arguments.served.rstrip("/")
    if is_one and arguments.served_extra == arguments.plain_extra:
        raise BenchError(
            "certify --served needs a side without speculation",
            "give --plain URL of another server, or --plain-extra JSON with what switches it off",
        )
    tokenizer = _tokenizer(arguments)
    served = _engine(arguments, arguments.served, tokenizer)
    plain = _engine(arguments, plain_url, tokenizer)
    plan = _plan(arguments, _prompts(arguments, tokenizer), (served, plain))
    return certify(served, plain, plan, arguments.output, _scorer(arguments))


def _tokenizer(arguments: argparse.Namespace) -> PreTrainedTokenizerBase | None:
    from fspad_bench.models.tokenizers import load_tokenizer

    return load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None


def _engine(
    arguments: argparse.Namespace, url: str, tokenizer: PreTrainedTokenizerBase | None
) -> OpenAIEngine:
    from fspad_bench.serving.openai import OpenAIEngine

    text_of = None if tokenizer is None else tokenizer.decode
    return OpenAIEngine(url, model=arguments.model, dialect=arguments.dialect, text_of=text_of)


def sampling_of(
    given: list[str] | None, engines: tuple[OpenAIEngine, OpenAIEngine]
) -> tuple[Sampling, ...]:
    """Return the settings of the grid: those that a user gave, or the default ones that both
    servers can be told.
    """
    from fspad_bench.serving.certify.plan import SAMPLING, Sampling, default_sampling
    from fspad_bench.serving.engine import check_supported

    if given:
        settings = tuple(map(Sampling.parse, given))
        for engine, setting in itertools.product(engines, settings):
            check_supported(engine, setting)
        return settings
    chosen = default_sampling(*(engine.unsupported for engine in engines))
    usual = tuple(map(Sampling.parse, SAMPLING))
    left_out = [settings.name for settings in usual if settings not in chosen]
    added = [settings.name for settings in chosen if settings not in usual]
    if left_out:
        instead = f", {', '.join(added)} takes their place" if added else ""
        note(f"note: left out, as a server does not support it: {', '.join(left_out)}{instead}")
    return chosen


def _plan(
    arguments: argparse.Namespace,
    prompts: tuple[tuple[int, ...], ...],
    engines: tuple[OpenAIEngine, OpenAIEngine],
) -> Plan:
    from fspad_bench.serving.certify.plan import PLAIN, SERVED, Plan

    effort = "quick" if arguments.quick else "thorough" if arguments.thorough else ""
    return Plan(
        prompts=prompts,
        sampling=sampling_of(arguments.sampling, engines),
        depths=arguments.depths,
        depth_extra=arguments.depth_extra,
        concurrency=arguments.concurrency,
        lengths=arguments.prompt_lengths,
        rounds=arguments.rounds or ROUNDS[effort],
        max_tokens=arguments.max_new_tokens,
        logprobs=arguments.logprobs,
        error=arguments.error,
        tie=arguments.tie,
        seeded=arguments.seeded,
        stop_early=arguments.stop_at_finding,
        extra={SERVED: arguments.served_extra, PLAIN: arguments.plain_extra},
    )


def _prompts(
    arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[tuple[int, ...], ...]:
    from fspad_bench.serving.certify.prompts import own_prompts, read_prompts

    if arguments.prompts:
        return read_prompts(arguments.prompts, tokenizer)
    if tokenizer is None:
        raise BenchError(
            "certify --served needs prompts in token ids",
            "give the served model's --tokenizer, or --prompts with a file of token ids",
        )
    return own_prompts(tokenizer)


def _scorer(arguments: argparse.Namespace) -> Scorer | None:
    """Return the audit by a target of our own, if one but the default is named."""
    from fspad_bench.models.load import load_target
    from fspad_bench.serving.certify.scorer import scorer_of

    if arguments.target == "tiny":
        return None
    dtype = arguments.dtype or "float32"
    return scorer_of(load_target(arguments.target, device=arguments.device, dtype=dtype))
