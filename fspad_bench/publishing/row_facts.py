"""Everything that a record says of a row, for the page's part that its figures link to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fspad_bench.benchmark import distrust
from fspad_bench.benchmark.record import PENALTIES, VANILLA
from fspad_bench.benchmark.rows import Row
from fspad_bench.benchmark.titles import Names, distribution, method, task_of
from fspad_bench.benchmark.verdict import shown_verdict
from fspad_bench.publishing.cells import Cell, figure, score
from fspad_bench.publishing.sources import Source, row_name
from fspad_bench.util.machine import NOISY

# the page's words for what `verdict` decides
VERDICTS = {
    "exact": "No output differs from vanilla's by a single token.",
    "tie": "Some outputs differ, and rounding at near ties explains every token of them.",
    "law": "Sampled tokens differ from vanilla's, but the rule keeps vanilla's distribution.",
    "unverified": "Nothing here can tell: outputs differ for a reason that is not known, vanilla "
    "is missing, or the target was changed during the run.",
    "lossy": "Outputs differ, and rounding does not explain it.",
}
SETTINGS = (
    "target",
    "task",
    "data_source",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    *PENALTIES,
    "seed",
    "max_new_tokens",
    "dtype",
    "forward",
    "device",
    "threads",
    "machine",
    "verification",
    "scope",
    "version",
    "torch",
)
HASHES = (
    "target_identity",
    "target_sha256",
    "data_sha256",
    "template_sha256",
    "tokenizer_sha256",
    "card_sha256",
    "source_sha256",
)

Lines = list[tuple[str, Cell]]


@dataclass(frozen=True)
class Facts:
    """A row with its name in links, its figures, settings and hashes by name, and its sources."""

    id: str
    name: str
    row: Row
    figures: Lines
    settings: Lines
    hashes: Lines
    doubts: list[str]
    sources: list[Source]

    @property
    def where(self) -> str:
        return f"{task_of(self.row)}, {distribution(self.row)}"

    @property
    def verdict(self) -> str:
        return shown_verdict(self.row)

    @property
    def meaning(self) -> str:
        return VERDICTS[self.row["verdict"]]


def facts_of(row: Row, names: Names, sources: Sequence[Source]) -> Facts:
    """Return the facts of a row."""
    name = row_name(row)
    return Facts(
        id=name,
        name=names[method(row)],
        row=row,
        figures=[line for line in _figures(row) if line[1] != Cell()],
        settings=[*_named(row, SETTINGS), *_options(row["options"])],
        hashes=_named(row, HASHES),
        doubts=_doubts(row),
        sources=[source for source in sources if name in source.rows],
    )


def _figures(row: Row) -> Lines:
    speeds = ("speedup", "speedup_without_loops", "speedup_end_to_end", "speedup_spec_bench")
    return [
        ("prompts", Cell(str(row["samples"]))),
        ("outputs", Cell(f"{row['outputs']}, of which {row['looping']} end in a loop")),
        ("output tokens", Cell(f"{row['tokens']:,}")),
        ("tokens_per_step", figure(row, "tokens_per_step")),
        ("tokens_per_step_without_loops", figure(row, "tokens_per_step_without_loops")),
        *((name, figure(row, name, timed=True)) for name in speeds),
        ("tokens_per_second", figure(row, "tokens_per_second", ".1f", timed=True)),
        ("time_to_first_token", first_token(row)),
        ("draft_share", figure(row, "draft_share", ".1f", unit="%", factor=100, timed=True)),
        ("score_share", figure(row, "score_share", ".1f", unit="%", factor=100, timed=True)),
        ("peak_memory", figure(row, "peak_memory", ".2f", unit=" GiB", factor=2**-30)),
        ("accepted", Cell(", ".join(map(str, row["accepted"])) or Cell().text)),
        ("score", score(row)),
        *_identity(row),
    ]


def _identity(row: Row) -> Lines:
    """Return what is known of how far a decoder's outputs are vanilla's."""
    if row["decoder"] == VANILLA or row["divergences"] is None:
        return []
    return [
        ("divergences", Cell(f"{row['divergences']} of {row['judged']} outputs")),
        ("same_tokens", figure(row, "same_tokens", ".1f", unit="%", factor=100)),
        ("max_regret", figure(row, "max_regret", ".2g", unit=" logits")),
        ("margin_error", figure(row, "margin_error", ".2g", unit=" logits")),
        ("pit_p", figure(row, "pit_p", ".2g")),
        ("pit_shift", figure(row, "pit_shift", ".2f")),
    ]


def first_token(row: Row) -> Cell:
    """Return the mean time of the prefill in milliseconds."""
    return figure(row, "time_to_first_token", ".0f", unit=" ms", factor=1000, timed=True)


def _named(row: Row, names: Sequence[str]) -> Lines:
    return [(name, Cell(_shown(row[name]))) for name in names if row[name] is not None]


def _options(options: dict[str, Any]) -> Lines:
    return [(f"option {name}", Cell(_shown(value))) for name, value in sorted(options.items())]


def _shown(value: Any) -> str:
    """Return a value as text, one that is no text as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text or "(empty)"


def _doubts(row: Row) -> list[str]:
    """Return what a reader must know before they quote the row."""
    doubts = []
    if row["noisy"]:
        doubts.append(f"Other work used more than {NOISY:.0%} of a core: do not quote its times.")
    if row["errors"]:
        doubts.append(f"{row['errors']} generations failed; their pairs are left out.")
    if row["scope"] == "run":
        doubts.append("It learns across prompts: figures depend on their number and order.")
    if row["source_sha256"] is None:
        doubts.append("A record of schema 1: options as given, the source not recorded.")
    return [*doubts, *distrust.notes(row)]
