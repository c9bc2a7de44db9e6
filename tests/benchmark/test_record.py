"""Facts on disk: what is written is what is read, whatever interrupts the writing."""

import builtins
import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fspad_bench.benchmark.record import (
    SCHEMA,
    Audit,
    Key,
    RecordFile,
    Records,
    Sample,
    Score,
    lines,
)
from fspad_bench.errors import BenchError

KEY = Key(
    target="tiny",
    target_identity="tiny-1",
    task="gsm8k",
    data_source="bundled",
    data_sha256="ab" * 32,
    decoder="vanilla",
    options={},
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    seed=0,
    max_new_tokens=16,
    dtype="float64",
    forward="stock",
    device="cpu",
    threads=1,
    machine="a machine",
    reset="per-prompt",
    version="0.1.0",
)
SAMPLE = Sample(
    key=KEY.hash,
    sample="one",
    turn=1,
    round="r",
    prompt_tokens=3,
    prompt_sha256="cd",
    tokens=[1, 2, 3],
    committed=[2],
    drafted=[4],
    forwards=1,
    prefill_seconds=0.1,
    decode_seconds=0.1 + 0.2,
    draft_seconds=1e-9,
    score_seconds=0.02,
    other_load=0.5,
    peak_memory=12345,
    prompt="Grüße 🦆 \u2028 \n end",
    text="ok",
)
AUDIT = Audit(KEY.hash, "one", 1, "r", 2, [0.0, 1e-7], [0.0, 3e-8], 5e-8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "folder" / "run.jsonl"


def write(path, *samples):
    record = RecordFile.create(path, {"plan": {"limit": None}, "note": "ä"})
    record.key(KEY)
    for sample in samples:
        record.add(sample)
    return record


def test_round_trip(path):
    failed = Sample(KEY.hash, "two", 0, "s", error="ValueError: no")
    record = write(path, SAMPLE, failed)
    record.add(AUDIT)
    record.add(Score(KEY.hash, {"bleu": 1.5, "chrf": 0.0}))
    found = Records.read(path)
    assert found.headers == [{"schema": SCHEMA, "plan": {"limit": None}, "note": "ä"}]
    assert found.keys == {KEY.hash: KEY}
    assert found.samples == [SAMPLE, failed]
    assert found.audits == [AUDIT]
    assert found.scores == {KEY.hash: {"bleu": 1.5, "chrf": 0.0}}
    assert not found.complete
    record.end()
    assert Records.read(path).complete


def test_every_line_names_its_kind(path):
    write(path, SAMPLE).end()
    assert [line["kind"] for line in lines(path)] == ["run", "key", "sample", "end"]
    assert path.read_bytes().endswith(b"\n")


def test_what_is_empty_is_left_out_and_zero_is_not(path):
    write(path, replace(SAMPLE, peak_memory=None, text="", turn=0, other_load=0.0, committed=[]))
    line = list(lines(path))[-1]
    assert not {"peak_memory", "text", "error"} & line.keys()
    assert (line["turn"], line["other_load"], line["committed"]) == (0, 0.0, [])


def test_several_files_are_one_record(tmp_path):
    write(tmp_path / "a.jsonl", SAMPLE)
    write(tmp_path / "b.jsonl", replace(SAMPLE, round="t"))
    found = Records.read(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert len(found.headers) == 2
    assert found.keys == {KEY.hash: KEY}
    assert [s.round for s in found.samples] == ["r", "t"]


def test_a_key_is_written_once_even_after_reopening(path):
    record = write(path)
    assert record.key(KEY) == KEY.hash
    again = RecordFile.reopen(path)
    again.key(KEY)
    again.key(replace(KEY, seed=1))
    assert [line["key"] for line in lines(path) if line["kind"] == "key"] == [
        KEY.hash,
        replace(KEY, seed=1).hash,
    ]


CHANGES = {
    field: "other" if isinstance(value, str) else 7 for field, value in asdict(KEY).items()
} | {"options": {"head_sha256": "ef"}}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_decides_the_key(field):
    changed = replace(KEY, **{field: CHANGES[field]})
    assert changed.hash != KEY.hash
    assert (changed.setting == KEY.setting) == (field in ("decoder", "options", "verification"))


def test_the_order_of_options_does_not():
    one, two = replace(KEY, options={"a": 1, "b": 2}), replace(KEY, options={"b": 2, "a": 1})
    assert one.hash == two.hash


def test_an_option_of_any_type_is_written_and_read_to_the_same_key(path):
    key = replace(KEY, options={"head": Path("a/b"), "depth": None, "rate": 0.1})
    record = write(path)
    assert record.key(key) == key.hash
    assert Records.read(path).keys[key.hash].hash == key.hash


@pytest.mark.parametrize("length", range(1, 12))
def test_a_torn_last_line_is_dropped(path, length):
    """Cut at every byte of a line's head, and within a character of several bytes."""
    write(path, SAMPLE)
    whole = path.read_bytes()
    torn = '{"😀": "ü'.encode()[:length]
    path.write_bytes(whole + torn)
    assert Records.read(path).samples == [SAMPLE]
    record = RecordFile.reopen(path)
    assert path.read_bytes() == whole
    record.add(replace(SAMPLE, sample="two"))
    assert [s.sample for s in Records.read(path).samples] == ["one", "two"]


def test_a_record_has_one_writer_at_a_time(path):
    RecordFile.create(path, {}).hold()  # forgotten at once, and so released
    first = RecordFile.reopen(path)
    with pytest.raises(BenchError, match=f"another run is writing {path}"):
        RecordFile.reopen(path)
    first.release()
    RecordFile.reopen(path).add(SAMPLE)


def test_reopening_a_whole_file_changes_nothing(path):
    write(path, SAMPLE).end()
    before = path.read_bytes()
    RecordFile.reopen(path)
    assert path.read_bytes() == before


def test_a_torn_header_leaves_an_empty_record(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"kind": "run", "sch')
    assert Records.read(path) == Records()
    RecordFile.reopen(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "damage", [b"{not json", b"[1, 2]", b'"text"', b'{"no": "kind"}', b"\xff\xfe", b""]
)
def test_a_damaged_line_before_the_end_is_named(path, damage):
    write(path)
    head = path.read_bytes()
    path.write_bytes(head + damage + b"\n" + head)
    with pytest.raises(BenchError, match=r"run\.jsonl:3: not a record line") as caught:
        Records.read(path)
    assert "never edited" in caught.value.hint
    with pytest.raises(BenchError):
        RecordFile.reopen(path)
    assert path.read_bytes() == head + damage + b"\n" + head


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "sample", "key": KEY.hash},
        {"kind": "sample", **asdict(SAMPLE), "from_the_future": 1},
        {"kind": "key", "key": "x", "target": "tiny"},
        {"kind": "key", **asdict(KEY)},
        {"kind": "score", "key": "x"},
        {"kind": "audit"},
    ],
)
def test_a_line_of_another_schema_is_refused(path, line):
    write(path).line(line)
    with pytest.raises(BenchError, match="not a record of schema 1"):
        Records.read(path)


