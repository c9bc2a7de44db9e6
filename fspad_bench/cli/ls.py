"""The verb `ls`: list what can be named, and the packages that others' names come from."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping

from fspad_bench.util import registry
from fspad_bench.util.terminal import show, visible

OURS = "fspad_bench"
WIDTH = 17  # of the column of names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=list(LISTINGS), help="default: all of them")


def run(arguments: argparse.Namespace) -> int:
    for title in [arguments.what] if arguments.what else LISTINGS:
        show(title)
        for name, description in LISTINGS[title]():
            show(visible(f"  {name:{WIDTH}} {description}").rstrip())
    return 0


def _decoders() -> Iterable[tuple[str, str]]:
    from fspad_bench.decoders.about import about

    for name, claims in registry.claims(registry.DECODERS).items():
        yield name, _claimed(claims) or str(about(name) or claims[0].value)


def _tasks() -> Iterable[tuple[str, str]]:
    from fspad_bench.benchmark.tasks import card_names

    others = registry.claims(registry.TASKS)
    for name, title in card_names().items():
        origin = f" ({others[name][0].package})" if name in others else ""
        yield name, title + origin


def _targets() -> Iterable[tuple[str, str]]:
    from fspad_bench.models.presets import PRESETS

    return [(name, preset.title) for name, preset in PRESETS.items()]


def _metrics() -> Iterable[tuple[str, str]]:
    from fspad_bench.benchmark.scoring import METRICS

    for name, function in METRICS.items():
        yield name, (function.__doc__ or "").split("\n")[0].removeprefix("Return ")
    yield from _of_group(registry.METRICS)


def _trainers() -> Iterable[tuple[str, str]]:
    return _of_group(registry.TRAINERS)


def _executors() -> Iterable[tuple[str, str]]:
    return _of_group(registry.EXECUTORS)


def _of_group(group: str) -> Iterable[tuple[str, str]]:
    return [(name, _claimed(claims)) for name, claims in registry.claims(group).items()]


def _claimed(claims: list[registry.Claim]) -> str:
    """Return what another package says that a name stands for, or the dispute about it; nothing
    for a name of the suite.
    """
    if len(claims) > 1:
        return f"in dispute: {' and '.join(map(str, claims))}; uninstall one of the packages"
    return "" if claims[0].value.startswith(f"{OURS}.") else str(claims[0])


LISTINGS: Mapping[str, Callable[[], Iterable[tuple[str, str]]]] = {
    "decoders": _decoders,
    "tasks": _tasks,
    "targets": _targets,
    "metrics": _metrics,
    "trainers": _trainers,
    "executors": _executors,
}
