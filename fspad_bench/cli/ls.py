"""The verb `ls`: list decoders, tasks and targets."""

from __future__ import annotations

import argparse

from fspad_bench.util.terminal import show, visible


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=["decoders", "tasks", "targets"])


def run(arguments: argparse.Namespace) -> int:
    if arguments.what in (None, "decoders"):
        from fspad_bench.decoders.about import about
        from fspad_bench.util import registry

        known = registry.names(registry.DECODERS)
        _print_names("decoders", {name: str(about(name) or known[name]) for name in known})
    if arguments.what in (None, "tasks"):
        from fspad_bench.benchmark.tasks import card_names

        _print_names("tasks", card_names())
    if arguments.what in (None, "targets"):
        from fspad_bench.models.presets import PRESETS

        _print_names("targets", {name: preset.title for name, preset in PRESETS.items()})
    return 0


def _print_names(title: str, descriptions: dict[str, str]) -> None:
    show(title)
    for name, description in descriptions.items():
        show(visible(f"  {name:16} {description}"))
