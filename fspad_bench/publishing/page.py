"""Records as one HTML page that needs nothing else: no network, no other file.

- The page is a function of the records' lines: it holds no date and no path, and the same records
  give the same bytes.
- All text of records is a stranger's: it is escaped, control characters included, and a policy in
  the page forbids every script but its own.
- Tables, facts and pictures are there without JavaScript, which adds sorting and filters.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from fspad_bench import __version__
from fspad_bench.benchmark.means import place
from fspad_bench.benchmark.notes import notes_of
from fspad_bench.benchmark.record import VANILLA
from fspad_bench.benchmark.rows import Row
from fspad_bench.benchmark.titles import distribution, names_of, setting, task_of
from fspad_bench.publishing.cells import Cell, figure, mean_cell, score
from fspad_bench.publishing.figures import Picture, pictures
from fspad_bench.publishing.published import published
from fspad_bench.publishing.row_facts import VERDICTS, Facts, facts_of, first_token
from fspad_bench.publishing.sources import Source
from fspad_bench.publishing.standings import Standing, Standings, standings
from fspad_bench.util.terminal import visible_lines

GENERATOR = "fspad-bench"
HEAD = 1000  # characters that hold the name of the generator
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Line:
    """A row of the page's table: its facts, its figures, and what filters compare."""

    facts: Facts
    cells: dict[str, Cell]
    filters: dict[str, str]
    begins: bool  # a setting


@dataclass(frozen=True)
class Ranking:
    """The standings of a setting with their pictures."""

    standings: Standings
    filters: dict[str, str]
    lines: list[tuple[Standing, dict[str, Cell]]]
    pictures: list[Picture]


def page(table: Sequence[Row], sources: Sequence[Source], left_out: Sequence[str] = ()) -> str:
    """Return the page of some rows. `left_out` names the lines of records that were damaged."""
    rows = list(table)
    names = names_of(rows)
    lines = _lines(rows, [facts_of(row, names, sources) for row in rows])
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return _environment().get_template("page.html").render(
        title=_title(rows),
        generator=GENERATOR,
        version=__version__,
        lines=lines,
        choices=_choices(lines),
        rankings=_rankings(standings(rows, names)),
        notes=notes_of(rows, names),
        verdicts=VERDICTS,
        published=published(row["decoder"] for row in rows),
        sources=sources,
        left_out=left_out,
        has_loops=any(row["looping"] for row in rows),
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=_policy_hash(script),
    )  # fmt: skip


def is_page(path: Path) -> bool:
    """Whether a file is a page that this module wrote."""
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        return f'<meta name="generator" content="{GENERATOR}">' in file.read(HEAD)
    return False


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _plain(value: Any) -> Any:
    """Return a text with its control characters escaped, as everywhere else they are printed."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return visible_lines(value)


def _policy_hash(script: str) -> str:
    """Return the hash by which the page's policy allows its own script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _title(rows: Sequence[Row]) -> str:
    targets = {row["target"] for row in rows}
    if len(targets) == 1:
        return f"Speculative decoding of {targets.pop()}"
    return f"Speculative decoding of {len(targets)} targets"


def _lines(rows: Sequence[Row], facts: Sequence[Facts]) -> list[Line]:
    lines = []
    last = None
    for row, own in zip(rows, facts, strict=True):
        begins = setting(row) != last
        last = setting(row)
        lines.append(Line(own, _cells(row), _filters(row), begins))
    return lines


def _cells(row: Row) -> dict[str, Cell]:
    return {
        "tokens_per_step": figure(row, "tokens_per_step"),
        "speedup": figure(row, "speedup", timed=True),
        "speedup_without_loops": figure(row, "speedup_without_loops", timed=True),
        "speedup_end_to_end": figure(row, "speedup_end_to_end", timed=True),
        "tokens_per_second": figure(row, "tokens_per_second", ".1f", timed=True),
        "time_to_first_token": first_token(row),
        "score": score(row),
    }


def _filters(row: Row) -> dict[str, str]:
    """Return what a reader can choose rows by."""
    return {"task": task_of(row), **_setting_filters(row)}


def _setting_filters(row: Row) -> dict[str, str]:
    where = place(row).removeprefix(f"{row['target']} · ")
    return {"target": row["target"], "sampling": distribution(row), "machine": where}


def _choices(lines: Sequence[Line]) -> dict[str, list[str]]:
    """Return the values of each filter, in the order of the table."""
    names = lines[0].filters
    return {name: list(dict.fromkeys(line.filters[name] for line in lines)) for name in names}


def _rankings(settings: Sequence[Standings]) -> list[Ranking]:
    return [
        Ranking(
            own,
            _setting_filters(own.first),
            [(standing, _means(standing)) for standing in own.decoders],
            pictures(own, f"s{number}"),
        )
        for number, own in enumerate(settings)
    ]


def _means(standing: Standing) -> dict[str, Cell]:
    noisy = standing.noisy
    plain = standing.rows[0]["decoder"] == VANILLA
    clocked = ("speedup", "speedup_without_loops")
    return {
        name: mean_cell(standing.mean(name), noisy=noisy and name in clocked, plain=plain)
        for name in (*clocked, "tokens_per_step", "tokens_per_step_without_loops")
    }
