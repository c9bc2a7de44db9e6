"""The verb `train`: train the draft network of a decoder for a target."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fspad_bench.cli.arguments import (
    LEARNING,
    above_zero,
    add_device,
    add_dtype,
    add_target,
    add_threads,
    count,
    not_negative,
    positive,
    whole,
)
from fspad_bench.util.terminal import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder",
        required=True,
        help="chimera, eagle, eagle3, fspad or medusa, a variant (chimera-hard, feature-sampling, "
        "partial-alignment, wide, fspad-unrolled, fspad3), draft_model: some of the target's "
        "layers, or aded: its table",
    )
    add_target(parser)
    _add_data(parser)
    _add_recipe(parser.add_argument_group("recipe", "defaults are the decoder's: docs/training.md"))
    parser.add_argument(
        "--init",
        dest="initial",
        type=Path,
        metavar="HEAD",
        help="begin with the weights of this head",
    )
    parser.add_argument(
        "--live", action="store_true", help="compute features at every step; store none on disk"
    )
    add_dtype(parser, ["float32", "bfloat16", "float64"], LEARNING)
    add_device(parser)
    add_threads(parser)


def run(arguments: argparse.Namespace) -> int:
    from dataclasses import fields, replace

    from fspad_bench.benchmark.tasks import prompts_of
    from fspad_bench.cli.environment import quiet_libraries
    from fspad_bench.training import job as training
    from fspad_bench.training.objective import Recipe

    quiet_libraries()
    given = vars(arguments)
    settings: dict[str, Any] = {
        f.name: given[f.name] for f in fields(Recipe) if given.get(f.name) is not None
    }
    recipe = replace(training.default_recipe(arguments.decoder), **settings)
    is_own_data = training.SELF in arguments.data
    job = training.TrainingJob(
        decoder=arguments.decoder,
        data=arguments.data,
        output=arguments.output,
        target=arguments.target,
        recipe=recipe,
        tokens=arguments.tokens,
        prompts=prompts_of(["bundled"]) if is_own_data else {},
        max_length=arguments.max_length,
        draft_vocabulary=arguments.draft_vocabulary,
        layers=arguments.layers,
        initial=arguments.initial,
        live=arguments.live,
        checkpoint_every=arguments.checkpoint_every,
        dtype=arguments.dtype,
        device=arguments.device,
        threads=arguments.threads,
    )
    for name, value in training.run(job).figures.items():
        show(f"{name}: {'-' if value is None else format(value, '.4f')}")
    return 0


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        help="a folder of `distill`, a JSONL file, or self (the target's own conversations); "
        "may be repeated",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="folder of the head; an unfinished training there is resumed",
    )
    parser.add_argument(
        "--draft-vocabulary",
        type=positive,
        help="size of the draft's vocabulary (default: 8192, or that of --init)",
    )
    parser.add_argument(
        "--layers",
        type=positive,
        help="layers of a draft model (default: 2, or those of --init)",
    )
    parser.add_argument(
        "--tokens",
        type=count,
        default=400_000,
        metavar="N[k|M]",
        help="answer tokens to generate with --data self (default: 400k)",
    )
    parser.add_argument("--max-length", type=positive, default=2048)
    parser.add_argument("--checkpoint-every", type=not_negative, default=120.0, metavar="SECONDS")


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--supervise",
        choices=["answers", "all"],
        help="learn the distribution of the answers' tokens (the default), or of every token",
    )
    group.add_argument("--epochs", type=above_zero)
    group.add_argument("--batch-tokens", type=positive)
    group.add_argument("--lr", type=above_zero)
    group.add_argument("--warmup", type=whole, metavar="STEPS")
    group.add_argument("--feature-weight", type=not_negative, help="weight of the feature loss L_v")
    group.add_argument("--logit-weight", type=not_negative, help="weight of the logit loss L_p")
    group.add_argument(
        "--top-weight",
        type=not_negative,
        help="weight of the loss on the likeliest tokens (HASS: 1)",
    )
    group.add_argument(
        "--token-weight",
        type=not_negative,
        help="weight of the loss on the text's own tokens (chimera-hard: 1)",
    )
    group.add_argument(
        "--unroll", type=positive, help="draft levels to train on (HASS: 3, EAGLE-3: 7)"
    )
    group.add_argument(
        "--decay",
        type=above_zero,
        help="weight of each of them beside the one before (EAGLE-3: 0.8)",
    )
    group.add_argument("--noise", type=not_negative)
    group.add_argument(
        "--vocabulary",
        choices=["prompt", "head"],
        help="let the draft propose the head's tokens and those of the text (the default), or "
        "the head's alone",
    )
    group.add_argument("--seed", type=whole)
