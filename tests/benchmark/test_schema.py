"""Schemas of records: which lines are read, and which are one clear error."""

import json
from dataclasses import asdict, replace

import pytest
from by_hand import AUDIT, KEY, SAMPLE, written_record

from fspad_bench.benchmark.record import SCHEMA, SINCE_SCHEMA_2, Records
from fspad_bench.benchmark.record_file import RecordFile
from fspad_bench.util.errors import BenchError


def refused(path):
    """Return the error of reading a record."""
    with pytest.raises(BenchError) as caught:
        Records.read(path)
    return caught.value


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "sample", "key": KEY.hash},
        {"kind": "sample", **asdict(SAMPLE), "from_the_future": 1},
        {"kind": "key", "key": "x", "target": "tiny"},
        {"kind": "key", **asdict(KEY)},
        {"kind": "key", "key": "x", **asdict(KEY), "scope": "sometimes"},
        {"kind": "key", "key": "x", **asdict(KEY), "reset": "never"},
        {"kind": "key", "key": "x", **asdict(KEY), "reset": 5},
        {"kind": "key", "key": "x", **asdict(KEY), "threads": "2"},
        {"kind": "key", "key": ["x"], **asdict(KEY)},
        {"kind": "sample", **asdict(SAMPLE), "tokens": ["1", "2"]},
        {"kind": "sample", **asdict(SAMPLE), "tokens": "12"},
        {"kind": "sample", **asdict(SAMPLE), "forwards": 1.5},
        {"kind": "sample", **asdict(SAMPLE), "decode_seconds": "0.1"},
        {"kind": "sample", **asdict(SAMPLE), "decode_seconds": float("nan")},
        {"kind": "sample", **asdict(SAMPLE), "prefill_seconds": -1.0},
        {"kind": "sample", **asdict(SAMPLE), "prefill_seconds": 0, "decode_seconds": 0},
        {"kind": "sample", **asdict(SAMPLE), "forwards": 10**400},
        {"kind": "sample", **asdict(SAMPLE), "committed": [10**9]},
        {"kind": "sample", **asdict(SAMPLE), "tokens": [-1]},
        {"kind": "sample", **asdict(SAMPLE), "tokens": []},
        {"kind": "sample", **asdict(SAMPLE), "ranks": [1]},
        {"kind": "sample", **asdict(SAMPLE), "ranks": [[0], [0]]},
        {"kind": "sample", **asdict(SAMPLE), "ranks": [[-1]]},
        {"kind": "sample", **asdict(SAMPLE), "depths": []},
        {"kind": "sample", **asdict(SAMPLE), "refused": [10**9]},
        {"kind": "score", "key": "x"},
        {"kind": "score", "key": "x", "scores": {"bleu": "high"}},
        {"kind": "audit"},
        {"kind": "audit", **asdict(AUDIT), "decoder_regrets": 5},
        {"kind": "audit", **asdict(AUDIT), "vanilla_regrets": []},
        {"kind": "costs", "decoder": "x"},
        {"kind": "costs", "decoder": "x", "seconds": [1.0]},
        {"kind": "costs", "decoder": "x", "seconds": None},
        {"kind": "run"},
        {"kind": "run", "schema": 0},
        {"kind": "run", "schema": "2"},
    ],
)
def test_a_line_that_is_not_of_the_schema_costs_that_line(path, line):
    written = written_record(path)
    written.line(line)
    written.add(SAMPLE)
    records = Records.read(path)
    assert records.samples == [SAMPLE]
    (named,) = records.damaged
    assert f"run.jsonl:3: not a line of schema {SCHEMA}" in named


def test_a_newer_schema_is_named(path):
    written_record(path, SAMPLE)
    content = path.read_text(encoding="utf-8")
    path.write_text(
        content.replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}'), encoding="utf-8"
    )
    error = refused(path)
    assert f"run.jsonl:1: schema {SCHEMA + 1} is newer" in error.message
    assert "install" in error.hint


def test_a_line_of_an_unknown_kind_is_named(path):
    """Its facts could change what the other lines mean."""
    written_record(path, SAMPLE).line({"kind": "remark", "text": "from a later version"})
    error = refused(path)
    assert "run.jsonl:4: unknown kind of line 'remark'" in error.message
    assert "install" in error.hint


def test_a_record_begins_with_its_schema(path):
    written_record(path, SAMPLE)
    head, _, rest = path.read_bytes().partition(b"\n")
    path.write_bytes(rest)
    assert "run.jsonl:1: not a line of schema" in refused(path).message
    path.write_bytes(head + b"\n" + rest)
    assert Records.read(path).samples == [SAMPLE]


def test_schema_1_is_read_for_what_it_is(path):
    fields = {name: value for name, value in asdict(KEY).items() if name not in SINCE_SCHEMA_2}
    fields |= {"reset": "per-prompt"}
    del fields["scope"]
    content = asdict(SAMPLE)
    del content["partial_forwards"]
    old = [
        {"kind": "run", "schema": 1, "plan": {}},
        {"kind": "key", "key": "old", **fields},
        {"kind": "sample", **content, "key": "old"},
        {"kind": "end", "status": "complete"},
    ]
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    records = Records.read(path)
    assert records.keys == {"old": replace(KEY, **dict.fromkeys(SINCE_SCHEMA_2, ""))}
    assert records.keys["old"].scope == "prompt"
    assert records.samples == [replace(SAMPLE, key="old", partial_forwards=0)]
    assert records.complete


def test_schema_3_says_nothing_of_trees(path):
    written_record(path, SAMPLE)
    text = path.read_text(encoding="utf-8")
    trees = ("depths", "ranks", "refused", "verify_seconds")
    content = {name: value for name, value in asdict(SAMPLE).items() if name not in trees}
    head, key, *_ = text.split("\n")
    old = head.replace(f'"schema": {SCHEMA}', '"schema": 3')
    line = json.dumps({"kind": "sample", **content})
    path.write_text(f"{old}\n{key}\n{line}\n", encoding="utf-8")
    (sample,) = Records.read(path).samples
    nothing = dict.fromkeys(trees)
    assert sample == replace(SAMPLE, **nothing)


def test_keys_of_schema_1_and_2_never_share_a_row():
    old = replace(KEY, **dict.fromkeys(SINCE_SCHEMA_2, ""))
    assert old.hash != KEY.hash
    assert old.setting != KEY.setting


def test_a_sample_without_its_key_line_is_left_out(path):
    RecordFile(path, {}).add(SAMPLE)
    records = Records.read(path)
    assert records.samples == []
    assert f"the key {KEY.hash} is missing" in records.damaged[0]
