"""The entry point of `fspad-bench`: the parser, the table of verbs, the handling of errors.

- A verb is a module with `add_arguments(parser)` and `run(arguments) -> exit code`.
- Verbs import torch and everything that needs it inside `run`, and a command imports no other verb
  than its own, so that `--help` and `ls` are quick.
- Exit codes: 0 success, 1 a lossy row, a failed sample or a failed check; those of errors are in
  `endings`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any, NoReturn, Protocol, cast

from fspad_bench import __version__
from fspad_bench.cli import endings
from fspad_bench.cli.examples import epilog
from fspad_bench.util.errors import BenchError, near
from fspad_bench.util.strangers import contained
from fspad_bench.util.terminal import results_alone

EPILOG = """examples:
  fspad-bench run --decoder fspad --task gsm8k
  fspad-bench run --decoder fspad,eagle,prompt_lookup --task all --temperature 0,1 --limit 8
  fspad-bench run --decoder fspad@paper --task mt_bench --target vicuna-7b -D fspad.head=HEAD
  fspad-bench run --decoder mypackage.module:MyDecoder --task gsm8k
  fspad-bench certify --decoder all
  fspad-bench train --decoder fspad --target smollm2-135m --data data.jsonl --output my-head
  fspad-bench ls decoders
"""


class Verb(Protocol):
    """Interface of a verb's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


VERBS: dict[str, str] = {
    "run": "measure decoders on tasks, check them against vanilla, print a table",
    "sweep": "run decoders x tasks x targets on processes, Ray or Slurm, and collect the records",
    "table": "print the table of existing records",
    "compare": "show which rows of two sets of records differ beyond noise",
    "explain": "say why decoders of existing records are as fast as they are",
    "page": "publish records as one HTML page",
    "answers": "write records as the answer files of Spec-Bench",
    "share": "write a record in a format that others collect",
    "push": "publish a trained head, or results, on the Hugging Face hub",
    "train": "train the draft network of a decoder for a target",
    "distill": "write a target's own conversations as training data for drafts",
    "export": "write a head in the layout that EAGLE, EAGLE-3 and FSPAD publish",
    "profile": "show where a decoder's steps spend their time on this machine",
    "throughput": "measure tokens a second of several requests at once, and the break-even batch",
    "project": "tell what recorded acceptance would give at other costs",
    "certify": "prove that decoders are lossless: a table of checks",
    "invariance": "name the first operation that gives a row other bits in company",
    "check": "check baselines against their files: identity, tokens per step",
    "ls": "list decoders, tasks and targets",
    "fetch": "download the default target ahead of time",
    "completion": "print the script that completes commands in a shell",
}


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors as BenchError, and knows flags by a near match."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        flags = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        matches = [get_close_matches(flag, self._option_string_actions, n=1) for flag in flags[:1]]
        if any(matches):
            raise BenchError(
                f"unrecognized arguments: {' '.join(unknown)}",
                f"did you mean {matches[0][0]}? `{self.prog} --help` lists the arguments",
            )
        return known, unknown

    def error(self, message: str) -> NoReturn:
        raise BenchError(message, f"`{self.prog} --help` lists the arguments")


def module_of(verb: str) -> Verb:
    """Import the module of a verb."""
    return cast(Verb, importlib.import_module(f"fspad_bench.cli.{verb}"))


def parser(verbs: Collection[str] = tuple(VERBS)) -> argparse.ArgumentParser:
    """Return the parser of every verb; a parsed verb's body is `arguments.run`.

    Only `verbs` are imported and have their arguments.
    """
    top = Parser(
        "fspad-bench",
        description="Is a speculative decoder lossless, and how much faster is it?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"fspad-bench {__version__}")
    subparsers = top.add_subparsers(required=True, metavar="VERB")
    for name, summary in VERBS.items():
        verb = subparsers.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=epilog(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in verbs:
            module = module_of(name)
            module.add_arguments(verb)
            verb.set_defaults(run=module.run)
    return top


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, run its verb, and return the exit code."""
    return endings.handled(lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    endings.check_arguments(argv)
    words = sys.argv[1:] if argv is None else argv
    verb = [word for word in words if word in VERBS][:1]
    if not verb and words and not words[0].startswith("-"):
        raise BenchError(f"unknown verb '{words[0]}'", near(words[0], VERBS))
    arguments = parser(verb).parse_args(words)
    with contained(), results_alone():  # from plug-ins: their exits, and what they print
        return arguments.run(arguments)
