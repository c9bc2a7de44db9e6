"""Shards: runs that share the questions of one plan among processes, each with its own record.

The records of all shards, read together, are the record of the whole plan. Scores are of a whole
task, so whichever shard ends last writes them.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.record_file import header_of, is_complete
from fspad_bench.util.errors import BenchError

HINT = "write K/N: 1/2 and 2/2 share the questions"


class Shard(NamedTuple):
    """The `number`-th of `parts` parts of each task's questions, counted from 1."""

    number: int
    parts: int

    @classmethod
    def of(cls, text: str) -> Shard:
        """Read `K/N`; an empty text is the whole. Raises BenchError for any other."""
        if not text:
            return WHOLE
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise BenchError(f"the shard '{text}' is not K/N", HINT)
        shard = cls(int(number), int(count))
        if not 1 <= shard.number <= shard.parts:
            raise BenchError(f"there is no shard {text}", HINT)
        return shard

    def has(self, index: int) -> bool:
        """Return whether a task's question belongs to it."""
        return index % self.parts == self.number - 1


WHOLE = Shard(1, 1)


def launched() -> str:
    """Return the shard of this process, `K/N`, where `accelerate launch` or torchrun started
    several; else nothing.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    rank = os.environ.get("RANK", "0")
    if not (count.isdecimal() and rank.isdecimal()) or int(count) < 2:
        return ""
    return f"{int(rank) + 1}/{count}"


def of_process(plan: Plan) -> Plan:
    """Return what this process measures of a plan: where several were launched, its shard, on a GPU
    of its own.

    Raises BenchError for a plan of another shard: all of them would measure the same.
    """
    part = launched()
    if not part:
        return plan
    if "," in plan.device or "+" in plan.device:
        raise BenchError(
            f"several processes share this run, and each would have --device {plan.device}",
            "launch one process, or give each of them one device",
        )
    if plan.shard not in ("", part):
        raise BenchError(
            f"several processes share this run, and it is shard {plan.shard} of another",
            "launch one process, or leave the shard out",
        )
    return replace(plan, shard=part, device=launched_device(plan.device))


def launched_device(name: str) -> str:
    """Return the device of this process: of several on one machine, each has a GPU of its own."""
    if launched() and name in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return name


def together(plan: Plan, own: Path) -> list[Path]:
    """Return the records of all shards of a plan once all but this one have ended; nothing until
    then.
    """
    shard = Shard.of(plan.shard)
    if shard.parts == 1:
        return [own]
    found = {shard: own}
    for path in sorted(own.parent.glob("*.jsonl")):
        other = _finished_shard(path, plan) if path != own else None
        if other and other != shard and other.parts == shard.parts:
            found[other] = path
    return list(found.values()) if len(found) == shard.parts else []


def _finished_shard(path: Path, plan: Plan) -> Shard | None:
    """Return the shard that a record is of, if it is a complete one of this plan."""
    own = {"shard": plan.shard, "device": plan.device}  # each process has its device
    content = header_of(path).get("plan")
    if not isinstance(content, dict) or {**content, **own} != asdict(plan):
        return None
    try:
        return Shard.of(str(content.get("shard", ""))) if is_complete(path) else None
    except BenchError:  # edited by hand: no part of this run
        return None
