"""The record of a plan: a new one, or the newest unfinished one of an equal plan.

A record is resumed by the software, on the machine and with the threads that began it, and by no
other: otherwise a record would hold the tokens and times of two programs or two machines.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from fspad_bench import __version__
from fspad_bench.benchmark import tasks
from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.record import SCHEMA
from fspad_bench.benchmark.record_file import Header, RecordFile, header_of, is_complete
from fspad_bench.util import provenance
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import note

# what must not change within a record, and how a message calls it
SOFTWARE = {
    "schema": "schema",
    "version": "version",
    "packages": "set of packages",
    "commit": "commit",
    "source_sha256": "source",
    "machine": "machine",
    "threads": "number of threads",
}


def open_record(plan: Plan, cards: Sequence[tasks.Card], output: Path) -> tuple[RecordFile, Header]:
    """Return the record to write and its first line, whose `sources` name the data of each task.

    Sources are resolved once: a resumed record keeps those it began with.
    """
    now = datetime.now(UTC)
    started = {"version": __version__, "started": now.isoformat(timespec="seconds")}
    threads = torch.get_num_threads()
    origin = {"schema": SCHEMA, **started, **provenance.provenance(), "threads": threads}
    for path in sorted(output.glob("*.jsonl"), reverse=True):
        header = header_of(path)
        if _resumable(path, header, plan, origin):
            note(f"resuming {path}")
            return RecordFile.reopen(path), header
    sources = tasks.resolve_source(plan.data, cards)
    header = {"plan": asdict(plan), "sources": sources, **origin}
    return RecordFile(output / _file_name(plan, now), header), header


def check_folder(output: Path) -> None:
    """Raise BenchError where no record could be written, before anything is measured."""
    absolute = output.absolute()
    nearest = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise BenchError(
            f"cannot write records to {output}: see {nearest}", "give another folder with --output"
        )


def _resumable(path: Path, header: Header, plan: Plan, origin: Header) -> bool:
    if header.get("plan") != asdict(plan):
        return False
    changed = [text for name, text in SOFTWARE.items() if header.get(name) != origin.get(name)]
    if is_complete(path):
        return False
    if changed:
        note(f"not resuming {path}: it was begun with another {changed[0]}")
    return not changed


def _file_name(plan: Plan, now: datetime) -> str:
    target = plan.target.strip("/").split("/")[-1]
    return f"{now:%Y%m%dT%H%M%S}-{target}-{secrets.token_hex(2)}.jsonl"
