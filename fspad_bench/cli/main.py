"""The entry point of `fspad-bench`: the parser, the table of verbs, the handling of errors.

- A verb is a module with `add_arguments(parser)` and `run(arguments) -> exit code`.
- Verbs import torch and everything that needs it inside `run`, so that `--help` and `ls` are quick.
- Exit codes: 0 success, 1 a lossy row, a failed sample or a failed check; those of errors are in
  `endings`.
"""

from __future__ import annotations

import argparse
from typing import NoReturn, Protocol

from fspad_bench import __version__
from fspad_bench.cli import (
    answers,
    certify,
    check,
    compare,
    distill,
    endings,
    explain,
    export,
    fetch,
    ls,
    page,
    profile,
    project,
    run,
    share,
    table,
    train,
)
from fspad_bench.errors import BenchError
from fspad_bench.util.strangers import contained

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


VERBS: dict[str, tuple[Verb, str]] = {
    "run": (run, "measure decoders on tasks, check them against vanilla, print a table"),
    "table": (table, "print the table of existing records"),
    "compare": (compare, "show which rows of two sets of records differ beyond noise"),
    "explain": (explain, "say why decoders of existing records are as fast as they are"),
    "page": (page, "publish records as one HTML page"),
    "answers": (answers, "write records as the answer files of Spec-Bench"),
    "share": (share, "write a record in a format that others collect"),
    "train": (train, "train the draft network of a decoder for a target"),
    "distill": (distill, "write a target's own conversations as training data for drafts"),
    "export": (export, "write a head in the layout that EAGLE, EAGLE-3 and FSPAD publish"),
    "profile": (profile, "show where a decoder's steps spend their time on this machine"),
    "project": (project, "tell what recorded acceptance would give at other costs"),
    "certify": (certify, "prove that decoders are lossless: a table of checks"),
    "check": (check, "check baselines against their files: identity, tokens per step"),
    "ls": (ls, "list decoders, tasks and targets"),
    "fetch": (fetch, "download the default target ahead of time"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors as BenchError."""

    def error(self, message: str) -> NoReturn:
        raise BenchError(message, f"`{self.prog} --help` lists the arguments")


def parser() -> argparse.ArgumentParser:
    """Return the parser of every verb; a parsed verb's body is `arguments.run`."""
    top = Parser(
        "fspad-bench",
        description="Is a speculative decoder lossless, and how much faster is it?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"fspad-bench {__version__}")
    subparsers = top.add_subparsers(required=True, metavar="VERB")
    for name, (module, summary) in VERBS.items():
        verb = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return top


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, run its verb, and return the exit code."""
    return endings.handled(lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    endings.check_arguments(argv)
    arguments = parser().parse_args(argv)
    with contained():  # a plug-in does not end the command in its own way
        return arguments.run(arguments)
