"""The verb `share`: write a record in a format that others collect."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import disk_errors, user_path, write_atomically
from fspad_bench.util.terminal import note, show

if TYPE_CHECKING:
    from fspad_bench.publishing.facts import Facts

FORMATS = ("every-eval-ever", "hub", "golden")
GOLDEN_MODES = ("thinking_on", "thinking_off")
ONE_LENGTH = "--decoder draft_model@chain -D draft_model.tree=fixed -D draft_model.stop=0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", type=Path, help="a record file, or a folder that holds one")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder of the files")
    parser.add_argument(
        "--as", dest="format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s"
    )
    parser.add_argument("--source", metavar="URL", help="where the record itself is published")
    parser.add_argument("--model", metavar="OWNER/NAME", help="hub id of the target")
    group = parser.add_argument_group("every-eval-ever")
    group.add_argument(
        "--organization", default="unknown", help="who ran it (default: %(default)s)"
    )
    group.add_argument(
        "--relationship",
        choices=("first_party", "third_party", "collaborative", "other"),
        default="other",
        help="of who ran it to the model's makers (default: %(default)s)",
    )
    group = parser.add_argument_group("hub")
    group.add_argument(
        "--benchmark", metavar="OWNER/NAME", help="data set on the hub that collects speeds"
    )
    group = parser.add_argument_group("golden")
    group.add_argument(
        "--mode",
        choices=GOLDEN_MODES,
        help="whether the target reasoned before it answered (default: thinking_off of presets, "
        "which have no other mode)",
    )


def run(arguments: argparse.Namespace) -> int:
    from fspad_bench.cli.table import record_file
    from fspad_bench.publishing.facts import Facts

    facts = Facts.read(record_file(user_path(arguments.record)))
    for line in facts.records.damaged:
        note(f"left out: {line}")
    writers = {
        "every-eval-ever": _write_every_eval_ever,
        "hub": _write_hub,
        "golden": _write_golden,
    }
    writers[arguments.format](facts, arguments)
    return 0


def _write_golden(facts: Facts, arguments: argparse.Namespace) -> None:
    from fspad_bench.publishing.golden import golden_files

    files = golden_files(facts, arguments.model, arguments.source, arguments.mode)
    if not files:
        raise BenchError(
            "no row of this record drafted chains of one length with an output shown to be the "
            "target's",
            f"run a chain of one length, such as `{ONE_LENGTH}`; before schema 4 records do not "
            "hold drafts",
        )
    for file in files:
        path = user_path(arguments.output) / file.name
        _write(path, file.text)
        show(str(path))


def _write_every_eval_ever(facts: Facts, arguments: argparse.Namespace) -> None:
    from fspad_bench.publishing.every_eval_ever import Evaluator, document

    evaluator = Evaluator(
        arguments.organization, arguments.relationship, arguments.model, arguments.source
    )
    written = document(facts, evaluator, int(time.time()))
    for line in written.left_out:
        note(f"left out: {line}")
    path = user_path(arguments.output) / written.path
    _write(path, json.dumps(written.content, indent=2, allow_nan=False) + "\n")
    show(f"{path}: {len(written.content['evaluation_results'])} results")


def _write_hub(facts: Facts, arguments: argparse.Namespace) -> None:
    import yaml

    from fspad_bench.publishing.hub_results import FOLDER, Published, result_files

    if arguments.benchmark and arguments.benchmark.count("/") != 1:
        raise BenchError(
            f"'{arguments.benchmark}' is no data set of the hub", "give --benchmark OWNER/NAME"
        )
    files = result_files(facts, Published(arguments.benchmark, arguments.source))
    if not files:
        raise BenchError(
            "no row of this record is a result of a benchmark on the hub",
            "run with --data hub, or name a benchmark of speeds with --benchmark OWNER/NAME",
        )
    for file in files:
        path = user_path(arguments.output) / FOLDER / file.name
        _write(path, yaml.safe_dump(file.entries, sort_keys=False, allow_unicode=True))
        show(f"{path}: {len(file.entries)} results")


def _write(path: Path, text: str) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
