"""Repositories of the Hugging Face hub: a trained head as a model, results as a data set.

Each comes with a card that is made of the head's own file or of the rows. Command lines, and the
folders of paths, stay here (`private`); records hold both, so they are published only on demand.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.render import finite, render
from fspad_bench.benchmark.rows import Row
from fspad_bench.benchmark.titles import names_of, place_of
from fspad_bench.drafts.head import ABOUT, WEIGHTS
from fspad_bench.publishing.facts import caveats, model_id
from fspad_bench.publishing.private import base_names, decoder_name
from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError
from fspad_bench.util.text import file_bytes, json_value

ROWS = "rows.jsonl"
CARD = "README.md"
REQUIRED = ("target", "decoder", "identity")
OPTIONAL = ("version", "parameters", "conversations", "answer_tokens", "tokens_seen")
SHORT_HASH = 8
# fields that no user types: the name of a processor may hold a slash, which begins no folder
UNTYPED = ("machine", "device", "forward", "torch")
TAGS = ["speculative-decoding", "fspad-bench"]
ANY_HEAD = f"{registry.PACKAGE}.decoders.variants:AnyHead"
Files = Mapping[str, bytes]
"""Path in the repository -> content."""


def head_repository(folder: Path, repo: str, license_: str, model: str | None) -> Files:
    """Return the files of a model repository for a head. Raises BenchError for what is no head."""
    about = _about(folder)
    target = model_id(str(about["target"]), model)
    decoder = str(about["decoder"])
    facts = {**dict.fromkeys(OPTIONAL), **about}
    public = _without_commands(about)
    label, option = _run_by(str(about.get("architecture", decoder)))
    card = _render(
        "head_card.md",
        front=_front(license=license_, base_model=target, tags=[*TAGS, decoder]),
        repo=repo,
        target=target,
        label=label,
        option=option,
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


def _run_by(architecture: str) -> tuple[str, str]:
    """Return the label of a decoder that runs a head of an architecture, and its option for it."""
    if architecture not in registry.names(registry.DECODERS):
        return f"{architecture}={ANY_HEAD}", f"{architecture}.head"
    options = inspect.signature(registry.resolve(registry.DECODERS, architecture)).parameters
    return architecture, f"{architecture}.{'head' if 'head' in options else 'model'}"


def results_repository(
    table: Sequence[Row], paths: Sequence[Path], repo: str, license_: str, *, with_records: bool
) -> Files:
    """Return the files of a data set for the rows of some records, which lie at `paths`."""
    public = [_public(row) for row in table]
    card = _render(
        "results_card.md",
        front=_front(
            license=license_,
            tags=TAGS,
            configs=[{"config_name": "default", "data_files": ROWS}],
        ),
        repo=repo,
        rows=len(public),
        records=with_records,
        tables=render(public, "markdown"),
        caveats=_remarks(public, [Records.read(path) for path in paths]),
    )
    return {
        CARD: card.encode(),
        ROWS: _lines(public),
        **(_record_files(paths) if with_records else {}),
    }


def _remarks(public: list[Row], contents: Sequence[Records]) -> list[str]:
    """Return the caveats of all rows, each with the row's place; `contents`: a record each."""
    names = names_of(public)
    remarks = set()
    for row in public:
        own = [content for content in contents if row["record_key"] in content.keys]
        remarks |= {f"{place_of(row, names)}: {text}" for text in caveats(row, *own)}
    return sorted(remarks)


def _record_files(paths: Sequence[Path]) -> dict[str, bytes]:
    """Return records by their paths in the repository; those of one name are told apart by their
    hashes.
    """
    names = Counter(path.name for path in paths)
    files = {}
    for path in paths:
        content = file_bytes(path)
        digest = hashlib.sha256(content).hexdigest()[:SHORT_HASH]
        is_alone = names[path.name] == 1
        name = path.name if is_alone else f"{path.stem}-{digest}{path.suffix}"
        files[f"records/{name}"] = content
    return files


def _public(row: Row) -> Row:
    """Return a row without folders, and without the words of guards."""
    public = {name: of if name in UNTYPED else base_names(of) for name, of in row.items()}
    public["decoder"] = decoder_name(row["decoder"])
    public["findings"] = [{"guard": finding["guard"]} for finding in row["findings"]]
    return public


def _lines(table: Sequence[Row]) -> bytes:
    lines = (json.dumps(finite(row), ensure_ascii=False, allow_nan=False) for row in table)
    return "".join(f"{line}\n" for line in lines).encode()


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
