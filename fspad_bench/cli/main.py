"""The command line. Each verb imports what it needs when it runs, so that `--help` and `ls` answer at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fspad_bench.cli.arguments import parser
from fspad_bench.errors import BenchError, near


def main(argv: list[str] | None = None) -> int:
    """Parse and run; 0 when all is well, 1 for a lossy row or a failed sample, 2 for bad input, 130 for Ctrl-C."""
    try:
        arguments = parser().parse_args(argv)
        return VERBS[arguments.verb](arguments)
    except BenchError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint:  {error.hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\ninterrupted; the same `run`, `train` or `distill` goes on where it stopped",
            file=sys.stderr,
        )
        return 130


def run_plan(arguments: argparse.Namespace) -> int:
    from fspad_bench.benchmark import tasks as task
    from fspad_bench.benchmark.runner import VANILLA, Plan, Runner

    _quiet()
    tasks = list(task.card_names()) if arguments.task == "all" else _names(arguments.task)
    plan = Plan(
        decoders=[VANILLA, *(name for name in _names(arguments.decoder) if name != VANILLA)],
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
    path = Runner(plan, arguments.output).run()
    print(f"record: {path}", file=sys.stderr)
    return _print_table([path], arguments.format)


def show_table(arguments: argparse.Namespace) -> int:
    paths = [
        p
        for given in arguments.records
        for p in (sorted(given.rglob("*.jsonl")) if given.is_dir() else [given])
    ]
    for path in paths:
        if not path.is_file():
            raise BenchError(
                f"no such record: {path}", "give a record file, or a folder that holds some"
            )
    if not paths:
        raise BenchError("no records there", "`fspad-bench run` writes them")
    return _print_table(paths, arguments.format)


def _print_table(paths: list[Path], style: str) -> int:
    from fspad_bench.benchmark.divergence import partings
    from fspad_bench.benchmark.record import Records
    from fspad_bench.benchmark.rows import failed, render, rows

    records = Records.read(*paths)
    found = rows(records)
    if not found:
        raise BenchError(
            f"{paths[0]} holds no generation yet",
            "`fspad-bench run` goes on with it, or starts anew",
        )
    print(render(found, style))
    if style == "text":
        print("".join(f"\n{parting}\n" for parting in partings(records)), end="")
    return int(failed(found))


def train_draft(arguments: argparse.Namespace) -> int:
    import torch

    from fspad_bench.distill import overlap
    from fspad_bench.distill.writer import SHARD, distill_free
    from fspad_bench.models.load import device_named
    from fspad_bench.training.job import check_decoder, train_head
    from fspad_bench.training.objective import Recipe
    from fspad_bench.training.trainer import accelerator_for

    _quiet()
    check_decoder(arguments.decoder)
    recipe = Recipe(
        **{name: getattr(arguments, name) for name in Recipe.__dataclass_fields__ if name != "clip"}
    )
    device_named(arguments.device)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    accelerator = accelerator_for(automatic if arguments.device == "auto" else arguments.device)
    if accelerator.num_processes > 1 and arguments.device not in ("auto", accelerator.device.type):
        raise BenchError("several processes choose their own devices", "leave --device out")
    if arguments.device == "auto" or accelerator.num_processes > 1:
        arguments.device = str(accelerator.device)
    target = _training_target(arguments)
    data = [Path(given).expanduser() for given in arguments.data if given != "self"]
    if "self" in arguments.data:
        shard = max(16, min(SHARD, arguments.tokens // 1000))
        with accelerator.main_process_first():
            made = distill_free(
                target,
                arguments.output / "data",
                tokens=arguments.tokens,
                seed=arguments.seed,
                shard=shard,
            )
            if accelerator.is_main_process:
                overlap.report(made, target.tokenizer, overlap.task_prompts(["bundled"]))
        data.append(made)
    head = train_head(
        target,
        arguments.decoder,
        data,
        arguments.output,
        recipe,
        draft_vocabulary=arguments.draft_vocabulary,
        max_length=arguments.max_length,
        live=arguments.live,
        initial=arguments.initial,
        checkpoint_every=arguments.checkpoint_every,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        for name, value in head.facts["held_out"].items():
            print(f"{name}: {'-' if value is None else format(value, '.4f')}")
    accelerator.end_training()
    return 0


def distill_data(arguments: argparse.Namespace) -> int:
    from fspad_bench.distill import overlap
    from fspad_bench.distill.imported import read_given
    from fspad_bench.distill.writer import distill_free, distill_given

    _quiet()
    if arguments.regenerate and not arguments.of:
        raise BenchError("--regenerate needs conversations to regenerate", "give them by --of")
    given = read_given(arguments.of) if arguments.of else None
    prompts = overlap.task_prompts(["bundled", *arguments.against])
    target = _training_target(arguments)
    making = {"seed": arguments.seed, "rows": arguments.rows, "shard": arguments.shard}
    if given is None:
        folder = distill_free(target, arguments.output, tokens=arguments.tokens, **making)
    else:
        folder = distill_given(
            target, arguments.output, given, regenerate=arguments.regenerate, **making
        )
        if given.left_out:
            print(
                f"left out {len(given.left_out)} rows, the first {given.left_out[0]}",
                file=sys.stderr,
            )
    found = overlap.report(folder, target.tokenizer, prompts)
    print("\n".join(overlap.summary(found)))
    return 0


def profile_decoder(arguments: argparse.Namespace) -> int:
    import torch

    from fspad_bench.benchmark import tasks as task
    from fspad_bench.core.sampling import Sampler
    from fspad_bench.decoders.build import build, check_options
    from fspad_bench.models.chat import Chat, user
    from fspad_bench.models.load import load_target
    from fspad_bench.models.presets import RANDOM
    from fspad_bench.profiling import steps as profiling

    _quiet()
    options = read_options(arguments.options)
    check_options([arguments.decoder], options)
    sampler = Sampler(arguments.temperature, stream="profile")
    questions = task.load(task.load_card(arguments.task), "bundled", arguments.limit).questions
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.kernels:
        return _profile_kernels(arguments)
    if arguments.target.startswith(RANDOM):
        from fspad_bench.models.random_weights import random_target

        target = random_target(arguments.target, device=arguments.device, dtype=arguments.dtype)
        print(profiling.render_forward(profiling.forward_costs(target)))
        return 0
    target = load_target(arguments.target, device=arguments.device, dtype=arguments.dtype)
    method = build(arguments.decoder, target, options)
    if not hasattr(method.decoder, "propose"):
        raise BenchError(
            f"{arguments.decoder} is an engine of its own", "rounds are of decoders in our loop"
        )
    chat = Chat(target.tokenizer, target.stop_ids)
    prompts = [chat.prompt([user(question.turns[0])]).tokens for question in questions]
    found = profiling.profile(
        target, arguments.decoder, method.decoder, prompts, sampler, arguments.max_new_tokens
    )
    print(profiling.render(found))
    if arguments.picture:
        profiling.draw(found, arguments.picture)
    return 0


def _profile_kernels(arguments: argparse.Namespace) -> int:
    import torch

    from fspad_bench.models.load import device_named
    from fspad_bench.models.random_weights import shape
    from fspad_bench.profiling import kernels as kernel_profile

    dtype = getattr(torch, arguments.dtype or "bfloat16")
    device = torch.device(device_named(arguments.device))
    found = kernel_profile.profile_kernels(
        shape(arguments.target), device, dtype, arguments.prefixes, arguments.nodes
    )
    print(kernel_profile.render(found))
    if arguments.picture:
        kernel_profile.draw(found, arguments.picture)
    return 0


def export_head(arguments: argparse.Namespace) -> int:
    from fspad_bench.drafts.head import load_head
    from fspad_bench.drafts.published import write_published
    from fspad_bench.models.load import load_target

    _quiet()
    target = load_target(arguments.target, dtype="bfloat16")
    head = load_head(arguments.head.expanduser(), target)
    every = target.config.vocab_size
    if len(head.vocabulary) < every:
        raise BenchError(
            f"{arguments.head} drafts {len(head.vocabulary)} of {every} tokens; that layout needs all",
            f"train one with --draft-vocabulary {every}",
        )
    write_published(head.network, target.embedding.weight, arguments.output)
    return 0


def _training_target(arguments: argparse.Namespace) -> Any:
    """The target of `train` and `distill`: on a GPU where there is one, in bfloat16 unless it is the tiny one."""
    import torch

    from fspad_bench.models.load import load_target

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = (
        ("cuda" if torch.cuda.is_available() else "cpu")
        if arguments.device == "auto"
        else arguments.device
    )
    dtype = arguments.dtype or ("float64" if arguments.target == "tiny" else "bfloat16")
    return load_target(arguments.target, device=device, dtype=dtype)


def certify_decoders(arguments: argparse.Namespace) -> int:
    import torch

    from fspad_bench.lossless import certify
    from fspad_bench.lossless.report import passed, render
    from fspad_bench.models.load import load_target

    _quiet()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    labels = decoder_labels(arguments.decoder)
    options = read_options(arguments.options)
    tiny = target = load_target("tiny", device=arguments.device)
    if arguments.target != "tiny":
        target = load_target(arguments.target, device=arguments.device, dtype="float32")
    effort = (
        certify.THOROUGH
        if arguments.thorough
        else certify.QUICK
        if arguments.quick
        else certify.STANDARD
    )
    parts = certify.certify(labels, options, target, tiny, effort)
    print(render(parts, arguments.format))
    return 0 if passed(parts) else 1


def check_promises(arguments: argparse.Namespace) -> int:
    from fspad_bench.lossless import promises as promise
    from fspad_bench.lossless.report import Check, Part, passed, render

    _quiet()
    every = [
        found for path in arguments.baselines or promise.shipped() for found in promise.read(path)
    ]
    known = [found.decoder for found in every]
    wanted = _names(arguments.decoder) if arguments.decoder else known
    for name in set(wanted) - set(known):
        raise BenchError(f"'{name}' promises nothing", near(name, set(known)))
    chosen = [p for p in every if p.decoder in wanted and arguments.target in (None, p.target)]
    if not chosen:
        raise BenchError(
            "nobody promised anything of that", "baselines/*.yaml hold the promises of this suite"
        )
    checks = []
    refused = []
    for found in chosen:
        try:
            checks += found.judge(_kept(found))
        except BenchError as error:  # the others are still of interest
            refused.append(error)
            checks.append(Check.of("run", found.about, False, error.message, "a run"))
    part = Part("promises", checks)
    print(render([part], arguments.format))
    if refused:
        raise BenchError(
            f"{len(refused)} of {len(chosen)} promises could not be put to the test",
            refused[0].hint,
        )
    return 0 if passed([part]) else 1


def _kept(promise: Any) -> dict[str, Any]:
    """The row of the small run that a promise is about."""
    from tempfile import TemporaryDirectory

    from fspad_bench.benchmark.record import Records
    from fspad_bench.benchmark.rows import rows
    from fspad_bench.benchmark.runner import VANILLA, Plan, Runner

    plan = Plan(
        decoders=list(dict.fromkeys([VANILLA, promise.decoder])),
        tasks=[promise.task],
        target=promise.target,
        options={promise.decoder: {name: str(value) for name, value in promise.options.items()}},
        data="bundled",
        limit=promise.limit,
        temperatures=[promise.temperature],
        top_p=1.0,
        top_k=0,
        seed=0,
        max_new_tokens=promise.max_new_tokens,
        dtype=None,
        device="cpu",
        threads=None,
        log_samples=False,
    )
    with TemporaryDirectory() as folder:
        return rows(Records.read(Runner(plan, Path(folder)).run()))[-1]


def list_names(arguments: argparse.Namespace) -> int:
    from fspad_bench.decoders import registry

    if arguments.what in (None, "decoders"):
        _listing("decoders", registry.names(registry.DECODERS))
    if arguments.what in (None, "tasks"):
        from fspad_bench.benchmark import tasks as task

        _listing("tasks", task.card_names())
    if arguments.what in (None, "targets"):
        from fspad_bench.models.presets import PRESETS

        _listing("targets", {name: preset.title for name, preset in PRESETS.items()})
    return 0


def fetch_target(arguments: argparse.Namespace) -> int:
    from fspad_bench.models.smollm2 import smollm2

    print(smollm2(arguments.source))
    return 0


def _listing(title: str, found: dict[str, str]) -> None:
    print(title)
    for name, what in found.items():
        print(f"  {name:16} {what}")


def _quiet() -> None:
    """Leave the terminal to our own progress and table."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise BenchError(f"'{text}' names nothing", "`fspad-bench ls` lists what there is")
    return names


def decoder_labels(text: str) -> list[str]:
    """`a,b`, or `all` that are registered."""
    from fspad_bench.decoders import registry

    return list(registry.names(registry.DECODERS)) if text == "all" else _names(text)


def read_options(given: list[str]) -> dict[str, dict[str, str]]:
    """`["fspad.depth=3"]` -> `{"fspad": {"depth": "3"}}`."""
    found: dict[str, dict[str, str]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        decoder, dot, option = name.rpartition(".")
        if not (equals and dot and decoder and option):
            raise BenchError(f"-D {text} is not DECODER.OPTION=VALUE", "such as -D fspad.depth=3")
        found.setdefault(decoder, {})[option] = value
    return found


_ALL = (
    run_plan, show_table, train_draft, distill_data, export_head, profile_decoder, certify_decoders, check_promises,
    list_names, fetch_target,
)  # fmt: skip
VERBS = {verb.__name__: verb for verb in _ALL}
