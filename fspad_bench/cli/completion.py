"""The verb `completion`: print the script that lets a shell complete verbs, flags and names."""

from __future__ import annotations

import argparse
from pathlib import Path

from fspad_bench.cli.arguments import picture
from fspad_bench.util.terminal import show

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def run(arguments: argparse.Namespace) -> int:
    import shtab

    from fspad_bench.cli.main import parser

    every = parser()
    for verb in _verbs(every):
        for action in verb._actions:
            _complete(action)
    show(shtab.complete(every, shell=arguments.shell))
    return 0


def _verbs(every: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    (verbs,) = [a for a in every._actions if isinstance(a, argparse._SubParsersAction)]
    return list(verbs.choices.values())


def _complete(action: argparse.Action) -> None:
    """Let an argument be completed: by the names that it may have, or by files."""
    import shtab

    if action.choices is None and action.dest in ("decoder", "task", "target"):
        action.choices = _names(action.dest)
    elif action.type in (Path, picture):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _names(kind: str) -> list[str]:
    from fspad_bench.benchmark.tasks import card_names
    from fspad_bench.models.presets import PRESETS
    from fspad_bench.util import registry

    if kind == "decoder":
        return list(registry.names(registry.DECODERS))
    return list(card_names() if kind == "task" else PRESETS)
