"""Records behind a page: the command, the hash, and which rows are of which file."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from by_hand import FAST, KEY, written_record

from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.rows import rows
from fspad_bench.publishing.sources import row_name, sources

RESULTS = Path(__file__).parents[2] / "results"


def test_a_source_is_its_file(tmp_path):
    path = tmp_path / "run.jsonl"
    written_record(path)
    (source,) = sources([path])
    assert source.name == "run.jsonl"
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.id == f"record-{source.sha256[:12]}"


def test_a_row_knows_its_record_and_its_command(tmp_path):
    lines = [
        {"kind": "run", "schema": 3, "argv": ["run", "--task", "a b"], "commit": "c0ffee"},
        {"kind": "key", "key": FAST.hash, **asdict(FAST)},
    ]
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = tmp_path / "other.jsonl"
    written_record(other)
    source, unlike = sources([path, other])
    assert source.command == "fspad-bench run --task 'a b'"
    assert source.facts == {"schema": "3", "commit": "c0ffee"}
    (row,) = rows(Records.read(path))
    assert row_name(row) in source.rows
    assert row_name(row) not in unlike.rows
    (vanilla,) = rows(Records.read(other))
    assert vanilla["decoder"] == KEY.decoder
    assert unlike.rows == {row_name(vanilla)}


def test_rows_of_every_schema_find_their_record():
    for folder in ("bfloat16-growth", "h100"):
        paths = sorted((RESULTS / folder).glob("*.jsonl"))
        held = {name for source in sources(paths) for name in source.rows}
        keys = Records.read(*paths).keys
        assert len(held) == len(keys) > 6


def test_a_damaged_line_costs_that_line(tmp_path):
    path = tmp_path / "run.jsonl"
    written_record(path)
    whole = sources([path])[0]
    path.write_bytes(path.read_bytes() + b'{"kind": "key", "task"\n[1]\n')
    assert sources([path])[0].rows == whole.rows
