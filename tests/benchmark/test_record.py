"""Records on disk: what is written is what is read, whatever interrupts the writing."""

import builtins
import errno
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from by_hand import AUDIT, KEY, SAMPLE, written_record

from fspad_bench.benchmark.record import (
    SCHEMA,
    Records,
    Sample,
    Score,
)
from fspad_bench.benchmark.record_file import RecordFile
from fspad_bench.benchmark.record_lines import lines
from fspad_bench.util.errors import BenchError


def test_round_trip(path):
    failed = Sample(KEY.hash, "two", 0, "s", error="ValueError: no")
    written = written_record(path, SAMPLE, failed)
    written.add(AUDIT)
    written.add(Score(KEY.hash, {"bleu": 1.5, "chrf": 0.0}))
    header = {"kind": "run", "schema": SCHEMA, "plan": {"limit": None}, "note": "ä"}
    assert next(lines(path)) == header
    records = Records.read(path)
    assert records.keys == {KEY.hash: KEY}
    assert records.samples == [SAMPLE, failed]
    assert records.audits == [AUDIT]
    assert records.scores == {KEY.hash: {"bleu": 1.5, "chrf": 0.0}}
    assert not records.complete
    written.end()
    assert Records.read(path).complete


def test_every_line_names_its_kind(path):
    written_record(path, SAMPLE).end()
    assert [line["kind"] for line in lines(path)] == ["run", "key", "sample", "end"]
    assert path.read_bytes().endswith(b"\n")


def test_empty_fields_are_left_out_and_zeros_are_not(path):
    written_record(
        path, replace(SAMPLE, peak_memory=None, text="", turn=0, other_load=0.0, committed=[])
    )
    line = list(lines(path))[-1]
    assert not {"peak_memory", "text", "error"} & line.keys()
    assert (line["turn"], line["other_load"], line["committed"]) == (0, 0.0, [])