def test_a_sample_without_its_key_line_is_refused(path):
    RecordFile.create(path, {}).add(SAMPLE)
    with pytest.raises(BenchError, match=f"the key {KEY.hash} is missing"):
        Records.read(path)


def test_lines_of_an_unknown_kind_are_passed_over(path):
    write(path, SAMPLE).line({"kind": "remark", "text": "later versions may say more"})
    assert Records.read(path).samples == [SAMPLE]


class FullDisk:
    """A file that takes a few bytes of what it is given, and then no more."""

    def __init__(self, file, takes, when):
        self.file, self.takes, self.when = file, takes, when

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: self.takes])
        self.file.flush()
        if self.when == "write":
            raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        if self.when == "flush":
            raise OSError(errno.ENOSPC, "No space left on device")

    def fileno(self):
        return self.file.fileno()


@pytest.fixture
def full_disk(monkeypatch):
    """`full_disk(takes, when)`: from now on writing takes that many bytes and fails at that call."""
    real = Path.open

    def start(takes, when):
        def open_(self, mode="r", *args, **kwargs):
            file = real(self, mode, *args, **kwargs)
            return FullDisk(file, takes, when) if mode == "ab" else file

        monkeypatch.setattr(Path, "open", open_)

    return start


@pytest.mark.parametrize("when", ["write", "flush"])
@pytest.mark.parametrize("takes", [0, 1, 30])
def test_a_full_disk_leaves_the_record_as_it_was(path, full_disk, monkeypatch, takes, when):
    record = write(path, SAMPLE)
    before = path.read_bytes()
    full_disk(takes, when)
    with pytest.raises(BenchError, match="No space left on device") as caught:
        record.add(replace(SAMPLE, sample="two"))
    assert str(path) in caught.value.message
    assert "same command" in caught.value.hint
    assert path.read_bytes() == before
    monkeypatch.undo()
    RecordFile.reopen(path).add(replace(SAMPLE, sample="two"))
    assert [s.sample for s in Records.read(path).samples] == ["one", "two"]


def test_a_failing_fsync_is_the_same(path, monkeypatch):
    record = write(path, SAMPLE)
    before = path.read_bytes()

    def fail(_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BenchError, match="Disk quota exceeded"):
        record.add(SAMPLE)
    assert path.read_bytes() == before


def test_a_file_that_may_not_be_written_is_one_clear_error(path, monkeypatch):
    record = write(path, SAMPLE)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "truncate", refuse)
    with pytest.raises(BenchError, match="Permission denied"):
        record.add(SAMPLE)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BenchError, match="cannot write"):
        RecordFile.create(tmp_path / "file" / "run.jsonl", {})


def test_lines_are_on_disk_before_the_call_returns(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(path.read_bytes().count(b"\n")))
    write(path, SAMPLE)
    assert synced == [1, 2, 3]


def test_a_line_is_plain_json(path):
    write(path, SAMPLE)
    with builtins.open(path, encoding="utf-8") as file:
        assert all(
            isinstance(json.loads(line), dict) for line in file.read().rstrip("\n").split("\n")
        )
