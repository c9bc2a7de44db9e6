"""What every published file says of a run: its rows, its first line, and the caveats of a row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fspad_bench.benchmark.cards import Card
from fspad_bench.benchmark.distrust import NO_DRAFTS
from fspad_bench.benchmark.generations import latest
from fspad_bench.benchmark.record import VANILLA, Records, Sample
from fspad_bench.benchmark.record_lines import lines
from fspad_bench.benchmark.rows import Row, rows
from fspad_bench.benchmark.tasks import load_card
from fspad_bench.benchmark.titles import task_of
from fspad_bench.benchmark.verdict import is_without_drafts
from fspad_bench.models.presets import PRESETS
from fspad_bench.publishing.private import base_name
from fspad_bench.util.errors import BenchError
from fspad_bench.util.text import file_bytes

OWN_MODELS = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "tiny": "fspad-bench/tiny",
}  # presets that no hub id stands for; the first is that model's Q4_1, dequantised
VERDICTS = {
    "lossy": "its output is not the target's own, and rounding does not explain it",
    "unverified": "nothing could tell whether its output is the target's own",
}


@dataclass(frozen=True)
class Facts:
    """The content of one record: `header` is its first line, `sha256` the hash of its file."""

    header: dict[str, Any]
    records: Records
    table: list[Row]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Facts:
        """Read a record. Raises BenchError where it is none, or holds no generation yet."""
        records = Records.read(path)
        table = rows(records)
        if not table:
            raise BenchError(
                f"{path} holds no generation yet",
                "repeat the same `fspad-bench run` command to resume it",
            )
        digest = hashlib.sha256(file_bytes(path)).hexdigest()
        return cls(next(lines(path)), records, table, digest)

    @property
    def target(self) -> str:
        return str(self.table[0]["target"])

    def questions(self, row: Row) -> list[str]:
        """Return the ids of the questions that a row answered, in the order of the record."""
        return list(dict.fromkeys(sample.sample for sample in self.samples(row)))

    def samples(self, row: Row) -> list[Sample]:
        """Return the generations of a row that did not fail, each turn of a prompt once."""
        own = [s for s in self.records.samples if s.key == row["record_key"]]
        return [sample for sample in latest(own) if not sample.error]


def model_id(target: str, given: str | None) -> str:
    """Return the hub id, OWNER/NAME, of a record's target.

    Raises BenchError where neither the target's name nor `given` is one.
    """
    preset = PRESETS.get(target)
    known = OWN_MODELS.get(target) or (preset.hub if preset else "") or target
    name = given or known
    owner, slash, model = name.partition("/")
    if not (owner and slash and model) or "/" in model or owner.startswith((".", "~")):
        raise BenchError(
            f"'{base_name(name)}' is no hub id of a model", "name the model with --model OWNER/NAME"
        )
    return name


def dataset_name(row: Row) -> str:
    """Return a task with its source, as the titles of tables do, without a folder's name."""
    return task_of({**row, "data_source": base_name(row["data_source"])})


def hub_card(row: Row) -> Card | None:
    """Return the card whose data set on the hub a row's prompts are; None where that is not sure.

    The card must be the one that the row was measured with.
    """
    if row["data_source"] != "hub":
        return None
    try:
        card = load_card(row["task"])
    except BenchError:  # a card of another installation
        return None
    return card if card.sha256 == row["card_sha256"] and card.dataset_path else None


def caveats(row: Row, *records: Records) -> list[str]:
    """Return what a reader of one of a row's figures must know, a sentence each.

    `records`: the content of each file that holds the row's key.
    """
    found = []
    if row["verdict"] in VERDICTS:
        found.append(f"{row['verdict']}: {VERDICTS[row['verdict']]}")
    if is_without_drafts(row):
        found.append(f"no drafts: {NO_DRAFTS}")
    if row["noisy"]:
        found.append("noisy: other work was running meanwhile, its times are not to be quoted")
    if row["hidden_work"]:
        found.append(f"work before the decode clock: {row['hidden_work']}")
    if row["findings"]:
        guards = sorted({str(finding["guard"]) for finding in row["findings"]})
        found.append(f"complaints of guards: {', '.join(guards)}")
    if row["errors"]:
        found.append(f"{row['errors']} generations failed and are left out")
    if row["looping"]:
        found.append(f"{row['looping']} of {row['outputs']} outputs end in a loop")
    if row["decoder"] != VANILLA and row["speedup"] and row["speedup_low"] is None:
        found.append("too few prompts for an interval")
    if not all(content.complete for content in records):
        found.append("the run is unfinished")
    if damaged := sum(len(content.damaged) for content in records):
        found.append(f"{damaged} damaged lines of the record are left out")
    return found