def test_several_files_are_one_record(tmp_path):
    written_record(tmp_path / "a.jsonl", SAMPLE)
    written_record(tmp_path / "b.jsonl", replace(SAMPLE, round="t"))
    records = Records.read(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert records.keys == {KEY.hash: KEY}
    assert [s.round for s in records.samples] == ["r", "t"]


def test_a_key_is_written_once_even_after_reopening(path):
    written = written_record(path)
    assert written.key(KEY) == KEY.hash
    written.release()
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
    method = ("decoder", "options", "verification", "scope")
    assert (changed.setting == KEY.setting) == (field in method)


def test_the_order_of_options_does_not_decide_the_key():
    one = replace(KEY, options={"a": 1, "b": 2})
    two = replace(KEY, options={"b": 2, "a": 1})
    assert one.hash == two.hash


def test_an_option_of_any_type_is_written_and_read_to_the_same_key(path):
    key = replace(KEY, options={"head": Path("a/b"), "depth": None, "rate": 0.1})
    written = written_record(path)
    assert written.key(key) == key.hash
    assert Records.read(path).keys[key.hash].hash == key.hash


@pytest.mark.parametrize("length", range(1, 12))
def test_a_torn_last_line_is_dropped(path, length):
    """Cuts fall on every byte of a line's head, also within a character of several bytes."""
    written_record(path, SAMPLE).release()
    whole = path.read_bytes()
    torn = '{"😀": "ü'.encode()[:length]
    path.write_bytes(whole + torn)
    assert Records.read(path).samples == [SAMPLE]
    written = RecordFile.reopen(path)
    assert path.read_bytes() == whole
    written.add(replace(SAMPLE, sample="two"))
    assert [s.sample for s in Records.read(path).samples] == ["one", "two"]


def test_reopening_a_whole_file_changes_nothing(path):
    written = written_record(path, SAMPLE)
    written.end()
    written.release()
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
def test_a_damaged_line_costs_that_line(path, damage):
    written_record(path, SAMPLE).release()
    head = path.read_bytes()
    path.write_bytes(head + damage + b"\n" + head.splitlines(keepends=True)[-1])
    records = Records.read(path)
    assert records.samples == [SAMPLE, SAMPLE]
    (named,) = records.damaged
    assert named.startswith(f"{path}:4: not a record line")
    RecordFile.reopen(path).release()
    assert path.read_bytes().startswith(head + damage + b"\n")


@pytest.mark.parametrize("damage", [b"{not json", b"[1, 2]", b'{"kind": 5}', b"\xff\xfe", b""])
def test_a_file_that_does_not_begin_as_a_record_is_none(path, damage):
    written_record(path, SAMPLE).release()
    path.write_bytes(damage + b"\n" + path.read_bytes())
    with pytest.raises(BenchError, match=r"run\.jsonl:1: not") as caught:
        Records.read(path)
    assert caught.value.hint


def test_a_damaged_key_costs_its_samples_until_it_is_written_again(path):
    other = replace(KEY, seed=1)
    written = written_record(path, SAMPLE, replace(SAMPLE, key=other.hash))
    written.key(other)
    written.release()
    path.write_bytes(path.read_bytes().replace(b'"kind": "key"', b'"kind": "key!', 1))
    records = Records.read(path)
    assert [sample.key for sample in records.samples] == [other.hash]
    assert f"the line of the key {KEY.hash} is missing: its 1 samples" in records.damaged[-1]
    again = RecordFile.reopen(path)
    again.key(KEY)
    assert len(Records.read(path).samples) == 2


def test_numbers_of_other_libraries_are_written_as_numbers(path):
    odd = replace(
        SAMPLE, tokens=[np.int64(1), np.int32(2)], forwards=np.int16(1), other_load=np.float32(0.5)
    )
    written_record(path, odd)
    assert Records.read(path).samples == [replace(SAMPLE, tokens=[1, 2], forwards=1)]


def test_an_error_with_half_a_surrogate_pair_is_written(path):
    written_record(path, Sample(KEY.hash, "one", 0, "r", error="ValueError: \ud83d"))
    (sample,) = Records.read(path).samples
    assert sample.error == "ValueError: ?"


def test_a_field_that_is_needed_is_written_though_it_is_empty(path):
    written_record(path, replace(SAMPLE, sample="", round=""))
    assert Records.read(path).samples == [replace(SAMPLE, sample="", round="")]


def test_a_record_stays_where_it_is_when_a_decoder_changes_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = written_record(Path("out/run.jsonl"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written.add(SAMPLE)
    written.release()
    assert Records.read(tmp_path / "out" / "run.jsonl").samples == [SAMPLE]
    assert list((tmp_path / "elsewhere").iterdir()) == []


class FullDisk:
    """A file that writes a few bytes, then fails."""

    def __init__(self, file, takes, when):
        self.file = file
        self.takes = takes
        self.when = when

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
    """Return `full_disk(takes, when)`: files then take so many bytes and fail at that call."""
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
    written = written_record(path, SAMPLE)
    before = path.read_bytes()
    full_disk(takes, when)
    with pytest.raises(BenchError, match="No space left on device") as caught:
        written.add(replace(SAMPLE, sample="two"))
    assert str(path) in caught.value.message
    assert "same command" in caught.value.hint
    assert path.read_bytes() == before
    monkeypatch.undo()
    written.release()
    RecordFile.reopen(path).add(replace(SAMPLE, sample="two"))
    assert [s.sample for s in Records.read(path).samples] == ["one", "two"]


def test_a_disk_that_fills_up_at_any_byte_loses_no_more_than_a_line(path, monkeypatch):
    """What is left is whole lines, or no file; continued, it is the uninterrupted record."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    lines = [{"kind": "costs", "decoder": "ä", "seconds": {}}, {"kind": "end", "status": "é"}]
    whole = RecordFile(path, {"plan": {}})
    for line in lines:
        whole.line(line)
    whole.release()
    content = path.read_bytes()
    ends = {sum(map(len, content.splitlines(keepends=True)[:n])) for n in range(4)}
    real = Path.open
    for room in range(len(content)):
        path.unlink(missing_ok=True)

        def open_(self, mode="r", *args, room=room, **kwargs):
            file = real(self, mode, *args, **kwargs)
            takes = room - (self.stat().st_size if mode == "ab" else 0)
            return Filling(file, takes) if mode == "ab" else file

        record = RecordFile(path, {"plan": {}})
        with monkeypatch.context() as patch, pytest.raises(BenchError, match="No space left"):
            patch.setattr(Path, "open", open_)
            for line in lines:
                record.line(line)
        record.release()
        kept = max(end for end in ends if end <= room)
        assert (path.read_bytes() if path.exists() else b"") == content[:kept]
        again = RecordFile.reopen(path) if kept else RecordFile(path, {"plan": {}})
        done = content[:kept].count(b"\n")
        for line in lines[max(0, done - 1) :]:
            again.line(line)
        again.release()
        assert path.read_bytes() == content


class Filling(FullDisk):
    """A file on a disk that takes so many bytes more."""

    def __init__(self, file, takes):
        super().__init__(file, takes, "write")

    def write(self, data):
        if len(data) <= self.takes:
            self.file.write(data)
        else:
            super().write(data)


@pytest.mark.parametrize("change", ["removed", "cut", "longer"])
def test_a_record_that_changes_while_it_is_written_gets_no_more_lines(path, change):
    written = written_record(path, SAMPLE)
    match change:
        case "removed":
            shutil.rmtree(path.parent)
        case "cut":
            os.truncate(path, 5)
        case "longer":
            path.write_bytes(path.read_bytes() + b"{}\n")
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(BenchError, match="was removed or changed") as caught:
        written.add(SAMPLE)
    assert "same command again" in caught.value.hint
    written.release()
    assert (path.read_bytes() if path.exists() else None) == before


def test_ctrl_c_within_a_line_leaves_whole_lines(path, monkeypatch):
    written = written_record(path, SAMPLE)
    before = path.read_bytes()

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", interrupted)
        written.add(replace(SAMPLE, sample="two"))
    assert path.read_bytes() == before
    written.add(replace(SAMPLE, sample="three"))
    assert [s.sample for s in Records.read(path).samples] == ["one", "three"]


def test_a_failing_fsync_leaves_the_record_as_it_was(path, monkeypatch):
    written = written_record(path, SAMPLE)
    before = path.read_bytes()

    def fail(_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BenchError, match="Disk quota exceeded"):
        written.add(SAMPLE)
    assert path.read_bytes() == before


def test_a_file_that_may_not_be_written_is_one_clear_error(path, monkeypatch):
    written = written_record(path, SAMPLE)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "truncate", refuse)
    with pytest.raises(BenchError, match="Permission denied"):
        written.add(SAMPLE)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BenchError, match="cannot write"):
        RecordFile(tmp_path / "file" / "run.jsonl", {}).end()


def test_lines_are_on_disk_before_the_call_returns(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(path.read_bytes().count(b"\n")))
    written_record(path, SAMPLE)
    assert synced == [1, 2, 3]


def test_a_plan_that_fails_to_load_leaves_nothing(path):
    RecordFile(path, {"plan": {}}).release()
    assert not path.parent.exists()


def test_a_line_is_plain_json(path):
    written_record(path, SAMPLE)
    with builtins.open(path, encoding="utf-8") as file:
        assert all(
            isinstance(json.loads(line), dict) for line in file.read().rstrip("\n").split("\n")
        )
