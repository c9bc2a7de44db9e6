"""Repositories of the Hugging Face hub: a trained head as a model, results as a data set.

Each comes with a card that is made of the head's own file or of the rows. Command lines, and the
folders of paths, stay here (`private`); records hold both, so they are published only on demand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from fspad_bench.benchmark.render import render
from fspad_bench.benchmark.rows import Row
from fspad_bench.drafts.head import ABOUT, WEIGHTS
from fspad_bench.publishing.facts import Facts, caveats, model_id
from fspad_bench.publishing.private import base_names, decoder_name
from fspad_bench.util.errors import BenchError
from fspad_bench.util.text import file_bytes, json_value

ROWS = "rows.jsonl"
CARD = "README.md"
REQUIRED = ("target", "decoder", "identity")
OPTIONAL = ("version", "parameters", "conversations", "answer_tokens", "tokens_seen")
TAGS = ["speculative-decoding", "fspad-bench"]
Files = Mapping[str, bytes]
"""Path in the repository -> content."""


def head_repository(folder: Path, repo: str, license_: str, model: str | None) -> Files:
    """Return the files of a model repository for a head. Raises BenchError for what is no head."""
    about = _about(folder)
    target = model_id(str(about["target"]), model)
    decoder = str(about["decoder"])
    facts = {**dict.fromkeys(OPTIONAL), **about}
    public = _without_commands(about)
    card = _render(
        "head_card.md",
        front=_front(license=license_, base_model=target, tags=[*TAGS, decoder]),
        repo=repo,
        target=target,
        about=facts,
        stages=_stages(about),
        held_out=sorted(_figures(about.get("held_out"))),
    )
    return {
        CARD: card.encode(),
        ABOUT: (json.dumps(public, indent=2) + "\n").encode(),
        WEIGHTS: file_bytes(folder / WEIGHTS),
    }


def _about(folder: Path) -> dict[str, Any]:
    """Return what a head's file says. Raises BenchError for what no training wrote."""
    try:
        about = json_value(file_bytes(folder / ABOUT))
        if not isinstance(about, dict):
            raise ValueError("it is no JSON object")
        if missing := [name for name in REQUIRED if name not in about]:
            raise ValueError(f"it has no '{missing[0]}'")
    except ValueError as error:
        raise BenchError(
            f"{folder / ABOUT} is of no head that was trained here: {error}",
            "give the folder that `fspad-bench train` wrote",
        ) from error
    return about


def results_repository(
    paths: Sequence[Path], repo: str, license_: str, *, with_records: bool
) -> Files:
    """Return the files of a data set for records."""
    facts = [Facts.read(path) for path in paths]
    table = [_public(row) for of in facts for row in of.table]
    remarks = {
        f"{row['decoder']} on {row['task']}: {text}"
        for of in facts
        for row in of.table
        for text in caveats(row, of)
    }
    card = _render(
        "results_card.md",
        front=_front(
            license=license_,
            tags=TAGS,
            configs=[{"config_name": "default", "data_files": ROWS}],
        ),
        repo=repo,
        rows=len(table),
        records=with_records,
        tables=render(table, "markdown"),
        caveats=sorted(str(base_names(remark)) for remark in remarks),
    )
    files = {CARD: card.encode(), ROWS: _lines(table)}
    if with_records:
        files |= {f"records/{path.name}": file_bytes(path) for path in paths}
    return files


def _public(row: Row) -> Row:
    """Return a row without folders, and without the words of guards."""
    public = {name: base_names(value) for name, value in row.items()}
    public["decoder"] = decoder_name(row["decoder"])
    public["findings"] = [{"guard": finding["guard"]} for finding in row["findings"]]
    return public


def _lines(table: Sequence[Row]) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table).encode()


def _without_commands(value: Any) -> Any:
    """Return the content of a head's file without the command lines, which hold paths."""
    if not isinstance(value, dict):
        return value
    return {name: _without_commands(of) for name, of in value.items() if name != "command"}


def _stages(about: Any) -> int:
    """Count how often a head was trained, each time from the one before."""
    count = 1
    while isinstance(about := about.get("initial"), dict):
        count += 1
    return count


def _figures(held_out: Any) -> list[tuple[str, str]]:
    if not isinstance(held_out, dict):
        return []
    numbers = [(n, v) for n, v in held_out.items() if isinstance(v, int | float)]
    return [(name.replace("_", " "), f"{value:.4g}") for name, value in numbers]


def _front(**fields: Any) -> str:
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _render(template: str, **values: Any) -> str:
    loader = PackageLoader("fspad_bench.publishing")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    return environment.get_template(template).render(values)
